"""`/v1/streams/{id}`: reads a stream of any surface from any position, and cancels it (PROTOCOL.md, section 9)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial

from holdfast.admission.principal import Principal
from holdfast.core.entries import START, EndBody, Position, encode_end
from holdfast.core.sse import write_entries, write_event
from holdfast.errors import HoldfastError, InvalidRequest
from holdfast.server.delivery.sse import HEADERS as SSE_HEADERS
from holdfast.server.delivery.sse import stream_header
from holdfast.server.delivery.waiter import Waiter
from holdfast.server.listener.exchange import JSON_HEADERS, Exchange, Request, respond_json
from holdfast.server.router import Route
from holdfast.server.services import Services
from holdfast.streams.store import answer_of
from holdfast.streams.stream import Stream

#: Bounds of `?timeout=` of a long poll, and its default, in seconds.
MAX_POLL = 60.0
DEFAULT_POLL = 25.0
#: About how many bytes of entries one JSON answer carries.
READ_BYTES = 1024 * 1024

_CURSOR = re.compile(r"(?:([0-9]{1,10})-)?(-1|[0-9]{1,16})")


class StreamsFraming:
    """The SSE form of a stream: the end entry comes as `event: end`.

    It knows no error but in the end of the stream: a reader who may not read on is cut off, and who comes back is
    refused with the reason.
    """

    __slots__ = ()
    starts_at_once = True

    def entry(self, stream: bytes, epoch: int, seq: int, payload: bytes) -> bytes:
        return write_entries(epoch, seq, (payload,))

    def entries(self, stream: bytes, epoch: int, first: int, payloads: Sequence[bytes]) -> bytes:
        return write_entries(epoch, first, payloads)

    def end(self, stream: bytes, epoch: int, seq: int, payload: bytes, end: EndBody) -> bytes:
        return write_event(payload, id=b"%d-%d" % (epoch, seq), event=b"end")

    def failure(self, error: HoldfastError) -> bytes | None:
        return None


STREAMS_FRAMING = StreamsFraming()


class Streams:
    """Serves streams by their ids."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> Iterable[Route]:
        yield Route(re.compile(r"/v1/streams/([^/]+)"), {"GET": self._read, "DELETE": self._cancel})

    async def _open(self, principal: Principal, stream_id: str) -> Stream:
        """Raises `UnknownStream`, the same for an absent and a foreign one."""
        found: Stream | HoldfastError
        (found,) = await answer_of(partial(self._services.directory.open, principal.owner, [stream_id]))
        if isinstance(found, HoldfastError):
            raise found
        return found

    async def _read(self, request: Request, exchange: Exchange, principal: Principal, stream_id: str) -> None:
        stream = await self._open(principal, stream_id)
        position = _position_of(request)
        live = request.query.get("live", "sse")
        timeout = _poll_timeout(request)
        stream.log.check(position)
        has_all = position.seq == stream.log.next - 1
        is_onlooker = principal.owner.looks_on(stream.origin.owner)
        if live == "sse":
            if stream.is_ended and has_all:
                # An EventSource reconnects after every end, and stops only at 204 (HTML section 9.2.3).
                exchange.respond(204, [])
            elif request.method == "HEAD":
                exchange.start(200, [*SSE_HEADERS, stream_header(stream)])
                exchange.end()
            else:
                exchange.hold(self._services.connect(principal.tenant, principal.key_id))
                self._services.sse.send(
                    stream, exchange, STREAMS_FRAMING, position=position, is_onlooker=is_onlooker
                )
        elif live in ("none", "long-poll"):
            payloads = stream.log.slice(position.seq + 1, READ_BYTES) if not has_all else []
            if live == "long-poll" and has_all and not stream.is_ended:
                exchange.hold(self._services.connect(principal.tenant, principal.key_id))
                waiter = Waiter(stream, exchange, position, is_onlooker=is_onlooker)
                await waiter.wait(timeout, max_bytes=READ_BYTES)
                payloads = waiter.read()
            if not exchange.is_complete:
                _respond_entries(stream, exchange, position.seq + 1, payloads)
        else:
            raise InvalidRequest("`live` must be `sse`, `long-poll` or `none`", param="live")

    async def _cancel(self, request: Request, exchange: Exchange, principal: Principal, stream_id: str) -> None:
        stream = await self._open(principal, stream_id)
        stream.cancel()
        end = stream.end
        respond_json(exchange, {"stream": stream.id, "status": None if end is None else end.status})


def _respond_entries(stream: Stream, exchange: Exchange, start: int, payloads: list[bytes]) -> None:
    log = stream.log
    stop = start + len(payloads)
    end = log.end if stop == log.next else None
    if end is not None and payloads:
        payloads.pop()
    entries = b",".join(b'{"seq":%d,"data":%b}' % (seq, payload) for seq, payload in enumerate(payloads, start))
    status = "running" if end is None else end.status
    exchange.respond(
        200,
        JSON_HEADERS,
        b'{"stream":"%b","status":"%b","epoch":%d,"next":%d,"entries":[%b],"end":%b}'
        % (log.stream, status.encode(), log.epoch, stop, entries, b"null" if end is None else encode_end(end)),
    )


def _position_of(request: Request) -> Position:
    """The reader's position: `Last-Event-ID` first, since an EventSource keeps its URL when it comes back."""
    name, value = "last-event-id", request.header(b"last-event-id")
    if not value:
        name, value = "after", request.query.get("after")
    if not value:
        return START
    match = _CURSOR.fullmatch(value)
    if match is None:
        raise InvalidRequest(f"`{name}` must be a sequence number, or `<epoch>-<number>`", param=name)
    return Position(int(match[2]), int(match[1]) if match[1] else None)


def _poll_timeout(request: Request) -> float:
    value = request.query.get("timeout")
    if value is None:
        return DEFAULT_POLL
    try:
        timeout = float(value)
    except ValueError:
        timeout = -1.0
    if not 0 <= timeout <= MAX_POLL:
        raise InvalidRequest(f"`timeout` must be 0 to {MAX_POLL:g} seconds", param="timeout")
    return timeout


def streams(services: Services) -> Iterable[Route]:
    """The surface of streams by their ids."""
    return Streams(services).routes()
