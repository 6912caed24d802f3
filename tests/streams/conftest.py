"""Fixtures of the tests without sockets: time is the test's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast.timers import Timers
from tests.support.clock import Clock
from tests.support.reading import World


@pytest.fixture
def clock() -> Iterator[Clock]:
    with Clock().running() as clock:  # type: ignore[abstract] # what it lacks is never called
        yield clock


@pytest.fixture
def timers(clock: Clock) -> Timers:
    return Timers(clock)


@pytest.fixture
def world(timers: Timers) -> World:
    return World(timers)
