"""A client's WebSocket: drives `ServerSession`, looks streams up, and writes what its cursors may send."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence

import msgspec

from holdfast.admission.keys import REVOKED, SecretId
from holdfast.admission.principal import Principal
from holdfast.core.entries import Owner, Position, error_body
from holdfast.core.limits.rate_limit import Lease
from holdfast.core.log import Cursor
from holdfast.core.session import messages as m
from holdfast.core.session import server as core
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.core.websocket.connection import text_frame
from holdfast.dialects.chat import CHAT
from holdfast.errors import Draining, HelloTimeout, HoldfastError, SessionSuperseded, TooManyStreams, Unauthorized
from holdfast.generation.launcher import Launcher, Started, Terms
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.listener.websocket import Liveness, WebSocketProtocol
from holdfast.streams.directory import Directory
from holdfast.streams.stream import Stream
from holdfast.timers import Timers
from holdfast.version import __version__

logger = logging.getLogger("holdfast.connections")

#: About how many bytes one message and one write of a connection carry.
_MESSAGE_BYTES = 32 * 1024
_WRITE_BYTES = 128 * 1024
#: Writes of a turn, as long as the client takes them: one that takes nothing has no more than one of them waiting,
#: and one that takes all is served faster than providers are read, so that it does not fall behind.
_MAX_WRITES = 32
#: Control messages that may wait for a client that sends without reading.
_MAX_WAITING = 4096


class SessionLimits(msgspec.Struct, frozen=True):
    """Sizes in bytes, times in seconds."""

    max_message: int
    max_streams: int
    log_bytes: int
    hello_timeout: float
    detach_grace: float
    liveness: Liveness


class Sessions:
    """The open sessions of this process, by token; what every session shares."""

    def __init__(
        self, directory: Directory, launcher: Launcher, timers: Timers, flusher: Flusher, limits: SessionLimits
    ) -> None:
        self.directory = directory
        self.launcher = launcher
        self.timers = timers
        self.flusher = flusher
        self.limits = limits
        self.open: set[SessionProtocol] = set()
        self.by_token: dict[tuple[Owner, str], SessionProtocol] = {}
        #: What clients are told while this process goes, None before.
        self.goaway: m.Goaway | None = None

    def drain(self, goaway: m.Goaway) -> None:
        """Tell every client, also those that come from now on."""
        self.goaway = goaway
        for session in list(self.open):
            session.send_away(goaway)

    def close_idle(self) -> None:
        """Close the sessions on which nothing runs and nothing is left to be written."""
        for session in list(self.open):
            if session.is_idle:
                session.close(1012, "draining")

    def revoke(self, removed: set[SecretId]) -> None:
        """End the sessions that were opened with these secrets, or with tokens that were made with them."""
        for session in list(self.open):
            principal = session.principal
            if principal.key_id is not None and (principal.key_id, principal.generation) in removed:
                session.revoke()


class SessionProtocol(WebSocketProtocol):
    """One client conversation. Reads of the log happen in `flush`, once per turn of the loop."""

    __slots__ = (
        "_created",
        "_hello",
        "_is_marked",
        "_leases",
        "_moved",
        "_ready",
        "_sessions",
        "_streams",
        "number",
        "opened",
        "principal",
        "session",
        "token",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        sessions: Sessions,
        principal: Principal,
        *,
        negotiated: bool,
        leases: Sequence[Lease] = (),
    ) -> None:
        limits = sessions.limits
        self._sessions = sessions
        self.principal = principal
        self.session = core.ServerSession(negotiated=negotiated, max_streams=limits.max_streams)
        self.token: str | None = None
        #: Of its connection, for the log.
        self.number = 0
        self.opened = sessions.timers.now()
        self._streams: dict[Cursor, Stream] = {}
        # Cursors that may have something to send, in the order in which they became so.
        self._ready: dict[Cursor, None] = {}
        # Streams that this client created: its acknowledgement of their end shortens their retention.
        self._created: set[str] | None = None
        self._is_marked = False
        # What it holds of the connections of its key and tenant.
        self._leases = leases
        # Cursors whose streams have moved in the queue since the client was told.
        self._moved: dict[Cursor, None] = {}
        super().__init__(transport, sessions.timers, max_message=limits.max_message, liveness=limits.liveness)
        self._hello = sessions.timers.after(limits.hello_timeout, self._hello_timed_out)
        sessions.open.add(self)

    @property
    def short_token(self) -> str | None:
        """As much of the session's token as tells sessions apart in a log."""
        return None if self.token is None else self.token[:8]

    # -- from the client --

    def text_received(self, text: str) -> None:
        self._handle(self.session.receive_text(text))

    def binary_received(self, data: bytes) -> None:
        self._handle(self.session.receive_binary())

    def _handle(self, event: core.Event | None) -> None:
        match event:
            case core.CursorsMoved():
                self._cursors_moved(event)
            case core.CreateReceived():
                self._hello.cancel()
                self._create(event)
            case core.HelloReceived():
                self._hello.cancel()
                self._welcome(event)
            case core.AttachReceived():
                self._attach(event.resume)
            case core.DetachReceived():
                self._ready.pop(event.cursor, None)
                self._streams.pop(event.cursor).detach(event.cursor)
            case core.CancelReceived():
                self._cancel(event)
            case core.CloseRequired():
                self.finish(event)
                return
            case None:
                pass
        self._mark()

    def _create(self, event: core.CreateReceived) -> None:
        sessions, principal = self._sessions, self.principal
        terms = Terms(
            sessions.limits.detach_grace,
            request_id=event.request_id,
            stream=True,
            connection=self.number,
            session=self.short_token,
        )
        sessions.launcher.create(
            principal, CHAT, event.request, terms, lambda answer: self._created_stream(event, answer)
        )

    def _created_stream(self, event: core.CreateReceived, answer: Started | HoldfastError) -> None:
        if isinstance(answer, HoldfastError):
            self.session.send_error(answer, request_id=event.request_id)
            return
        stream, duplicate = answer
        try:
            cursor = stream.attach(self, credit=event.credit)
        except HoldfastError as exc:
            self.session.send_error(exc, request_id=event.request_id)
            return
        self._add(stream, cursor)
        if self._created is None:
            self._created = set()
        self._created.add(stream.id)
        self.session.send(
            m.Accepted(
                stream.origin.request_id,
                stream.id,
                epoch=stream.log.epoch,
                duplicate=duplicate,
                queue_position=stream.queue_position,
            )
        )

    def _welcome(self, hello: core.HelloReceived) -> None:
        sessions, limits = self._sessions, self._sessions.limits
        owner = self.principal.owner
        older = sessions.by_token.get((owner, hello.session)) if hello.session else None
        if older is not None:
            older.supersede()
        token = hello.session if older is not None and hello.session else secrets.token_urlsafe(24)
        self.token = token
        sessions.by_token[owner, token] = self
        streams = [self._resume(resume) for resume in hello.streams]
        if sessions.goaway is not None and not self._streams:
            # What the client wants it may find elsewhere; refusals in a welcome would be this process's last word.
            self.finish(self.session.fail(Draining(retry_after=1.0)))
            return
        self.session.send(
            m.Welcome(
                version=m.VERSION,
                session=token,
                server=f"holdfast/{__version__}",
                heartbeat=m.Heartbeat(
                    round(limits.liveness.interval * 1000), round(limits.liveness.timeout * 1000)
                ),
                limits=m.Limits(limits.max_message, limits.max_streams, limits.log_bytes),
                resumed=older is not None or any(state.status != "refused" for state in streams),
                streams=streams,
            )
        )
        if sessions.goaway is not None:
            self.session.send(sessions.goaway)

    def _resume(self, resume: m.Resume) -> m.StreamState:
        try:
            stream, cursor = self._open_cursor(resume)
        except HoldfastError as exc:
            return m.StreamState(resume.stream, "refused", error=error_body(exc))
        if self._created is None:
            self._created = set()
        self._created.add(stream.id)
        return m.StreamState(
            stream.id,
            stream.status,
            epoch=stream.log.epoch,
            next=cursor.position,
        )

    def _attach(self, resume: m.Resume) -> None:
        try:
            stream, cursor = self._open_cursor(resume)
        except HoldfastError as exc:
            self.session.send_error(exc, stream=resume.stream)
            return
        self.session.send(
            m.Attached(
                stream.id,
                stream.status,
                epoch=stream.log.epoch,
                next=cursor.position,
            )
        )

    def _open_cursor(self, resume: m.Resume) -> tuple[Stream, Cursor]:
        if self.session.is_full and resume.stream not in self.session.cursors:
            raise TooManyStreams
        self.principal.check_expiry(time.time())
        stream = self._find(resume.stream)
        cursor = stream.attach(self, Position(resume.after, resume.epoch), credit=resume.credit)
        self._add(stream, cursor)
        return stream, cursor

    def _add(self, stream: Stream, cursor: Cursor) -> None:
        old = self.session.attach(stream.id, cursor)
        if old is not None:
            self._drop(old)
        self._streams[cursor] = stream
        self._ready[cursor] = None

    def _cancel(self, event: core.CancelReceived) -> None:
        if event.stream is not None:
            try:
                self._find(event.stream).cancel()
            except HoldfastError as exc:
                self.session.send_error(exc, stream=event.stream)
        elif event.request_id is not None:
            self._sessions.directory.find_request(self.principal.owner, event.request_id, _cancel)

    def _find(self, stream_id: str) -> Stream:
        answers: list[Stream | HoldfastError] = []
        self._sessions.directory.open(self.principal.owner, [stream_id], answers.extend)
        if isinstance(answers[0], HoldfastError):
            raise answers[0]
        return answers[0]

    def _cursors_moved(self, event: core.CursorsMoved) -> None:
        for cursor in event.cursors:
            self._streams[cursor].relieve()
            if cursor.is_ready:
                self._ready[cursor] = None
        for stream_id in event.ended:
            if self._created is not None and stream_id in self._created:
                self._created.discard(stream_id)
                self._sessions.directory.acknowledged(self.principal.owner, stream_id)

    def _drop(self, cursor: Cursor) -> None:
        """Forget a cursor that has left the session without leaving its stream to itself."""
        self._ready.pop(cursor, None)
        self._moved.pop(cursor, None)
        self._streams.pop(cursor).release(cursor)

    # -- to the client --

    def wake(self, cursor: Cursor) -> None:
        self._ready[cursor] = None
        if not self._is_marked:
            self._is_marked = True
            self._sessions.flusher.add(self)

    def position_changed(self, cursor: Cursor) -> None:
        self._moved[cursor] = None
        self._mark()

    def epoch_changed(self, cursor: Cursor) -> None: ...

    def _mark(self) -> None:
        if not self._is_marked:
            self._is_marked = True
            self._sessions.flusher.add(self)

    def flush(self) -> int:
        """Write what is due: control messages first, then entries of all ready cursors in turn."""
        self._is_marked = False
        transport, session = self.transport, self.session
        if transport is None or self.codec.is_closing:
            return 0
        if not self.is_writable:
            if session.waiting > _MAX_WAITING:
                self.abort()
            return 0
        if self._moved:
            self._tell_positions()
        out: list[bytes] = []
        if session.waiting:
            out += map(text_frame, session.data_to_send())
        ready = self._ready
        if ready:
            self._read_cursors(out)
        if not out:
            return 0
        transport.write(out[0] if len(out) == 1 else b"".join(out))
        messages = len(out)
        for _ in range(_MAX_WRITES - 1):
            if not ready or not self.is_writable:
                return messages
            out.clear()
            self._read_cursors(out)
            if out:
                transport.write(b"".join(out))
                messages += len(out)
        if ready and self.is_writable:
            self._mark()
        return messages

    def _tell_positions(self) -> None:
        """Say where streams stand now: a client that does not read is told later, and once."""
        moved, self._moved = self._moved, {}
        for cursor in moved:
            stream = self._streams.get(cursor)
            if stream is not None and stream.queue_position is not None:
                self.session.send(m.Queued(stream.id, stream.queue_position))

    def _read_cursors(self, out: list[bytes]) -> None:
        ready = self._ready
        # Without hello a client gets one entry per message, and what is written counts as consumed.
        is_bare = self.session.state is core.State.BARE
        max_bytes = 1 if is_bare else _MESSAGE_BYTES
        size = 0
        while ready and size < _WRITE_BYTES:
            cursor = next(iter(ready))
            del ready[cursor]
            message = cursor.read(SESSION_FRAMING, max_bytes)
            if message is None:
                continue
            out.append(text_frame(message))
            size += len(message)
            log = cursor.log
            if is_bare:
                cursor.consume()
            if cursor.position < log.next:
                ready[cursor] = None
            elif log.end is not None:
                self._drop(self.session.retire(self._streams[cursor].id))
            elif is_bare:
                self._streams[cursor].relieve()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._mark()

    # -- the end --

    def send_away(self, goaway: m.Goaway) -> None:
        """Tell the client that this process goes; one that has yet to say hello is told then."""
        if self.session.state in (core.State.OPEN, core.State.BARE):
            self.session.send(goaway)
            self._mark()

    @property
    def is_idle(self) -> bool:
        """Whether the client reads no stream and has been written all that was for it."""
        return (
            not self._streams
            and not self.session.waiting
            and self.session.state is not core.State.NEW
            and self.transport is not None
            and self.transport.get_write_buffer_size() == 0
        )

    def _hello_timed_out(self) -> None:
        self.finish(self.session.fail(HelloTimeout()))

    def supersede(self) -> None:
        """The same client is back on another connection: this one is of no further use."""
        self.finish(self.session.fail(SessionSuperseded()))
        self._leave_streams()

    def revoke(self) -> None:
        """Its credential is no longer good."""
        self.finish(self.session.fail(Unauthorized(REVOKED)))
        self._leave_streams()

    def finish(self, close: core.CloseRequired) -> None:
        """Send what control messages are due, then close."""
        if self.transport is not None and not self.codec.is_closing:
            for message in self.session.data_to_send():
                self.codec.send_text(message)
        self.close(close.code, close.reason)

    def connection_closed(self) -> None:
        self._hello.cancel()
        self._sessions.open.discard(self)
        if logger.isEnabledFor(logging.INFO):
            self._log_end()
        for lease in self._leases:
            lease.release()
        self._leave_streams()

    def _log_end(self) -> None:
        principal = self.principal
        fields = {
            "connection": self.number,
            "session": self.short_token,
            "tenant": principal.tenant,
            "key": principal.key_id,
            "duration": round(self.timers.now() - self.opened, 3),
            "close_code": self.codec.close_code,
            "streams_left": len(self._streams),
        }
        fields = {name: value for name, value in fields.items() if value is not None}
        logger.info("connection ended", extra={"fields": fields})

    def _leave_streams(self) -> None:
        sessions = self._sessions
        if self.token is not None and sessions.by_token.get((self.principal.owner, self.token)) is self:
            del sessions.by_token[self.principal.owner, self.token]
        self._ready.clear()
        self._moved.clear()
        self.session.connection_lost()
        streams, self._streams = self._streams, {}
        for cursor, stream in streams.items():
            stream.lose(cursor)


def _cancel(stream: Stream | HoldfastError | None) -> None:
    # An unknown request id was refused or has long ended: its answer told, or will tell.
    if isinstance(stream, Stream):
        stream.cancel()
