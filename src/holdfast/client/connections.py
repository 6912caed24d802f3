"""The connections of a client. New work goes to the newest; one that its gateway sends away keeps its streams."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from holdfast.client.config import WebSocketConfig
from holdfast.client.events import ConnectionState
from holdfast.client.runner import Runner
from holdfast.client.streams import Reader
from holdfast.core.backoff import Backoff
from holdfast.core.session.client import ClientStream
from holdfast.errors import Draining, HoldfastError


class Connections:
    """One connection, and while gateways are replaced also the older ones whose streams end where they run.

    Each has a `Runner`, with a session of its own: what becomes of one is nothing to the streams of another.
    `on_state` hears of each change of the whole.
    """

    def __init__(self, config: WebSocketConfig, on_state: Callable[[ConnectionState], None]) -> None:
        self._told = ConnectionState.DISCONNECTED
        self._config = config
        self._on_state = on_state
        self._leaving: list[Runner] = []
        # Gateways that sent this client away one after the other, before they were of any use.
        self._backoff = Backoff(config.initial_backoff, config.max_backoff)
        self._rng = random.SystemRandom()
        self._current = self._make()

    @property
    def state(self) -> ConnectionState:
        """The state of the connection for new work; if there is none, that of one on which streams still run."""
        states = [runner.state for runner in self._all()]
        return next((state for state in states if state is not ConnectionState.DISCONNECTED), states[0])

    def start(self, reader: Reader) -> None:
        """Create or attach to the reader's stream; from then on the reader talks to its connection."""
        self._current.start(reader)

    def consume(self, stream: ClientStream, size: int) -> None:
        self._current.consume(stream, size)

    def leave(self, reader: Reader) -> None:
        self._current.leave(reader)

    def cancel(self, reader: Reader) -> None:
        """Stop the reader's generation, wherever it runs."""
        for runner in self._all():
            runner.cancel(reader)

    def reader_of(self, stream_id: str) -> Reader | None:
        """Return the reader of a stream, None where this client does not read it."""
        for runner in self._all():
            if (reader := runner.reader_of(stream_id)) is not None:
                return reader
        return None

    async def connected(self) -> None:
        """Wait until a connection for new work is open. Raises like a stream would."""
        await self._current.connected()

    async def aclose(self) -> None:
        """Cancel what was created here, close all connections. Idempotent."""
        await asyncio.gather(*(runner.aclose() for runner in self._all()))

    def _all(self) -> list[Runner]:
        return [self._current, *self._leaving]

    def _make(self, delay: float = 0.0) -> Runner:
        return Runner(self._config, self._changed, self, delay=delay)

    # -- from the runners --

    def sent_away(self, runner: Runner, *, was_of_use: bool) -> None:
        """Send new work to a new connection, made when there is some; the streams of this one stay on it."""
        if runner is not self._current:
            return
        delay = 0.0
        if was_of_use:
            self._backoff.reset()
        else:
            delay = self._backoff.next_delay(self._rng)
        self._leaving.append(runner)
        self._current = self._make(delay)
        self._changed()

    def returned(self, reader: Reader) -> None:
        """Ask the next gateway for a request that one which goes has not taken."""
        error: HoldfastError
        if self._backoff.failures > self._config.max_retries:
            self._backoff.reset()
            error = Draining("the gateway sends its clients away")
        else:
            try:
                self._current.start(reader)
            except HoldfastError as exc:
                error = exc
            else:
                return
        reader.fail(error)

    def _changed(self) -> None:
        self._leaving = [runner for runner in self._leaving if runner.state is not ConnectionState.DISCONNECTED]
        state = self.state
        if state is not self._told:
            self._told = state
            self._on_state(state)
