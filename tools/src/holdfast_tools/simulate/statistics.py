"""The simulated provider's counts, and waiting for them to become true."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

Outcome: TypeAlias = Literal["completed", "cancelled", "failed"]

#: Requests with more different keys than this are counted, but not by key.
MAX_KEYS = 100_000


class Statistics(msgspec.Struct, frozen=True):
    """A snapshot of the counts.

    `requests` = `completed` + `cancelled` + `failed` + `streaming`. `cancelled`: the client went away or took the
    request back before its end. `failed`: refused, or ended by its own fault. `open_streams` are HTTP/2 streams.
    """

    requests: int
    streaming: int
    completed: int
    cancelled: int
    failed: int
    tokens: int
    connections: int
    open_connections: int
    open_streams: int
    requests_by_protocol: dict[str, int]
    connections_by_protocol: dict[str, int]
    requests_by_key: dict[str, int]
    request_faults: dict[str, int]
    connection_faults: dict[str, int]


class Counters:
    """The counts themselves. Whoever changes one calls `changed` afterwards."""

    def __init__(self) -> None:
        self.streaming = 0
        self.open_connections = 0
        self.open_streams = 0
        self._watchers: list[tuple[Callable[[Statistics], bool], asyncio.Future[Statistics]]] = []
        self.reset()

    def reset(self) -> None:
        """Start counting anew; what is running or open now stays counted as such."""
        self.requests = self.streaming
        self.completed = 0
        self.cancelled = 0
        self.failed = 0
        self.tokens = 0
        self.connections = self.open_connections
        self.requests_by_protocol: Counter[str] = Counter()
        self.connections_by_protocol: Counter[str] = Counter()
        self.requests_by_key: Counter[str] = Counter()
        self.request_faults: Counter[str] = Counter()
        self.connection_faults: Counter[str] = Counter()
        self.changed()

    def request_began(self, protocol: str) -> None:
        self.requests += 1
        self.streaming += 1
        self.requests_by_protocol[protocol] += 1

    def request_has_key(self, key: str) -> int:
        """Count a request by its key; return which one of that key it is, from 1."""
        if key not in self.requests_by_key and len(self.requests_by_key) >= MAX_KEYS:
            return 1
        self.requests_by_key[key] += 1
        return self.requests_by_key[key]

    def request_ended(self, outcome: Outcome, tokens: int = 0) -> None:
        self.streaming -= 1
        self.tokens += tokens
        if outcome == "completed":
            self.completed += 1
        elif outcome == "cancelled":
            self.cancelled += 1
        else:
            self.failed += 1
        self.changed()

    def snapshot(self) -> Statistics:
        return Statistics(
            requests=self.requests,
            streaming=self.streaming,
            completed=self.completed,
            cancelled=self.cancelled,
            failed=self.failed,
            tokens=self.tokens,
            connections=self.connections,
            open_connections=self.open_connections,
            open_streams=self.open_streams,
            requests_by_protocol=dict(self.requests_by_protocol),
            connections_by_protocol=dict(self.connections_by_protocol),
            requests_by_key=dict(self.requests_by_key),
            request_faults=dict(self.request_faults),
            connection_faults=dict(self.connection_faults),
        )

    def changed(self) -> None:
        """Wake those whose condition has become true."""
        if not self._watchers:
            return
        snapshot = self.snapshot()
        for predicate, future in self._watchers:
            if not future.done() and predicate(snapshot):
                future.set_result(snapshot)

    async def until(self, predicate: Callable[[Statistics], bool], timeout: float) -> Statistics:
        """Wait until `predicate` holds; raise TimeoutError that shows the counts if it does not in time."""
        snapshot = self.snapshot()
        if predicate(snapshot):
            return snapshot
        future: asyncio.Future[Statistics] = asyncio.get_running_loop().create_future()
        watcher = (predicate, future)
        self._watchers.append(watcher)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise TimeoutError(f"not within {timeout} s; the counts are {self.snapshot()}") from None
        finally:
            self._watchers.remove(watcher)
