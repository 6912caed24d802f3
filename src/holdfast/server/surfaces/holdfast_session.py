"""The WebSocket surface of the session protocol (PROTOCOL.md), and of clients that send a bare payload.

It drives `ServerSession`, has streams looked up and started, and leaves their delivery to the outlet.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from holdfast.core.entries import Owner, Position, error_body
from holdfast.core.frameless import without_frames
from holdfast.core.log import Cursor
from holdfast.core.session import messages as m
from holdfast.core.session import server as core
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.dialects.dialect import Dialect
from holdfast.errors import Draining, HoldfastError, SessionSuperseded
from holdfast.generation.launcher import Started, Terms
from holdfast.observe.events import Caller
from holdfast.server.delivery.client_socket import ClientSocket
from holdfast.server.handshakes import Handshake, refuse_without_upgrade
from holdfast.server.listener.turns import BACKLOG
from holdfast.server.router import Route
from holdfast.server.services import Services, Surface
from holdfast.streams.store import Done
from holdfast.streams.stream import Stream
from holdfast.version import __version__

_T = TypeVar("_T")


class Sessions:
    """The surface: what every session shares. `dialect` is the API that requests are in, also bare payloads."""

    subprotocols = (m.SUBPROTOCOL,)

    def __init__(self, services: Services, dialect: Dialect) -> None:
        self.services = services
        self.dialect = dialect
        #: The connection of each session. A session is one client's, so `holder` compares the owners.
        self.by_token: dict[str, SessionProtocol] = {}

    def routes(self, path: str) -> Iterable[Route]:
        """Make the route of a path where clients open sessions."""
        yield Route(
            re.compile(re.escape(path)), {"GET": refuse_without_upgrade}, socket=self, dialect=self.dialect
        )

    def open(self, handshake: Handshake) -> SessionProtocol:
        return SessionProtocol(handshake, self)

    def holder(self, token: str | None, owner: Owner) -> SessionProtocol | None:
        """Return the connection that has this session, None also for a session of another owner."""
        held = None if token is None else self.by_token.get(token)
        return held if held is not None and held.principal.owner == owner else None


class SessionProtocol(ClientSocket):
    """One client conversation."""

    __slots__ = ("_retained", "_sessions", "protocol", "token")

    def __init__(self, handshake: Handshake, sessions: Sessions) -> None:
        services = sessions.services
        self._sessions = sessions
        self.protocol = core.ServerSession(
            negotiated=handshake.subprotocol is not None, max_streams=services.limits.max_streams
        )
        self.token: str | None = None
        # Streams that this client created or has resumed: its acknowledgement of their end shortens their
        # retention.
        self._retained: set[str] | None = None
        super().__init__(handshake, services, control=self.protocol, framing=SESSION_FRAMING)
        self.messages = self.protocol

    @property
    def short_token(self) -> str | None:
        """As much of the session's token as tells sessions apart in a log."""
        return None if self.token is None else self.token[:8]

    # -- from the client --

    def text_received(self, text: str) -> None:
        self._received(self.protocol.receive_text(text))

    def binary_received(self, data: bytes) -> None:
        self._received(self.protocol.receive_binary())

    def _received(self, event: core.Event | None) -> None:
        self._handle(event)
        if event is None and self.protocol.is_holding:
            self.count_waiting()
            if self.protocol.must_pause:
                self.pause(BACKLOG)

    def _handle(self, event: core.Event | None) -> None:
        match event:
            case core.CursorsMoved():
                self._cursors_moved(event)
            case core.CreateReceived():
                self.begin()
                self._create(event)
            case core.HelloReceived():
                self.begin()
                self._welcome(event)
            case core.AttachReceived():
                self._attach(event.resume)
            case core.DetachReceived():
                self._detach(event.cursor)
            case core.CancelReceived():
                self._cancel(event)
            case core.CloseRequired():
                self.finish(event)
                return
            case None:
                pass
        self.outlet.mark()

    def _look_up(self, begin: Callable[[Done[_T]], None], then: Callable[[_T], None]) -> None:
        """Have something looked up. Where the answer comes later, further messages of the client wait for it."""
        is_answered = is_late = False

        def done(answer: _T) -> None:
            nonlocal is_answered
            is_answered = True
            then(answer)
            if is_late:
                self._answered_late()

        begin(done)
        if not is_answered:
            is_late = True
            self.protocol.hold()

    def _answered_late(self) -> None:
        """Take the messages that have waited for an answer, up to one that has to wait as well."""
        for event in self.protocol.resume():
            self._handle(event)
        self.count_waiting()
        if not self.protocol.must_pause:
            self.resume(BACKLOG)
        self.outlet.mark()

    @property
    def is_gone(self) -> bool:
        """Whether nobody is left to be answered: a lookup may outlast its connection."""
        return self.protocol.state is core.State.CLOSED

    def _create(self, event: core.CreateReceived) -> None:
        if self.protocol.state is core.State.BARE:
            # Without hello a client gets one entry per message, and what is written counts as consumed.
            self.outlet.message_bytes = 1
            self.outlet.consumes = True
        terms = Terms(
            detach_grace=self.services.limits.detach_grace,
            request_id=event.request_id,
            stream=True,
            connection=self.number,
            session=self.short_token,
        )
        create = partial(
            self.services.launcher.create,
            self.principal,
            self._sessions.dialect,
            event.request,
            terms,
            found=event.members,
        )
        self._look_up(create, partial(self._created, event))

    def _created(self, event: core.CreateReceived, result: Started | HoldfastError) -> None:
        if isinstance(result, HoldfastError):
            # Not raised: a frame that knows what it raised is a cycle, and would keep the request.
            self.protocol.send_error(result, request_id=event.request_id)
            return
        try:
            stream = result.stream
            older = self.protocol.cursors.get(stream.id)
            cursor = self.read_created(stream, credit=event.credit, replaces=older)
        except HoldfastError as exc:
            self.protocol.send_error(exc, request_id=event.request_id)
            return
        if self.is_gone:
            return
        self.protocol.attach(stream.id, cursor)
        self._retain(stream)
        self.protocol.send(
            m.Accepted(
                stream.origin.request_id,
                stream.id,
                epoch=stream.log.epoch,
                duplicate=result.is_duplicate,
                queue_position=stream.queue_position,
            )
        )

    def _welcome(self, hello: core.HelloReceived) -> None:
        owner = self.principal.owner
        older = self._sessions.holder(hello.session, owner)
        if older is not None:
            older.supersede()
        token = hello.session if older is not None and hello.session else secrets.token_urlsafe(24)
        self.token = token
        self._sessions.by_token[token] = self
        wanted = [resume.stream for resume in hello.streams]
        welcomed = partial(self._welcomed, hello, token, was_known=older is not None)
        self._look_up(partial(self.services.directory.open, owner, wanted), welcomed)

    def _welcomed(
        self, hello: core.HelloReceived, token: str, found: list[Stream | HoldfastError], *, was_known: bool
    ) -> None:
        if self.is_gone:
            return
        limits, window = self.services.limits, self.services.peers.window
        streams = [self._resume(resume, result) for resume, result in zip(hello.streams, found, strict=True)]
        if window is not None and not self.outlet.streams:
            # What the client wants it may find elsewhere; refusals in a welcome would be this process's last word.
            self.end(Draining(retry_after=1.0))
            return
        self.protocol.send(
            m.Welcome(
                version=m.VERSION,
                session=token,
                server=f"holdfast/{__version__}",
                heartbeat=m.Heartbeat(
                    round(limits.liveness.interval * 1000), round(limits.liveness.timeout * 1000)
                ),
                limits=m.Limits(limits.max_message, limits.max_streams, limits.log_bytes),
                resumed=was_known or any(state.status != "refused" for state in streams),
                streams=streams,
            )
        )
        if window is not None:
            self.protocol.send(self._goaway(window))

    def _resume(self, resume: m.Resume, found: Stream | HoldfastError) -> m.StreamState:
        opened = self._open_cursor(resume, found)
        if isinstance(opened, HoldfastError):
            return m.StreamState(resume.stream, "refused", error=error_body(opened))
        stream, cursor = opened
        self._retain(stream)
        return m.StreamState(stream.id, stream.status, epoch=stream.log.epoch, next=cursor.position)

    def _attach(self, resume: m.Resume) -> None:
        find = partial(self.services.directory.open, self.principal.owner, [resume.stream])
        self._look_up(find, partial(self._attached, resume))

    def _attached(self, resume: m.Resume, found: list[Stream | HoldfastError]) -> None:
        if self.is_gone:
            return
        opened = self._open_cursor(resume, found[0])
        if isinstance(opened, HoldfastError):
            self.protocol.send_error(opened, stream=resume.stream)
            return
        stream, cursor = opened
        self.protocol.send(m.Attached(stream.id, stream.status, epoch=stream.log.epoch, next=cursor.position))

    def _open_cursor(
        self, resume: m.Resume, found: Stream | HoldfastError
    ) -> tuple[Stream, Cursor] | HoldfastError:
        """Read a stream that was looked up. What refuses that is returned.

        Not raised: a frame that knows what it raised is a cycle, and a hello may name a thousand unknown streams.
        """
        older = self.protocol.cursors.get(resume.stream)
        try:
            if isinstance(found, HoldfastError):
                self.check_room(older)
                return found
            position = Position(resume.after, resume.epoch)
            cursor = self.read(found, position, credit=resume.credit, replaces=older)
            self.protocol.attach(resume.stream, cursor)
        except HoldfastError as exc:
            return without_frames(exc)
        return self.outlet.streams[cursor], cursor

    def _detach(self, cursor: Cursor) -> None:
        if self.looks_on(self.outlet.streams[cursor]):
            self.outlet.release(cursor)  # an onlooker's leaving lets nothing run on
        else:
            self.outlet.detach(cursor)

    def _retain(self, stream: Stream) -> None:
        if self.looks_on(stream):
            return  # who looks at the streams of others does not decide how long these are kept
        if self._retained is None:
            self._retained = set()
        self._retained.add(stream.id)

    def _cancel(self, event: core.CancelReceived) -> None:
        directory, owner = self.services.directory, self.principal.owner
        if event.stream is not None:
            find = partial(directory.open, owner, [event.stream])
            self._look_up(find, partial(self._cancel_found, event.stream))
        elif event.request_id is not None:
            self._look_up(partial(directory.find_request, owner, event.request_id), _cancel)

    def _cancel_found(self, stream_id: str, found: list[Stream | HoldfastError]) -> None:
        for result in found:
            if isinstance(result, HoldfastError):
                self.protocol.send_error(result, stream=stream_id)
            else:
                result.cancel()

    def _cursors_moved(self, event: core.CursorsMoved) -> None:
        for cursor in event.cursors:
            self.outlet.advanced(cursor)
        retained = self._retained
        for stream_id in event.ended:
            if retained is not None and stream_id in retained:
                retained.discard(stream_id)
                self.services.directory.acknowledged(self.principal.owner, stream_id)

    # -- to the client --

    def position_changed(self, stream: Stream) -> None:
        retrying = stream.retrying
        if stream.queue_position is not None:
            self.protocol.send(m.Queued(stream.id, stream.queue_position))
        elif retrying is not None:
            delay_ms = round(retrying.delay * 1000)
            self.protocol.send(
                m.Queued(stream.id, 0, attempt=retrying.attempt, delay_ms=delay_ms, code=retrying.code)
            )

    def epoch_changed(self, stream: Stream) -> None:
        self.protocol.send(m.Epoch(stream.id, stream.log.epoch))

    def end_written(self, stream: Stream) -> None:
        self.protocol.retire(stream.id)

    def forgotten(self, stream: Stream, error: HoldfastError) -> None:
        self.protocol.forget(stream.id, error)

    # -- the end --

    def drain(self, window: float) -> None:
        """Tell the client that this process goes; one that has yet to say hello is told then."""
        if self.protocol.state in (core.State.OPEN, core.State.BARE):
            self.protocol.send(self._goaway(window))
            self.outlet.mark()

    def _goaway(self, window: float) -> m.Goaway:
        # Where logs are in this process's memory alone, nobody else could go on with them.
        streams: m.StreamsOnGoaway = "move" if self.services.directory.is_shared else "stay"
        return m.Goaway("drain", (0, round(window * 1000)), streams)

    @property
    def has_said_all(self) -> bool:
        protocol = self.protocol
        return not (protocol.waiting or protocol.is_holding or protocol.state is core.State.NEW)

    def supersede(self) -> None:
        """The same client is back on another connection: this one is of no further use."""
        self.end(SessionSuperseded())
        self.leave_streams()

    def end(self, error: HoldfastError) -> None:
        self.finish(self.protocol.fail(error))

    def finish(self, close: core.CloseRequired) -> None:
        """Send what control messages are due, then close."""
        if self.transport is not None and not self.codec.is_closing:
            for message in self.protocol.data_to_send():
                self.codec.send_text(message)
        self.close(close.code, close.reason)

    @property
    def caller(self) -> Caller:
        return Caller(self.principal.tenant, self.principal.key_id, self.number, self.short_token)

    def leave_streams(self) -> None:
        by_token = self._sessions.by_token
        if self.token is not None and by_token.get(self.token) is self:
            del by_token[self.token]
        self.protocol.connection_lost()
        super().leave_streams()


def _cancel(stream: Stream | HoldfastError | None) -> None:
    # An unknown request id was refused or has long ended: its answer told, or will tell.
    if isinstance(stream, Stream):
        stream.cancel()


def sessions(path: str, dialect: Dialect) -> Surface:
    """Make the surface of sessions on a path."""
    return lambda services: Sessions(services, dialect).routes(path)
