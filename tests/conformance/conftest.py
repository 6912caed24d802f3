"""Gives the suite its echo server: `HOLDFAST_ECHO_COMMAND`, or else the shell in this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conformance.echo_target import ECHO_SHELL, running_server


@pytest.fixture(scope="session")
def echo_port() -> Iterator[int]:
    with running_server(os.environ.get("HOLDFAST_ECHO_COMMAND", ECHO_SHELL)) as port:
        yield port
