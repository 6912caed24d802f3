"""The HTTP/1.1 side of the listener: one connection, bounded in time, size and turns of the loop.

A request's head decides about it: who is unknown, or asks for what there is not, is refused before a byte of the
body is kept. Requests are answered one after the other, as the socket takes the answers. What the paths mean is
`holdfast.server.router`'s matter; a connection that upgrades is given away and this object forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Set
from contextlib import suppress

import msgspec

from holdfast.admission.jwks import KeysPending
from holdfast.admission.keys import REVOKED, SecretId
from holdfast.core.http.request import Headers
from holdfast.core.limits.budget import Budget, Kind
from holdfast.errors import HoldfastError, InternalError, InvalidRequest, Unauthorized
from holdfast.server.listener.admitted import KEYS_TIMEOUT, Admitted, Limits
from holdfast.server.listener.application import Application
from holdfast.server.listener.charge import Charge, HeadCharge
from holdfast.server.listener.exchange import Exchange, Request, error_response, response_head
from holdfast.server.listener.requests import Body, End, Event, Head, Refused, RequestParser, Upgrade
from holdfast.server.listener.turns import BACKLOG, KEYS, LARGE, OWING, TURN_OVER, FairProtocol, Turns
from holdfast.timers import Deadline, Timers

logger = logging.getLogger("holdfast")

#: Bytes behind the request that is being answered (pipelining), past which the socket is not read. Below that it
#: is: a client that leaves must be noticed.
MAX_BACKLOG = 16 * 1024
#: After a refusal this much of the body is still read and dropped, so that the client sees the answer.
_MAX_DISCARD = 64 * 1024 * 1024
_DISCARD_TIMEOUT = 10.0


# What a connection does next, how that shows, and what moves it:
#
#   state     | shows as                              | moved by                                       | to
#   ----------+---------------------------------------+------------------------------------------------+----------
#   HEAD      | none of what follows                  | a whole head                                   | JUDGING
#   JUDGING   | `_head` is set, `_admitted` is not    | the application                                | BODY
#   BODY      | `_admitted` is set                    | the end of the request                         | ANSWERING
#   ANSWERING | `_exchange` is set                    | the end of the answer                          | HEAD
#   REFUSED   | `_discarding`, or `_deferred` until   | from all of them: a request that cannot be     | -
#             | the answers before it are written     | read on, or a refusal before its body has come |
#   GIVEN     | `_parser` is None, `transport` too    | from HEAD: an upgrade                          | -
#
# Nothing is parsed in JUDGING and ANSWERING, nor while the socket takes no answers: it waits in `_rest`.


class HttpConnection(FairProtocol):
    """One client connection speaking HTTP/1.1 (or 1.0), with keep-alive and pipelining."""

    __slots__ = (
        "_admitted",
        "_app",
        "_body",
        "_charge",
        "_deferred",
        "_discarded",
        "_discarding",
        "_events",
        "_exchange",
        "_head",
        "_held",
        "_is_head_timed",
        "_limits",
        "_parser",
        "_rest",
        "_strangers",
        "_task",
        "_timer",
        "_timers",
        "is_limited",
        "number",
        "refused",
    )

    def __init__(self, app: Application, timers: Timers, turns: Turns, budget: Budget, limits: Limits) -> None:
        super().__init__(turns, budget.strangers)
        self._app = app
        self._timers = timers
        self._limits = limits
        self._strangers = budget.strangers
        self._parser: RequestParser | None = RequestParser()
        self._events: deque[Event] = deque()
        # What has come and is not parsed yet.
        self._rest = b""
        # The head of the request that is being received.
        self._head: Head | None = None
        self._admitted: Admitted | None = None
        self._body: bytes | bytearray = b""
        self._charge: Charge | None = None
        self._held = HeadCharge()
        self._discarding = False
        self._discarded = 0
        # A refusal that waits for the answers before it.
        self._deferred: tuple[int, Headers, bytes] | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: Deadline | None = None
        self._is_head_timed = False
        #: Connection number, for log lines. The application gives it.
        self.number = 0
        #: How many credentials in a row were refused.
        self.refused = 0
        #: Whether it has one of the slots for probes: one request, soon, of what anyone may ask.
        self.is_limited = False

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        old, self.transport = self.transport, transport  # type: ignore[assignment]
        refusal = self.accept() if old is None else None  # else it was accepted before its TLS handshake
        if refusal is not None and not transport.is_closing():
            self._refuse(refusal.http_status, refusal)

    def accept(self) -> HoldfastError | None:
        """Count the connection, and let the time of its first head begin. An error refuses it."""
        if (refusal := self._app.connection_made(self)) is None:
            self._set_timer(self._limits.first_head(is_limited=self.is_limited), self._head_timed_out)
        return refusal

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.transport = None
        self._forget_input()
        self.free_output()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.disconnected()
        self._app.connection_lost(self)

    def _forget_input(self) -> None:
        self.turns.leave(self)
        self._close_parser()
        self._events.clear()
        self._rest = b""
        self._head = self._admitted = None
        self._body = b""
        if self._charge is not None:
            self._charge.free()
            self._charge = None
        self._held.free()

    def _close_parser(self) -> None:
        parser, self._parser = self._parser, None
        if parser is not None:
            parser.close()

    def resume_writing(self) -> None:
        super().resume_writing()
        exchange = self._exchange
        if exchange is not None and exchange.on_writable is not None:
            exchange.on_writable()

    def eof_received(self) -> bool:
        # A client that closes its sending side counts as gone: proxies cut both directions too.
        return False

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            self._discarded += len(data)
            if self._discarded > _MAX_DISCARD:
                self.abort()
        elif self._parser is not None:
            self._rest = self._rest + data if self._rest else data
        self.turns.received(self, len(data))

    # -- what has come, in turns --

    @property
    def can_go_on(self) -> bool:
        if self._exchange is not None or not self.is_writable or self._parser is None or self._pauses & OWING:
            return False
        if self._head is not None and self._admitted is None:
            return False
        return bool(self._events) or bool(self._rest)

    def take(self, until: float) -> bool:
        clock = self.turns.clock
        while self.can_go_on:
            if self._charge is not None and self._charge.size >= LARGE and self.turns.repay(self):
                break
            try:
                if self._events:
                    self._handle(self._events.popleft())
                else:
                    self._parse()
            except Exception:
                # The supervisor of one connection.
                logger.exception("a request could not be taken")
                self._refuse(500, InternalError())
            if clock() >= until:
                break
        self.count_waiting()
        return self.can_go_on

    def _parse(self) -> None:
        """Parse the next part of what has come. Raises `InternalError`."""
        parser, rest = self._parser, self._rest
        if parser is None:
            return
        step = parser.step
        self._rest = rest[step:]
        events = parser.receive_data(rest[:step] if len(rest) > step else rest)
        self._events += events
        for event in events:
            if type(event) is Head:
                self._held.heads += event.size
        if not (self._is_head_timed or parser.is_in_body or parser.is_between or self._events):
            self._is_head_timed = True
            self._set_timer(self._limits.header_timeout, self._head_timed_out)

    def count_waiting(self) -> None:
        """Charge what waits, and read no further while that is much."""
        parser = self._parser
        error = self._held.count(self.account, len(self._rest) + (0 if parser is None else parser.size))
        if error is not None:
            self._refuse(error.http_status, error)
        if len(self._rest) > MAX_BACKLOG:
            self.pause(BACKLOG)
        else:
            self.resume(BACKLOG)

    def _handle(self, event: Event) -> None:
        if type(event) is Head:
            self._stop_timer()
            self._is_head_timed = False
            self._head = event
            self._held.current = event.size
            self._judge(event)
        elif type(event) is Body:
            self._take_body(event.data)
        elif type(event) is End:
            self._start()
        elif type(event) is Upgrade:
            self._stop_timer()
            self._close_parser()
            rest, self._rest = event.rest + self._rest, b""
            self._held.heads += event.size + len(rest)  # until the connection is given away
            self._app.upgrade(event.request, self, rest)
        elif type(event) is Refused:
            self._refuse(event.status, event.error, event.path)

    def _judge(self, head: Head) -> None:
        try:
            admitted = self._app.admit(head.request)
        except KeysPending as pending:
            self.pause(KEYS)
            self._task = asyncio.create_task(self._judge_later(head, pending), name="http credential")
        else:
            self._judged(head, admitted)

    async def _judge_later(self, head: Head, pending: KeysPending) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(KEYS_TIMEOUT):
                await pending.wait()
        if self._head is not head:
            return  # the client has left
        self._task = None
        try:
            self._judged(head, self._app.admit(head.request, may_wait=False))
        except Exception:
            logger.exception("%s %r failed", head.request.method, head.request.path)
            self._refuse(500, InternalError(), head.request.path)
        self.resume(KEYS)

    def _judged(self, head: Head, admitted: Admitted) -> None:
        """Refuse a request by its head, or take its body."""
        self._admitted = admitted
        self.account = admitted.account or self._strangers
        self._app.judged(self, admitted)
        if not head.has_body:
            return
        refusal = admitted.refusal
        if refusal is None and (head.length or 0) > self._limits.body_of(admitted):
            refusal = self._limits.too_large(admitted)
        if refusal is not None:
            self._refuse_admitted(admitted, refusal)
            return
        if head.expects_continue:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._charge = Charge(self.account, Kind.BODIES)
        self._set_timer(self._limits.body_timeout, self._body_timed_out)

    def _take_body(self, data: bytes) -> None:
        admitted, charge = self._admitted, self._charge
        if admitted is None or charge is None:
            return
        if charge.size + len(data) > self._limits.body_of(admitted):
            self._refuse_admitted(admitted, self._limits.too_large(admitted))
        elif not charge.grow(len(data)):
            self._refuse_admitted(admitted, charge.account.refusal(len(data)))
        elif not self._body:
            self._body = data
        else:
            # Grown in place: a list of the smallest pieces would take many times their size.
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += data

    # -- requests --

    def _start(self) -> None:
        head, admitted, charge, body = self._head, self._admitted, self._charge, self._body
        if head is None or admitted is None:
            return
        self._head, self._admitted, self._charge, self._body = None, None, None, b""
        self._stop_timer()
        request = msgspec.structs.replace(head.request, body=bytes(body)) if body else head.request
        keep_alive = head.keep_alive and not (self._app.is_draining or self.is_limited or admitted.closes)
        exchange = Exchange(self, request, shape=admitted.shape, keep_alive=keep_alive, body=charge)
        self._exchange = exchange
        exchange.headers, exchange.secret = admitted.headers, admitted.secret
        if admitted.refusal is not None or admitted.answer is None:
            exchange.body_used()
            exchange.refuse(admitted.refusal or InternalError())
            return
        if len(body) >= LARGE:
            self.turns.read_later(len(body))
        self._task = asyncio.create_task(self._run(admitted.answer, request, exchange), name="http request")

    async def _run(
        self, answer: Callable[[Request, Exchange], Awaitable[None]], request: Request, exchange: Exchange
    ) -> None:
        try:
            await answer(request, exchange)
        except HoldfastError as exc:
            self._fail(exchange, exc)
        except Exception:
            # The path may hold line breaks, which must not look like lines of the log.
            logger.exception("%s %r failed", request.method, request.path)
            self._fail(exchange, InternalError())
        finally:
            exchange.body_used()

    def _fail(self, exchange: Exchange, error: HoldfastError) -> None:
        exchange.abort() if exchange.is_started else exchange.refuse(error)

    def exchange_finished(self, *, keep_alive: bool) -> None:
        """Serve the next request, wait for one, or close, now that the answer is complete."""
        self._exchange = None
        self._task = None
        self._held.answered()
        if self.transport is None:
            return
        is_draining = self._app.is_draining
        if not keep_alive:
            self._close()
        elif self._deferred is not None:
            self.refuse(*self._deferred)
        elif is_draining and not any(type(event) is End for event in self._events):
            self._close()
        else:
            self._set_timer(self._limits.keep_alive_timeout, self._head_timed_out)
            if self.can_go_on:
                self.turns.enter(self)
            elif self._held.is_charged:
                self.count_waiting()
        if is_draining:
            self._app.answer_finished(self)

    # -- refusals and closing --

    def _refuse_admitted(self, admitted: Admitted, error: HoldfastError, *, status: int | None = None) -> None:
        status, headers, body = error_response(error, admitted.shape, status=status)
        self.refuse(status, [*headers, *admitted.headers], body)

    def _refuse(self, status: int, error: HoldfastError, path: str | None = None) -> None:
        self.refuse(*error_response(error, self._app.shape_of(path), status=status))

    def refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer without an exchange, and close. Input is dropped for a while, until the client has seen it."""
        self._forget_input()
        if self.transport is None or self._discarding:
            return
        if self._exchange is not None:  # first comes the answer that was asked for before
            self._deferred = (status, headers, body)
            return
        headers = [*headers, (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        self.write(response_head(status, headers) + body)
        self._discarding = True
        for reason in (TURN_OVER, BACKLOG, KEYS, OWING):  # there is nothing left that would wait for them
            self.resume(reason)
        self._set_timer(_DISCARD_TIMEOUT, self.abort)
        self.write_eof()

    def _head_timed_out(self) -> None:
        if self.is_paused:  # what is not read cannot come, and what is not taken cannot be followed
            self._set_timer(self._limits.header_timeout, self._head_timed_out)
        elif self._parser is None or self._parser.is_between:
            self._close()
        else:
            self._refuse(408, InvalidRequest("the request head did not arrive in time"))

    def _body_timed_out(self) -> None:
        error = InvalidRequest("the request body did not arrive in time")
        if self._pauses & OWING:  # what is not read cannot come
            self._set_timer(self._limits.body_timeout, self._body_timed_out)
        elif self._admitted is not None:
            self._refuse_admitted(self._admitted, error, status=408)

    def _close(self) -> None:
        self._stop_timer()
        self._forget_input()
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        self._stop_timer()
        super().abort()

    # -- for the set of open peers --

    is_conversation = False
    stream_count = 0

    @property
    def is_busy(self) -> bool:
        """Whether an answer is under way."""
        return self._exchange is not None

    @property
    def is_idle(self) -> bool:
        return self._exchange is None and self._head is None and not self._rest

    def drain(self, window: float) -> None:
        """Close behind the answer that is under way, or now. HTTP cannot tell a client to leave later."""
        self.close_when_idle()

    def revoke(self, removed: Set[SecretId]) -> None:
        """End the answer that is under way, or refuse the request, if it came with one of these secrets."""
        admitted, exchange = self._admitted, self._exchange
        if admitted is not None and admitted.secret in removed:
            admitted.refusal = Unauthorized(REVOKED)
        if exchange is not None and exchange.secret in removed:
            exchange.revoke(Unauthorized(REVOKED))

    def close_when_idle(self) -> None:
        """Close, unless an answer is under way: then the connection closes behind it."""
        if self._exchange is None:
            self._close()

    def say_goodbye(self) -> None:
        """Do nothing: HTTP has no message for it."""

    def give_away(self) -> asyncio.Transport | None:
        """Hand over the transport; None if the connection is lost. Do not use this object afterwards.

        So it is if it was refused meanwhile, for what it holds while its handshake waits.
        """
        if self._discarding:
            return None
        self._stop_timer()
        self._forget_input()
        self.free_output()
        transport, self.transport = self.transport, None
        if transport is None or transport.is_closing():
            return None  # whoever takes it would never be told that it is lost: TLS has told this object, or will
        if self._pauses:
            transport.resume_reading()
        return transport

    def _set_timer(self, delay: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self._timers.after(delay, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
