"""Fixtures of the tests without sockets: time is the test's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.clock import Clock


@pytest.fixture
def clock() -> Iterator[Clock]:
    with Clock().running() as clock:  # type: ignore[abstract] # what it lacks is never called
        yield clock
