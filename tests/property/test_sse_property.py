"""The splitter against a plain reading of the WHATWG HTML standard, for any bytes in any pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.core.sse import EventSplitter, EventTooLarge, SseEvent, write_event

BOM = b"\xef\xbb\xbf"

# Mostly what the grammar is made of, so that lines, boundaries and fields meet in every way.
fields = [b"data: ", b"data:", b"data", b"event: ", b"event:", b"id: ", b"id", b"retry: 3", b":"]
line_ends = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"]
whole_events = [b"data: {}\n\n", b"event: x\ndata: y\n\n"]
values = [b"x", b" ", b"\0", "é".encode(), b"\xff", b"\xc3", BOM, b"\xef\xbb"]
fragments = st.sampled_from([*fields, *line_ends, *whole_events, *values])
# Cut at random places, and cut between the fragments, where the short ways of the splitter begin and end.
cuts = st.lists(st.integers(0, 120), max_size=12)
reads = st.one_of(
    st.lists(st.lists(fragments, max_size=5).map(b"".join), max_size=12),
    st.tuples(st.lists(fragments, max_size=40).map(b"".join), cuts).map(lambda drawn: pieces(*drawn)),
    st.tuples(st.binary(max_size=60), cuts).map(lambda drawn: pieces(*drawn)),
)
one_line = st.binary(max_size=8).filter(lambda value: not any(byte in value for byte in b"\r\n\0"))


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Cut `stream` at these offsets; equal offsets make empty pieces."""
    offsets = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(offsets)]


def read_events(reads: list[bytes], max_event: int = 1 << 20) -> tuple[list[SseEvent], bool]:
    """Return the events, and whether the stream was refused as too large."""
    splitter = EventSplitter(max_event)
    events: list[SseEvent] = []
    try:
        for read in reads:
            events += splitter.feed_events(read)
        splitter.eof()
    except EventTooLarge:
        return events, True
    return events, False


def read_payloads(reads: list[bytes]) -> list[bytes]:
    splitter = EventSplitter()
    return [payload for read in reads for payload in splitter.feed(read)]


def events_of_the_standard(stream: bytes) -> list[tuple[str, str, str]]:
    """Section 9.2.6, step by step on decoded text: (event type, data, last event id) of each dispatched event."""
    text = stream.removeprefix(BOM).decode("utf-8", "replace")
    lines, line, position = [], "", 0
    while position < len(text):
        if text[position] in "\r\n":
            lines.append(line)
            line = ""
            position += 2 if text[position : position + 2] == "\r\n" else 1
        else:
            line += text[position]
            position += 1
    # What is left in `line` has no end: the end of the file discards it with its event.
    events, data, event_type, last_id = [], "", "", ""
    for line in lines:
        if line == "":
            if data != "":
                events.append((event_type, data[:-1], last_id))
            data, event_type = "", ""
            continue
        if line[0] == ":":
            continue
        colon = line.find(":")
        field, value = (line, "") if colon < 0 else (line[:colon], line[colon + 1 :])
        if value[:1] == " ":
            value = value[1:]
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            last_id = value
    return events


def decoded(events: list[SseEvent]) -> list[tuple[str, str, str]]:
    return [
        (
            event.event.decode("utf-8", "replace"),
            event.data.decode("utf-8", "replace"),
            event.id.decode("utf-8", "replace"),
        )
        for event in events
    ]


@settings(max_examples=2000)
@given(reads)
@example(pieces(BOM + b"data: a\r\n\r\n", [1, 2, 3, 11, 12, 13, 14]))
@example(pieces(b"data: a\r\rdata: b\n\n", [8, 9]))
def test_any_pieces_of_any_bytes_give_the_events_of_the_standard(reads: list[bytes]) -> None:
    events, is_refused = read_events(reads)
    assert not is_refused
    assert decoded(events) == events_of_the_standard(b"".join(reads))
    assert read_payloads(reads) == [event.data for event in events]


@settings(max_examples=2000)
@given(reads, st.integers(1, 30))
def test_any_pieces_meet_the_bound_at_the_same_event(reads: list[bytes], max_event: int) -> None:
    events, is_refused = read_events(reads, max_event)
    assert read_events([b"".join(reads)], max_event) == (events, is_refused)
    assert all(len(event.data) <= max_event for event in events)
    unbounded = read_events(reads)[0]
    assert events == (unbounded[: len(events)] if is_refused else unbounded)


@given(
    st.lists(st.tuples(st.binary(max_size=20) | st.just(b"a\r\n\rb\n"), one_line, one_line), max_size=8),
    cuts,
)
def test_written_events_are_read_back_in_any_pieces(
    written: list[tuple[bytes, bytes, bytes]], cuts: list[int]
) -> None:
    stream = b""
    expected = []
    last_id = b""
    for data, id_, event in written:
        stream += b": ping\n\n" + write_event(data, id=id_, event=event) + b"retry: 5\n\n"
        last_id = id_ or last_id
        lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        expected.append(SseEvent(event, lines, last_id))
    assert read_events(pieces(stream, cuts)) == (expected, False)


def test_event_of_five_megabytes_in_single_bytes_is_read_in_linear_time() -> None:
    # Anything quadratic would copy some 10^13 bytes here and meet the time limit of the test.
    payload = bytes(range(32, 127)) * 52_632
    splitter = EventSplitter()
    found = []
    for byte in write_event(payload):
        found += splitter.feed(b"%c" % byte)
    assert found == [payload]


def test_many_data_lines_of_one_event_in_small_pieces_are_read_in_linear_time() -> None:
    splitter = EventSplitter()
    for _ in range(200_000):
        assert splitter.feed(b"data: x\n") == []
    assert splitter.feed(b"\n") == [b"\n".join([b"x"] * 200_000)]
