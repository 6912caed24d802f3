"""Fixtures of the tests that open sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest


@pytest.fixture
async def no_descriptor_left() -> AsyncIterator[None]:
    """Assert that every descriptor that was opened is closed again. Name it before the fixtures that open some."""
    # uvloop keeps some descriptors for itself from its first connection on.
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)
    before = _descriptors()
    yield
    left: set[tuple[int, str]] = set()
    for _ in range(100):  # sockets close in later turns of the loop
        left = _descriptors() - before
        if not left:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"still open: {sorted(left)}")


def _descriptors() -> set[tuple[int, str]]:
    """Number and target of each open descriptor, but for the pairs by which a loop wakes itself."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
            if target.startswith("socket:"):
                with socket.socket(fileno=os.dup(number)) as handle:
                    if handle.family == socket.AF_UNIX:
                        continue
        except OSError:
            continue  # the directory itself
        found.add((number, target))
    return found
