"""The load of one worker: what its readers share, and how they are opened, restarted and closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

import msgspec

from holdfast_tools.bench.answer import Answer, Script
from holdfast_tools.bench.countdown import Countdown
from holdfast_tools.bench.plan import Plan
from holdfast_tools.bench.tally import Tally
from holdfast_tools.simulate.request import STEERING

#: Connections of one worker that are being made at a time.
_OPENING = 64
#: Seconds until an answer that failed is asked for again.
_AGAIN = 1.0
#: Seconds that a connection may take.
_CONNECT_TIMEOUT = 10.0
#: Seconds that cancelling an answer by a request of its own may take.
_CANCEL_TIMEOUT = 5.0


@dataclass(frozen=True)
class Target:
    """Where a base URL leads. Raises ValueError where it is none."""

    host: str
    port: int
    authority: str
    path: str
    is_tls: bool

    @classmethod
    def of(cls, url: str) -> Target:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no base URL; one is http://127.0.0.1:8080/v1")
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        return cls(parts.hostname, port, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), is_tls)


class Connection(Protocol):
    """A protocol of asyncio, as far as opening it goes."""

    begun_ns: int

    def connection_made(self, transport: asyncio.BaseTransport, /) -> None: ...
    def connection_lost(self, exc: Exception | None, /) -> None: ...
    def data_received(self, data: bytes, /) -> None: ...


class Reader(Protocol):
    """Something that reads one answer after another, or several at a time, over connections of its own."""

    def start(self) -> None:
        """Ask for the first answers; they may come or fail later."""

    async def stop(self) -> None:
        """Make the gateway stop what still runs, and leave."""


class Resumable(Reader, Protocol):
    """A reader whose connection can be cut and made again, with the answers on it going on."""

    def cut(self) -> None:
        """Reset the connection, and expect to settle once for each answer that is to go on."""

    def come_back(self) -> None:
        """Make the connection again, and go on with each answer behind the last entry that has come."""


class Load:
    """What all readers of a worker share: the plan, the current window's tally, numbers and texts.

    `unsettled` counts the streams and idle sessions that have not begun yet, or not come back; `unended`, for a
    plan with `once`, the streams that have not ended.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.target = Target.of(plan.url)
        self.tally = Tally()
        self.is_stopping = False
        self.token = uuid.uuid4().hex[:12]
        self._loop = asyncio.get_running_loop()
        self._tls = ssl.create_default_context() if self.target.is_tls else None
        self._scripts: dict[int, Script] = {}
        self._numbers = plan.first
        self._opening = asyncio.Semaphore(_OPENING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened = 0
        self.unsettled = Countdown()
        self.unended = Countdown()

    # -- answers -------------------------------------------------------------------------------------------

    def new_answer(self) -> Answer:
        number, self._numbers = self._numbers, self._numbers + 1
        if self.plan.pace is None:
            return Answer(number, None)
        seed = number % self.plan.seeds
        script = self._scripts.get(seed)
        if script is None:
            script = self._scripts[seed] = Script(seed, self.plan.tokens)
        return Answer(number, script)

    def body(self, answer: Answer) -> bytes:
        """The request of an answer; the clock of its first token starts now."""
        plan = self.plan
        prompt = plan.prompt
        more: dict[str, object] = {}
        if plan.pace is None:
            more["max_tokens"] = plan.tokens
        else:
            seed = 0 if answer.script is None else answer.script.seed
            sim = {**msgspec.structs.asdict(plan.pace), "tokens": plan.tokens, "seed": seed}
            sim["ttft_ms"] += plan.spread_ms * self._phase(answer.number)
            if plan.steer_by == "prompt":
                prompt = STEERING + msgspec.json.encode(sim).decode()
            else:
                more["sim"] = sim
        message = {"role": "user", "content": prompt}
        request = {"model": plan.model, "stream": True, "messages": [message], **more}
        answer.begun_ns = time.monotonic_ns()
        return msgspec.json.encode(request)

    def _phase(self, number: int) -> float:
        """Return the part of `spread_ms` for an answer: those that follow each other are on different sockets."""
        streams = max(self.plan.streams, 1)
        sockets = self.plan.sockets or streams
        socket, place = divmod((number - self.plan.first) % streams, -(-streams // sockets))
        return (place * sockets + socket) / streams

    def request_id(self, answer: Answer) -> str:
        return f"{self.token}-{answer.number}"

    def goes_on(self) -> bool:
        """Take note that an answer has come to its end; return whether another one follows in its place."""
        self.unended.count()
        return not (self.is_stopping or self.plan.once)

    def fail(self, why: str) -> None:
        if not self.is_stopping:
            self.tally.fail(why)

    # -- connections ---------------------------------------------------------------------------------------

    def connect(self, connection: Connection, lost: Callable[[str], None], *, at_once: bool = False) -> None:
        """Open a connection and set its `begun_ns`; `lost` is told why if it cannot be made.

        Only some are opened at a time, and others wait, but for those that are opened `at_once`.
        """
        opening = contextlib.nullcontext() if at_once else self._opening
        task = self._loop.create_task(self._connect(connection, lost, opening))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(
        self,
        connection: Connection,
        lost: Callable[[str], None],
        opening: contextlib.AbstractAsyncContextManager[None],
    ) -> None:
        target, protocol = self.target, cast(asyncio.Protocol, connection)
        try:
            async with opening, asyncio.timeout(_CONNECT_TIMEOUT):
                connection.begun_ns = time.monotonic_ns()
                await self._loop.create_connection(
                    lambda: protocol, target.host, target.port, ssl=self._tls, local_addr=self._local_address()
                )
        except (OSError, TimeoutError) as exc:
            reason = f"no answer within {_CONNECT_TIMEOUT:g} s" if isinstance(exc, TimeoutError) else str(exc)
            lost(f"cannot connect to {target.host}:{target.port}: {reason}")

    def _local_address(self) -> tuple[str, int] | None:
        if not self.plan.addresses:
            return None
        self._opened += 1
        return f"127.0.0.{2 + self._opened % self.plan.addresses}", 0  # Linux answers for all of 127.0.0.0/8

    def again(self, start: Callable[[], None]) -> None:
        """Try once more what failed, after a while."""
        self._loop.call_later(_AGAIN, lambda: None if self.is_stopping else start())

    async def cancel(self, stream: str) -> None:
        """Make the gateway stop an answer that nobody is connected to."""
        target = self.target
        head = f"DELETE {target.path}/streams/{stream} HTTP/1.1\r\n".encode() + self.headers()
        try:
            async with asyncio.timeout(_CANCEL_TIMEOUT):
                reader, writer = await asyncio.open_connection(target.host, target.port, ssl=self._tls)
                writer.write(head + b"connection: close\r\n\r\n")
                await reader.read()
                writer.close()
        except (OSError, TimeoutError):
            pass  # a gateway that is gone has nothing to stop

    async def stop(self, readers: Sequence[Reader]) -> None:
        self.is_stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for some in _batches(readers, _OPENING):
            await asyncio.gather(*(reader.stop() for reader in some))

    def headers(self) -> bytes:
        """The plan's header lines, and the host."""
        lines = [f"host: {self.target.authority}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in self.plan.headers.items()]
        return "".join(lines).encode("latin-1")


def reset(transport: asyncio.Transport) -> None:
    """Close with a TCP reset (SO_LINGER of 0), as a NAT or a proxy does that has lost the connection."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _batches(readers: Sequence[Reader], size: int) -> Iterator[Sequence[Reader]]:
    return (readers[at : at + size] for at in range(0, len(readers), size))
