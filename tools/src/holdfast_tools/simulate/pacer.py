"""One clock for all running answers: slots of a millisecond, one timer, no task.

A tick steps everything that is due and then flushes every connection that was written to, so that whatever one
tick produces for a connection leaves in one write.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections import deque
from typing import Protocol

logger = logging.getLogger("holdfast_tools.simulate")


class Item(Protocol):
    """Something that runs on the pacer. Times are in milliseconds of the pacer's clock."""

    def step(self, now: float) -> float | None:
        """Do what is due; return when to be stepped again, or None to leave the pacer."""

    def fail(self) -> None:
        """Give up after `step` raised."""


class Flushable(Protocol):
    def flush(self) -> None:
        """Hand what was written to the transport."""


class Pacer:
    """Steps items when they are due and corks the connections that they write to."""

    __slots__ = (
        "_dirty",
        "_is_corked",
        "_loop",
        "_order",
        "_ready",
        "_slots",
        "_timer",
        "_timer_slot",
        "_wakes_soon",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Item]] = {}
        self._order: list[int] = []
        self._ready: list[Item] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_slot = 0
        self._wakes_soon = False
        self._dirty: list[Flushable] = []
        self._is_corked = False

    def now(self) -> float:
        return self._loop.time() * 1000.0

    def add(self, item: Item, due: float) -> None:
        """Step `item` at `due`. An item may be in the pacer only once."""
        slot = math.ceil(due)
        bucket = self._slots.get(slot)
        if bucket is not None:
            bucket.append(item)
            return
        self._slots[slot] = [item]
        heapq.heappush(self._order, slot)
        if not self._is_corked:
            self._arm()

    def add_ready(self, item: Item) -> None:
        """Step `item` in the next turn of the event loop."""
        self._ready.append(item)
        if not self._is_corked:
            self._arm()

    def mark(self, connection: Flushable) -> None:
        """Flush `connection` at the end of this turn."""
        self._dirty.append(connection)
        if not self._is_corked:
            self._is_corked = True
            self._loop.call_soon(self._uncork)

    def clear(self) -> None:
        """Forget all items and stop the timer."""
        self._slots.clear()
        self._order.clear()
        self._ready.clear()
        self._dirty.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._wakes_soon = False
        was_corked, self._is_corked = self._is_corked, True
        now = self._loop.time() * 1000.0
        # uvloop's clock and timers count whole milliseconds; half of one is the tolerance for the others.
        tick = int(now + 0.5)
        slots, order = self._slots, self._order
        due_items, self._ready = self._ready, []
        while order and order[0] <= tick:
            due_items += slots.pop(heapq.heappop(order))
        for item in due_items:
            try:
                due = item.step(now)
            except Exception:
                logger.exception("an answer failed")
                item.fail()
                continue
            if due is None:
                continue
            if due <= tick:
                self._ready.append(item)
                continue
            slot = math.ceil(due)
            bucket = slots.get(slot)
            if bucket is None:
                slots[slot] = [item]
                heapq.heappush(order, slot)
            else:
                bucket.append(item)
        if was_corked:
            self._arm()
        else:
            self._uncork()

    def _timer_fired(self) -> None:
        self._timer = None
        self._tick()

    def _uncork(self) -> None:
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.flush()
        self._is_corked = bool(self._dirty)
        if self._dirty:  # a flush that made room let somebody write again
            self._loop.call_soon(self._uncork)
        self._arm()

    def _arm(self) -> None:
        if self._ready:
            if not self._wakes_soon:
                self._wakes_soon = True
                self._loop.call_soon(self._tick)
        elif self._order:
            slot = self._order[0]
            if self._timer is not None:
                if self._timer_slot <= slot:
                    return
                self._timer.cancel()
            self._timer_slot = slot
            self._timer = self._loop.call_at(slot / 1000.0, self._timer_fired)


class Trickle:
    """Writes bytes one at a time, each in its own turn of the event loop, and what comes after them in order."""

    __slots__ = ("_due", "_on_empty", "_pacer", "_position", "_segments", "_write")

    def __init__(self, pacer: Pacer, write: _Write, on_empty: _OnEmpty) -> None:
        self._pacer = pacer
        self._write = write
        self._on_empty = on_empty
        self._segments: deque[tuple[bytes, float | None]] = deque()
        self._position = 0
        self._due = 0.0

    @property
    def is_empty(self) -> bool:
        return not self._segments

    def feed(self, data: bytes, gap_ms: float | None) -> None:
        """Write `data` after what was fed before, `gap_ms` after each byte; in one go if that is None."""
        if not data:
            return
        if not self._segments:
            self._due = self._pacer.now()
            self._pacer.add_ready(self)
        self._segments.append((data, gap_ms))

    def step(self, now: float) -> float | None:
        if not self._segments:
            return None
        data, gap_ms = self._segments[0]
        if gap_ms is None:
            self._segments.popleft()
            self._write(data)
        else:
            self._write(data[self._position : self._position + 1])
            self._position += 1
            if self._position == len(data):
                self._segments.popleft()
                self._position = 0
            # From the time it was due, not from now: the whole then takes the time that was asked for.
            self._due += gap_ms
        if self._segments:
            return self._due
        self._on_empty()
        return None

    def fail(self) -> None:
        """Drop what is left."""
        self._segments.clear()
        self._position = 0


class _Write(Protocol):
    def __call__(self, data: bytes, /) -> object: ...


class _OnEmpty(Protocol):
    def __call__(self) -> object: ...
