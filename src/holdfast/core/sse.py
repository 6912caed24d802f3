"""Server-Sent Events, after the WHATWG HTML standard section 9.2 ("Server-sent events").

This splits a byte stream into events, and writes events. Payloads stay bytes: nothing is decoded from UTF-8 or
JSON. Others decide what an event means, and when to connect again.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

_BOM = b"\xef\xbb\xbf"
#: Payloads of more bytes are written in another way.
_LARGE = 16 * 1024
# Numbers, since `13 in chunk` takes 0.02 us and `b"\r" in chunk` takes 0.14.
_LF = 10
_CR = 13


class EventTooLarge(ValueError):
    """The data of one event, or one line, is longer than `max_event`. The stream cannot be read further."""


class SseEvent(msgspec.Struct, frozen=True, gc=False):
    """One event. `event` is b"" if the stream names none; `id` is the last one seen, as the standard demands."""

    event: bytes
    data: bytes
    id: bytes


class EventSplitter:
    """Splits an event stream that arrives in pieces of any size.

    `feed` and `feed_events` return the events that a piece completes, in order. Both raise `EventTooLarge` once
    the data of an event, or a single line of any kind, exceeds `max_event` bytes. If events came before it in the
    same piece, they are returned, and the next call raises: so call `eof` when the bytes end. All other bytes are
    accepted, since the standard ignores unknown fields. The time is linear in the number of bytes.

    `names` are those of the events that the last `feed` or `eof` returned, one for each; empty if none had any.
    """

    __slots__ = (
        "_at_start",
        "_data",
        "_event",
        "_id",
        "_is_broken",
        "_max_event",
        "_more_data",
        "_partial",
        "_skip_lf",
        "_whole_limit",
        "names",
    )

    def __init__(self, max_event: int = 16 * 1024 * 1024) -> None:
        if max_event < 1:
            raise ValueError(f"max_event must be at least 1, not {max_event}")
        self._max_event = max_event
        self._partial = bytearray()  # the line that has not ended
        self._data: bytes | None = None  # the first data line of the event that has not ended
        self._more_data = bytearray()  # its further data lines, each after an LF
        self._event = b""
        self._id = b""
        self._at_start = True  # a byte order mark may still come
        self._skip_lf = False  # the last byte was CR: an LF that follows belongs to the same line end
        self._is_broken = False
        self.names: Sequence[bytes] = ()
        # The longest piece that the fast paths may take: `max_event` between two events, else 0.
        self._whole_limit = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of each event that `chunk` completes; an event without a data field gives none.

        Several data lines are joined by LF.
        """
        # Fast path: nearly every read from a provider is one or more whole events of one "data: " line each. Their
        # payloads lie between the separators, and the count of LFs proves that there are no further lines.
        if (
            chunk[:6] == b"data: "
            and chunk[-2:] == b"\n\n"
            and len(chunk) <= self._whole_limit
            and _CR not in chunk
        ):
            body = chunk[6:-2]
            self.names = ()
            if _LF not in body:
                return [body]
            payloads = body.split(b"\n\ndata: ")
            if body.count(b"\n") == 2 * len(payloads) - 2:
                return payloads
        events = self.feed_events(chunk)
        self.names = [event.event for event in events] if any(event.event for event in events) else ()
        return [event.data for event in events]

    def feed_events(self, chunk: bytes) -> list[SseEvent]:
        """Return each event that `chunk` completes, with its name and id."""
        # Fast path: the usual read from a provider that names its events is one "event: " and one "data: " line.
        if (
            chunk[:7] == b"event: "
            and chunk[-2:] == b"\n\n"
            and len(chunk) <= self._whole_limit
            and _CR not in chunk
        ):
            name, separator, data = chunk[7:-2].partition(b"\ndata: ")
            if separator and _LF not in name and _LF not in data:
                return [SseEvent(name, data, self._id)]
        return self._receive(chunk)

    def eof(self) -> bytes:
        """Take the end of the stream; return the data of an event without its blank line, or b"".

        The standard discards such an event. A caller may still accept a sentinel such as b"[DONE]", or report that
        the event was cut off. Raises `EventTooLarge` if it is still due.
        """
        if self._is_broken:
            raise self._too_large()
        if self._partial:
            self._receive_field(bytes(self._partial))
            self._partial.clear()
        self.names = (self._event,) if self._event else ()
        return (self._data or b"") + self._more_data

    def _receive(self, chunk: bytes) -> list[SseEvent]:
        if self._at_start or self._skip_lf or self._is_broken:
            chunk = self._receive_head(chunk)
        events: list[SseEvent] = []
        try:
            if _LF in chunk or _CR in chunk:
                lines = self._split_lines(chunk)
                chunk = lines.pop()
                self._receive_lines(lines, events)
            self._partial += chunk
            if len(self._partial) > self._max_event and not self._at_start:
                raise self._too_large()
        except EventTooLarge:
            self._is_broken = True
            self._whole_limit = 0
            self._partial.clear()
            self._more_data.clear()
            if not events:
                raise
            return events
        is_inside = self._partial or self._event or self._skip_lf or self._data is not None
        self._whole_limit = 0 if is_inside or self._at_start else self._max_event
        return events

    def _receive_head(self, chunk: bytes) -> bytes:
        """Remove what may only come first in a piece: the byte order mark, or the LF of a CRLF."""
        if self._is_broken:
            raise self._too_large()
        if self._skip_lf and chunk:
            self._skip_lf = False
            return chunk[1:] if chunk[0] == _LF else chunk
        if self._at_start:
            chunk = bytes(self._partial) + chunk
            self._partial.clear()
            # The beginning of a mark is held back. It contains no line end, so this delays no event.
            self._at_start = len(chunk) < len(_BOM) and _BOM.startswith(chunk)
            return chunk.removeprefix(_BOM)
        return chunk

    def _split_lines(self, chunk: bytes) -> list[bytes]:
        """Split at LF, CRLF and CR. The last item is the beginning of the next line."""
        if _CR in chunk:
            # A CR ends its line at once: waiting for an LF could delay an event for ever.
            self._skip_lf = chunk[-1] == _CR
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        if self._partial:
            self._partial += lines[0]
            lines[0] = bytes(self._partial)
            self._partial = bytearray()
        return lines

    def _receive_lines(self, lines: list[bytes], events: list[SseEvent]) -> None:
        max_event = self._max_event
        for line in lines:
            if len(line) > max_event:
                raise self._too_large()
            if line[:6] == b"data: " and self._data is None:
                self._data = line[6:]
            elif line:
                self._receive_field(line)
            else:
                if self._data is not None:
                    data = self._data
                    if self._more_data:
                        data += self._more_data
                        self._more_data = bytearray()
                    events.append(SseEvent(self._event, data, self._id))
                    self._data = None
                self._event = b""

    def _receive_field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            if self._data is None:
                self._data = value
            elif len(self._data) + len(self._more_data) + 1 + len(value) <= self._max_event:
                self._more_data += b"\n"
                self._more_data += value
            else:
                raise self._too_large()
        elif field == b"event":
            self._event = value
        elif field == b"id" and 0 not in value:
            self._id = value
        # Everything else is ignored: comments (an empty field name), `retry` and unknown fields.

    def _too_large(self) -> EventTooLarge:
        return EventTooLarge(f"an event or a line is longer than {self._max_event} bytes")


def write_event(data: bytes, *, id: bytes = b"", event: bytes = b"") -> bytes:
    """Write one event. Each line of `data` becomes a data line: a CR or CRLF in it arrives as LF.

    An empty `id` or `event` is left out. Raises ValueError for one that the format cannot carry.
    """
    head = b""
    if event:
        head = b"event: " + _field_value(event) + b"\n"
    if id:
        if 0 in id:
            raise ValueError("an event id must not hold NUL: readers would ignore it")
        head += b"id: " + _field_value(id) + b"\n"
    if _LF in data or _CR in data:
        data = b"\ndata: ".join(_lines(data))
    return head + b"data: " + data + b"\n\n"


def _lines(text: bytes) -> list[bytes]:
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def _field_value(value: bytes) -> bytes:
    if _LF in value or _CR in value:
        raise ValueError(f"a field of an event must be one line: {value!r}")
    return value


def write_entries(epoch: int, first: int, payloads: Sequence[bytes]) -> bytes:
    """Write entries as one event each, with the id `<epoch>-<number>`."""
    prefix = b"id: %d-" % epoch
    out = []
    for seq, payload in enumerate(payloads, first):
        # A payload is JSON; only a line end in it, legal between tokens, needs the general writer.
        if b"\n" in payload or b"\r" in payload:
            out.append(write_event(payload, id=b"%d-%d" % (epoch, seq)))
        elif len(payload) > _LARGE:
            # Formatting copies into memory that it makes too large first: ten times the time of joining.
            out += (b"%b%d\ndata: " % (prefix, seq), payload, b"\n\n")
        else:
            out.append(b"%b%d\ndata: %b\n\n" % (prefix, seq, payload))
    return b"".join(out)
