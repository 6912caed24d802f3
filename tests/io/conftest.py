"""Fixtures of the tests that open sockets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest


@pytest.fixture
async def no_descriptor_left() -> AsyncIterator[None]:
    """Assert that every descriptor that was opened is closed again. Name it before the fixtures that open some."""
    before = _descriptors()
    yield
    left: set[tuple[str, str]] = set()
    for _ in range(100):  # sockets close in later turns of the loop
        left = _descriptors() - before
        if not left:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"still open: {sorted(left)}")


def _descriptors() -> set[tuple[str, str]]:
    """Number and target of each open descriptor."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        except OSError:
            pass  # the directory itself
    return found
