"""A WebSocket connection's I/O: feeds the codec, writes, sends heartbeats, closes. Subclasses handle messages.

Its peer is bounded in time, as others have their turns, in memory, by its account, and in what serves nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

import msgspec

from holdfast.core.limits.budget import Account, Kind
from holdfast.core.patience import Patience, Verdict, delay_of
from holdfast.core.websocket.connection import WebSocketConnection
from holdfast.core.websocket.events import BinaryMessage, CloseReceived, ConnectionFailed, TextMessage
from holdfast.errors import HoldfastError, InvalidMessage
from holdfast.server.listener.turns import BACKLOG, LARGE, OWING, SLOWED, TURN_OVER, FairProtocol, Turns
from holdfast.timers import Deadline, Timers

logger = logging.getLogger("holdfast")

#: Seconds that the peer has to answer our Close frame, and to hang up after its own.
CLOSE_TIMEOUT = 5.0
_LINGER_TIMEOUT = 2.0
#: Frames that are read before the clock is looked at again, and how often that happens in one turn.
_FRAMES = 8
_LOOKS = 32


class Liveness(msgspec.Struct, frozen=True):
    """A peer that is silent for `interval` seconds is pinged, and dropped `timeout` seconds later.

    Any frame is a sign of life. A peer that is not read, since it does not read, is not silent: it is dropped if
    it takes nothing for so long.
    """

    interval: float
    timeout: float


class Counting(Protocol):
    """What understands messages.

    It counts those that serve nothing; that is set back when they were noted. Whoever has messages wait in it
    calls `count_waiting` when they begin to, and when they do no more.
    """

    useless: int

    @property
    def bytes_held(self) -> int:
        """How many bytes wait in it."""


class WebSocketProtocol(FairProtocol):
    """One connection after its opening handshake.

    It owns no task and one timer, and two more while a message is in pieces or its peer is slowed down.
    `message_timeout` is how long a message may take from its first piece to its last, in seconds. Subclasses
    override the `*_received` hooks, `fail` and `connection_closed`, and set `messages`.
    """

    __slots__ = (
        "_held",
        "_inbox",
        "_is_pinged",
        "_last_received",
        "_message_number",
        "_message_timer",
        "_patience",
        "_slowed",
        "_timer",
        "_unwritten",
        "codec",
        "liveness",
        "message_timeout",
        "messages",
        "timers",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        timers: Timers,
        turns: Turns,
        account: Account,
        *,
        max_message: int,
        message_timeout: float,
        liveness: Liveness,
    ) -> None:
        super().__init__(turns, account)
        self.transport = transport
        self.timers = timers
        self.liveness = liveness
        self.message_timeout = message_timeout
        self.codec = WebSocketConnection(max_message=max_message)
        self.messages: Counting = self.codec
        # What has come while others had their turns.
        self._inbox = b""
        # Bytes that wait for their turn, or for their rest, as they were charged.
        self._held = 0
        self._message_timer: Deadline | None = None
        self._message_number = 0
        self._patience: Patience | None = None
        self._slowed: Deadline | None = None
        self._unwritten = 0
        self._is_pinged = False
        self._last_received = timers.now()
        self._timer: Deadline | None = timers.after(liveness.interval, self._check_liveness)
        transport.set_protocol(self)

    # -- for subclasses --

    def text_received(self, text: str) -> None: ...

    def binary_received(self, data: bytes) -> None: ...

    def fail(self, error: HoldfastError) -> None:
        """End the connection for an error of the peer, or for want of room."""
        self.close(error.close_code or 1011, error.code)

    def connection_closed(self) -> None:
        """Release what the connection holds. Called once, when it is lost."""

    def write_codec(self) -> None:
        """Write what the codec has queued, if the socket takes more."""
        if self.transport is not None and self.is_writable:
            data = self.codec.data_to_send()
            if data:
                self.transport.write(data)

    # -- asyncio.Protocol --

    def data_received(self, data: bytes) -> None:
        self._last_received = self.timers.now()
        self._is_pinged = False
        self._inbox = self._inbox + data if self._inbox else data
        self.turns.received(self, len(data))

    @property
    def can_go_on(self) -> bool:
        return (bool(self._inbox) or self.codec.has_unread) and not self.is_paused

    def take(self, until: float) -> bool:
        if self._pauses & ~TURN_OVER:
            return False
        codec = self.codec
        if not codec.is_at_boundary and codec.message_size >= LARGE and self.turns.repay(self):
            self.count_waiting()
            return False
        looks = _LOOKS
        try:
            while True:
                data, self._inbox = self._inbox, b""
                for event in codec.receive_data(data, _FRAMES):
                    if type(event) is TextMessage:
                        self.text_received(event.data)
                    elif type(event) is BinaryMessage:
                        self.binary_received(event.data)
                    elif isinstance(event, CloseReceived | ConnectionFailed):
                        self._peer_closed()
                        return False
                looks -= 1
                if not (codec.has_unread and looks) or self._pauses & ~TURN_OVER or self.turns.clock() >= until:
                    break
        except Exception:
            # The supervisor of one connection: other connections go on, and details go to the log only.
            logger.exception("a WebSocket connection failed")
            self.close(1011, "internal_error")
        if codec.useless or self.messages.useless:
            self._count_useless()
        if self._held or not codec.is_at_boundary or self._message_timer is not None:
            self.count_waiting()
        self.write_codec()
        return codec.has_unread and not self._pauses & ~TURN_OVER

    def _count_useless(self) -> None:
        codec, messages = self.codec, self.messages
        useless = codec.useless + (0 if messages is codec else messages.useless)
        codec.useless = messages.useless = 0
        now = self.timers.now()
        if self._patience is None:
            self._patience = Patience(now)
        verdict = self._patience.count(useless, now)
        if verdict is Verdict.GO_ON or self.codec.is_closing:
            return
        if verdict is Verdict.CLOSE:
            self.fail(InvalidMessage("too much that serves nothing was sent (PROTOCOL.md, section 10)"))
        elif self._slowed is None:
            self.pause(SLOWED)
            self._slowed = self.timers.after(delay_of(useless), self._go_on)

    def _go_on(self) -> None:
        if self._slowed is not None:
            self._slowed.cancel()
            self._slowed = None
        self.resume(SLOWED)

    def count_waiting(self) -> None:
        """Charge what waits for its turn or its rest, and see that the rest does not wait for ever."""
        codec = self.codec
        held = self._bytes_held
        if held > self._held and not self.account.take(Kind.MESSAGES, held - self._held):
            codec.discard_messages()
            self.fail(self.account.refusal(held - self._held))
            held = min(self._bytes_held, self._held)
        if held < self._held:
            self.account.free(Kind.MESSAGES, self._held - held)
        self._held = held
        timer = self._message_timer
        if not codec.is_in_message:
            if timer is not None:
                timer.cancel()
                self._message_timer = None
        elif timer is None or self._message_number != codec.messages_begun:
            if timer is not None:
                timer.cancel()
            self._message_number = codec.messages_begun
            self._message_timer = self.timers.after(self.message_timeout, self._message_timed_out)

    @property
    def _bytes_held(self) -> int:
        codec, messages = self.codec, self.messages
        return len(self._inbox) + codec.bytes_held + (0 if messages is codec else messages.bytes_held)

    def _message_timed_out(self) -> None:
        self._message_timer = None
        # A peer that we do not read, as it does not read us, cannot send the rest.
        if self.is_paused:
            self._message_timer = self.timers.after(self.message_timeout, self._message_timed_out)
        elif not self.codec.is_closing:
            self.fail(InvalidMessage(f"a message took longer than {self.message_timeout:g} s"))

    def eof_received(self) -> bool:
        self.codec.receive_eof()
        return False

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_codec()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.turns.leave(self)
        self.free_output()
        self._inbox = b""
        if self._held:
            self.account.free(Kind.MESSAGES, self._held)
            self._held = 0
        for timer in (self._message_timer, self._slowed):
            if timer is not None:
                timer.cancel()
        self._message_timer = self._slowed = None
        if self.transport is not None:
            self.transport = None
            self.connection_closed()

    # -- liveness and closing --

    def _check_liveness(self) -> None:
        """Ping or drop a silent peer. It runs once per interval, not per frame: frames leave their time behind."""
        if self.transport is None:
            return
        liveness = self.liveness
        if self.is_paused:
            # What is not read cannot be heard.
            self._last_received = self.timers.now()
            self._is_pinged = False
            if self._takes_nothing(self.transport):
                logger.info("a WebSocket client took nothing for %.0f s; dropped", liveness.interval)
                self.transport.abort()
                return
        silence = self.timers.now() - self._last_received
        if self._is_pinged and silence >= liveness.interval + liveness.timeout:
            logger.info("a WebSocket client was silent for %.0f s; dropped", silence)
            self.transport.abort()
            return
        if silence >= liveness.interval and not self._is_pinged and not self.codec.is_closing:
            self._is_pinged = True
            self.codec.send_ping()
            self.write_codec()
        wait = liveness.interval + (liveness.timeout if self._is_pinged else 0.0) - silence
        self._timer = self.timers.after(max(wait, 0.05), self._check_liveness)

    def _takes_nothing(self, transport: asyncio.Transport) -> bool:
        """Whether the peer has taken none of what waits for it since this was last asked."""
        unwritten = 0 if self.is_writable else transport.get_write_buffer_size()
        before, self._unwritten = self._unwritten, unwritten
        return 0 < unwritten == before

    def close(self, code: int, reason: str = "") -> None:
        """Start the closing handshake, which ends after `CLOSE_TIMEOUT` seconds at the latest. Idempotent."""
        if self.transport is None or self.codec.is_closing:
            return
        self.codec.send_close(code, reason)
        self.write_codec()
        self._stop_timer()
        self._timer = self.timers.after(CLOSE_TIMEOUT, self.abort)
        # The peer's answer has to be read.
        self._go_on()
        self.resume(BACKLOG)
        self.resume(OWING)

    def abort(self) -> None:
        self._stop_timer()
        if self.transport is not None:
            self.transport.abort()

    def _peer_closed(self) -> None:
        """Answer the Close frame and hang up, but read on until the peer has."""
        self._stop_timer()
        transport = self.transport
        if transport is None:
            return
        data = self.codec.data_to_send()
        if data:
            transport.write(data)
        self._timer = self.timers.after(_LINGER_TIMEOUT, self.abort)
        if transport.can_write_eof():
            self.write_eof()
        else:
            transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
