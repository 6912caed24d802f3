"""A running answer: what is due when, and what its fault does to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from holdfast_tools.simulate.answer import DONE, Answer, error_event, malformed_event
from holdfast_tools.simulate.exchange import BATCH_BYTES, Exchange, Headers
from holdfast_tools.simulate.faults import (
    AnyRequestFault,
    Cut,
    Drip,
    EndEarly,
    ErrorEvent,
    HugeEvent,
    Malformed,
    NoAnswer,
    Reset,
    SlowHeaders,
    Stall,
)
from holdfast_tools.simulate.pacer import Pacer
from holdfast_tools.simulate.request import error_body
from holdfast_tools.simulate.statistics import Outcome

OnEnd: TypeAlias = Callable[["Generation", Outcome], None]
_SSE: Headers = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))


class Generation:
    """One streamed answer on the pacer. Token i is due at `ttft + (i // burst) * interval` after the request."""

    __slots__ = (
        "_answer",
        "_batch",
        "_burst",
        "_event_size",
        "_exchange",
        "_fault",
        "_first_due",
        "_has_begun",
        "_has_head",
        "_has_timestamps",
        "_headers",
        "_interval_ms",
        "_is_blocked",
        "_is_over",
        "_on_end",
        "_outcome",
        "_pacer",
        "_stop",
        "sent_tokens",
    )

    def __init__(
        self,
        pacer: Pacer,
        exchange: Exchange,
        answer: Answer,
        fault: AnyRequestFault | None,
        headers: Headers,
        on_end: OnEnd,
    ) -> None:
        self._pacer = pacer
        self._exchange = exchange
        self._answer = answer
        self._fault = fault
        self._headers = headers
        self._on_end = on_end
        self._stop: int = min(answer.tokens, getattr(fault, "after_tokens", answer.tokens))
        self._event_size = len(answer.content(0, 1) or b"none")
        self._batch = max(1, BATCH_BYTES // self._event_size)
        self._interval_ms = answer.pace.interval_ms
        self._burst = answer.pace.burst
        self._has_timestamps = answer.pace.timestamps
        self._first_due = 0.0
        self._has_head = False
        self._has_begun = False
        self._is_blocked = False
        self._is_over = False
        self._outcome: Outcome = "completed"
        self.sent_tokens = 0

    def start(self) -> None:
        """Begin to answer: the clock of this answer starts now."""
        self._exchange.answering = self
        fault = self._fault
        if isinstance(fault, NoAnswer):
            return
        if isinstance(fault, (Cut, Reset)) and fault.before_head:
            self._carry_out(fault)
            return
        wait_ms = self._answer.pace.ttft_ms
        if isinstance(fault, SlowHeaders):
            wait_ms += self._exchange.slow_head(fault.ms)
        elif isinstance(fault, Drip):
            self._exchange.drip(fault.gap_ms)
        self._first_due = self._pacer.now() + wait_ms
        if self._answer.pace.early_head:
            self._send_head()
        if wait_ms:
            self._pacer.add(self, self._first_due)
        else:
            self._pacer.add_ready(self)

    def step(self, now: float) -> float | None:
        if self._is_over:
            return None
        room = self._exchange.room
        if not room:
            self._is_blocked = True
            return None
        sent_ns = time.monotonic_ns() if self._has_timestamps else 0
        if not self._has_begun:
            self._has_begun = True
            self._send_head()
            self._exchange.send_body(self._answer.opening(sent_ns))
        position = self.sent_tokens
        interval_ms = self._interval_ms
        until = self._stop
        if interval_ms:
            # Half a millisecond of tolerance, as the pacer has; the groups never drift, whatever a tick's delay.
            until = min(until, (int((now + 0.5 - self._first_due) / interval_ms) + 1) * self._burst)
        if until > position + 1:
            # No more than there is room for, or the answers of a connection would not share it fairly.
            batch = self._batch if room >= BATCH_BYTES else max(1, room // self._event_size)
            until = min(until, position + batch)
        if until > position:
            self.sent_tokens = until
            self._exchange.send_body(self._answer.content(position, until, sent_ns))
        if until >= self._stop:
            return self._reach_stop(now, sent_ns)
        if interval_ms:
            return self._first_due + until // self._burst * interval_ms
        return now

    def resume(self) -> None:
        if self._is_blocked and not self._is_over:
            self._is_blocked = False
            self._pacer.add_ready(self)

    def cancel(self) -> None:
        self._finish("cancelled")

    def done(self) -> None:
        self._finish(self._outcome)

    def fail(self) -> None:
        if not self._is_over:
            self._outcome = "failed"
            self._exchange.reset(2)

    def _send_head(self) -> None:
        if not self._has_head:
            self._has_head = True
            self._exchange.send_head(200, (*_SSE, *self._headers))

    def _reach_stop(self, now: float, sent_ns: int) -> float | None:
        fault = self._fault
        if fault is None or isinstance(fault, (SlowHeaders, Drip)):
            self._exchange.send_body(self._answer.closing(sent_ns))
            self._exchange.end()
            return None
        if not self._carry_out(fault):
            return None
        self._fault = None
        self._stop = self._answer.tokens
        return now

    def _carry_out(self, fault: AnyRequestFault) -> bool:
        """Do what the fault says; return whether the answer goes on afterwards."""
        exchange = self._exchange
        if isinstance(fault, Stall):
            return False
        if isinstance(fault, Malformed):
            exchange.send_body(malformed_event(fault))
            return True
        if isinstance(fault, HugeEvent):
            exchange.send_body(self._answer.huge(fault.bytes))
            return True
        self._outcome = "failed"
        if isinstance(fault, ErrorEvent):
            exchange.send_body(error_event(fault) + (DONE if fault.done else b""))
            exchange.end()
        elif isinstance(fault, EndEarly):
            exchange.end()
        elif isinstance(fault, Cut):
            exchange.cut()
        elif isinstance(fault, Reset):
            exchange.reset(fault.error_code)
        return False

    def _finish(self, outcome: Outcome) -> None:
        if not self._is_over:
            self._is_over = True
            self._on_end(self, outcome)


class WholeGeneration(Generation):
    """One answer that does not stream: due when its last token would be.

    A fault in the middle hits after half of the body; a malformed or huge event is the body itself, and an error
    event becomes status 500.
    """

    __slots__ = ()

    def step(self, now: float) -> float | None:
        if self._is_over:
            return None
        if not self._exchange.room:
            self._is_blocked = True
            return None
        pace = self._answer.pace
        if not self._has_begun:
            self._has_begun = True
            groups = max(0, self._answer.tokens - 1) // pace.burst
            if groups and pace.interval_ms:
                return self._first_due + groups * pace.interval_ms
        fault = self._fault
        if isinstance(fault, (Stall, EndEarly, Cut, Reset)):
            body = self._answer.whole()
            self._send_head()
            self._exchange.send_body(body[: len(body) // 2])
            self._carry_out(fault)
            return None
        self.sent_tokens = self._answer.tokens
        if isinstance(fault, ErrorEvent):
            self._outcome = "failed"
            self._reply(500, error_body(fault.message, type_=fault.type, code=fault.code))
        else:
            self._reply(200, self._body(fault))
        return None

    def _reply(self, status: int, body: bytes) -> None:
        if self._has_head:
            self._exchange.send_body(body)
            self._exchange.end()
        else:
            self._exchange.reply(status, body, self._headers)

    def _send_head(self) -> None:
        # No content-length: the faults that need a head by itself end the body in ways that a length would forbid.
        if not self._has_head:
            self._has_head = True
            self._exchange.send_head(200, (("content-type", "application/json"), *self._headers))

    def _body(self, fault: AnyRequestFault | None) -> bytes:
        if isinstance(fault, Malformed):
            return malformed_event(fault)
        if isinstance(fault, HugeEvent):
            return self._answer.whole("x" * max(0, fault.bytes - len(self._answer.whole(""))))
        return self._answer.whole()
