"""Splitter and writers, case by case. tests/property has any chunking and the comparison with the standard."""

from __future__ import annotations

import pytest

from holdfast.core.sse import EventSplitter, EventTooLarge, SseEvent, write_entries, write_event


def inside() -> EventSplitter:
    """A splitter that has its first event behind it, so that whole events may take the short way."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: first\n\n") == [b"first"]
    return splitter


# -- splitter: whole events ----------------------------------------------------------------------------


def test_one_event_in_one_read_gives_its_payload() -> None:
    splitter = inside()
    assert splitter.feed(b'data: {"a":1}\n\n') == [b'{"a":1}']
    assert splitter.feed(b"data: [DONE]\n\n") == [b"[DONE]"]


def test_many_events_in_one_read_give_all_payloads_in_order() -> None:
    assert inside().feed(b"data: 1\n\ndata: \n\ndata: 3\n\n") == [b"1", b"", b"3"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_any_line_end_is_accepted(end: bytes) -> None:
    stream = b"data: a" + end + b"data:b" + end + end + b": note" + end + b"data: c" + end + end
    assert inside().feed(stream) == [b"a\nb", b"c"]
    assert EventSplitter().feed(stream) == [b"a\nb", b"c"]


def test_mixed_line_ends_in_one_event_are_accepted() -> None:
    assert inside().feed(b"data: a\rdata: b\r\ndata: c\n\r\n") == [b"a\nb\nc"]


@pytest.mark.parametrize(
    ("stream", "payloads"),
    [
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\n\ndata: b\ndata: c\n\n", [b"a", b"b\nc"]),
        (b"data: a\n\n\n\n", [b"a"]),
        (b"data: a\n\nevent: x\n\n", [b"a"]),
        (b"data: a\nid: 1\n\n", [b"a"]),
        (b"data: a\n\n: ping\n\n", [b"a"]),
        (b"data\n\ndata:\n\ndata: \n\n", [b"", b"", b""]),
        (b"data:\ndata\n\n", [b"\n"]),
        (b"data: a\rdata: b\n\n", [b"a\nb"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data:tight\n\n", [b"tight"]),
        (b"data : space in the name\n\n", []),
        (b" data: space before the name\n\n", []),
        (b"Data: names are case-sensitive\n\n", []),
        (b"database: 1\n\n", []),
        (b"retry: 10\nunknown: x\nno colon\n: comment\n\n", []),
        (b"data: a: b:c\n\n", [b"a: b:c"]),
        (b"data: \xff\xfe\x00\n\n", [b"\xff\xfe\x00"]),
        (b"\n\n\n", []),
        (b"", []),
    ],
)
def test_stream_gives_the_payloads_of_the_standard(stream: bytes, payloads: list[bytes]) -> None:
    assert EventSplitter().feed(stream) == payloads
    assert inside().feed(stream) == payloads


# -- splitter: pieces ----------------------------------------------------------------------------------


def test_boundary_split_across_reads_gives_the_event_once() -> None:
    splitter = inside()
    assert splitter.feed(b"data: a\n") == []
    assert splitter.feed(b"\n") == [b"a"]
    assert splitter.feed(b"\n") == []


def test_payload_split_across_reads_is_joined_and_the_rest_kept() -> None:
    splitter = inside()
    assert splitter.feed(b"da") == []
    assert splitter.feed(b"ta: he") == []
    assert splitter.feed(b"") == []
    assert splitter.feed(b"llo\n\ndata: wor") == [b"hello"]
    assert splitter.feed(b"ld\n\n") == [b"world"]


def test_whole_event_after_an_unfinished_one_belongs_to_it() -> None:
    splitter = inside()
    assert splitter.feed(b"data: a\n") == []
    assert splitter.feed(b"data: b\n\n") == [b"a\nb"]
    assert splitter.feed(b"event: x\n") == []
    assert splitter.feed_events(b"data: c\n\n") == [SseEvent(b"x", b"c", b"")]
    assert splitter.feed(b"event: x\n") == []
    assert splitter.feed(b"data: d\n\n") == [b"d"]
    assert splitter.feed_events(b"data: e\n\n") == [SseEvent(b"", b"e", b"")]


def test_cr_at_the_end_of_a_read_and_lf_of_the_next_are_one_line_end() -> None:
    splitter = inside()
    assert splitter.feed(b"data: a\r") == []
    assert splitter.feed(b"") == []
    assert splitter.feed(b"\ndata: b\r") == []
    assert splitter.feed(b"\n\r") == [b"a\nb"]
    assert splitter.feed(b"\ndata: c\n\n") == [b"c"]


def test_lf_after_a_cr_and_other_bytes_is_a_line_end_of_its_own() -> None:
    splitter = inside()
    assert splitter.feed(b"data: a\r") == []
    assert splitter.feed(b"data: b") == []
    assert splitter.feed(b"\n") == []
    assert splitter.feed(b"\n") == [b"a\nb"]


def test_event_that_ends_in_cr_is_not_held_back() -> None:
    splitter = inside()
    assert splitter.feed(b"data: a\r\r") == [b"a"]
    assert splitter.feed(b"data: b\n\n") == [b"b"]


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4])
def test_leading_byte_order_mark_is_ignored_once(cut: int) -> None:
    stream = b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: not a field name\n\n"
    splitter = EventSplitter()
    assert splitter.feed(stream[:cut]) + splitter.feed(stream[cut:]) == [b"a"]


def test_beginning_of_a_byte_order_mark_that_is_none_is_kept() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"\xef") == []
    assert splitter.feed(b"\xbb") == []
    assert splitter.feed(b"x\ndata: a\n\n") == [b"a"]


@pytest.mark.parametrize("head", [[b"\n"], [b"", b"data: a\n\n"]])
def test_byte_order_mark_after_the_first_line_is_no_mark(head: list[bytes]) -> None:
    splitter = EventSplitter()
    for piece in head:
        splitter.feed(piece)
    assert splitter.feed(b"\xef\xbb\xbfdata: b\n\n") == []


def test_byte_order_mark_does_not_count_against_the_bound() -> None:
    splitter = EventSplitter(max_event=1)
    assert [splitter.feed(piece) for piece in (b"\xef\xbb", b"\xbf", b"\n")] == [[], [], []]
    assert splitter.eof() == b""


# -- splitter: names and ids ---------------------------------------------------------------------------


def test_named_events_carry_name_data_and_last_id() -> None:
    stream = b"event: start\nid: 7\ndata: 1\n\ndata: 2\n\nevent: stop\nid\ndata: 3\n\n"
    expected = [SseEvent(b"start", b"1", b"7"), SseEvent(b"", b"2", b"7"), SseEvent(b"stop", b"3", b"")]
    splitter = EventSplitter()
    assert splitter.feed_events(stream) == expected
    assert splitter.feed_events(stream) == expected


def test_one_named_event_in_one_read_gives_name_and_data() -> None:
    splitter = inside()
    assert splitter.feed_events(b"id: 4\n\n") == []
    assert splitter.feed_events(b"event: delta\ndata: {}\n\n") == [SseEvent(b"delta", b"{}", b"4")]
    assert splitter.feed(b"event: delta\ndata: {}\n\n") == [b"{}"]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"event: a\nid: 9\ndata: x\n\n", [SseEvent(b"a", b"x", b"9")]),
        (b"event: a\ndata: x\ndata: y\n\n", [SseEvent(b"a", b"x\ny", b"")]),
        (b"event: a\n\n", []),
        (b"event: a\nevent: b\ndata: x\n\n", [SseEvent(b"b", b"x", b"")]),
        (b"event: a\n\ndata: x\n\n", [SseEvent(b"", b"x", b"")]),
        (b"event: a\rdata: x\n\n", [SseEvent(b"a", b"x", b"")]),
        (b"event: a\ndata: x\rdata: y\n\n", [SseEvent(b"a", b"x\ny", b"")]),
        (b"id: 1\n\nid: 2\0\ndata: x\n\n", [SseEvent(b"", b"x", b"1")]),
    ],
)
def test_named_stream_gives_the_events_of_the_standard(stream: bytes, events: list[SseEvent]) -> None:
    assert EventSplitter().feed_events(stream) == events
    assert inside().feed_events(stream) == events


def test_names_go_with_the_payloads_of_the_last_feed() -> None:
    splitter = EventSplitter()
    assert (splitter.feed(b"event: error\ndata: 1\n\ndata: 2\n\n"), splitter.names) == (
        [b"1", b"2"],
        [b"error", b""],
    )
    assert (splitter.feed(b"data: 3\n\n"), splitter.names) == ([b"3"], ())
    assert (splitter.feed(b"event: a\ndata: 4\n"), splitter.names) == ([], ())
    assert (splitter.feed(b"\ndata"), splitter.names) == ([b"4"], [b"a"])
    assert (splitter.feed(b": 5\n\n"), splitter.names) == ([b"5"], ())
    splitter.feed(b"event: error\ndata: 6")
    assert (splitter.eof(), splitter.names) == (b"6", (b"error",))


# -- splitter: the end and the bound -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "held"),
    [
        (b"data: a\n\n", b""),
        (b"data: [DONE]", b"[DONE]"),
        (b"data: [DONE]\n", b"[DONE]"),
        (b"data: a\ndata: b", b"a\nb"),
        (b"event: x\n: note", b""),
        (b"", b""),
    ],
)
def test_eof_returns_the_data_of_the_unfinished_event(stream: bytes, held: bytes) -> None:
    splitter = inside()
    splitter.feed(stream)
    assert splitter.eof() == held
    assert splitter.eof() == held


@pytest.mark.parametrize(
    ("max_event", "stream"),
    [
        (10, b"data: 12345\n\n"),
        (10, b"data: 12345"),
        (10, b": 123456789"),
        (11, b"event: 12345\n\n"),
        (9, b"data:1234\ndata:1234\ndata:\n\n"),  # 4 + 1 + 4 bytes are within the bound, and an LF is not
    ],
)
def test_event_or_line_beyond_the_bound_raises_now_and_ever_after(max_event: int, stream: bytes) -> None:
    splitter = EventSplitter(max_event)
    splitter.feed(b"\n")
    with pytest.raises(EventTooLarge, match="longer than"):
        splitter.feed(stream)
    for refused in (lambda: splitter.feed(b"data:\n\n"), lambda: splitter.feed(b"data: \n\n"), splitter.eof):
        with pytest.raises(EventTooLarge):
            refused()


def test_event_at_the_bound_is_accepted() -> None:
    splitter = EventSplitter(max_event=10)
    assert splitter.feed(b"data: 1234\n\ndata:1234\ndata:1234\n: 12345678\n\n") == [b"1234", b"1234\n1234"]
    assert splitter.feed(b"data: 1234\n\n") == [b"1234"]


def test_events_before_the_one_too_large_are_returned_first() -> None:
    splitter = EventSplitter(max_event=10)
    assert splitter.feed(b"data: a\n\ndata: b\n\ndata: 12345\n\ndata: c\n\n") == [b"a", b"b"]
    with pytest.raises(EventTooLarge):
        splitter.eof()
    with pytest.raises(EventTooLarge):
        splitter.feed(b"")


def test_comments_without_end_are_not_counted_against_an_event() -> None:
    splitter = EventSplitter(max_event=10)
    assert splitter.feed(b"data: a\n" + b": ping\n" * 1000 + b"\n") == [b"a"]


def test_bound_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_event"):
        EventSplitter(max_event=0)


# -- writers -------------------------------------------------------------------------------------------


def test_written_event_has_its_fields_in_order() -> None:
    assert write_event(b"{}") == b"data: {}\n\n"
    assert write_event(b"") == b"data: \n\n"
    assert write_event(b"{}", id=b"1.7") == b"id: 1.7\ndata: {}\n\n"
    assert write_event(b"{}", id=b"1.7", event=b"x") == b"event: x\nid: 1.7\ndata: {}\n\n"


def test_written_data_with_line_ends_becomes_several_data_lines() -> None:
    assert write_event(b"a\nb\r\nc\rd\n") == b"data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"


@pytest.mark.parametrize("bad", [b"a\nb", b"a\rb", b"\n"])
def test_id_or_name_with_a_line_end_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="one line"):
        write_event(b"", id=bad)
    with pytest.raises(ValueError, match="one line"):
        write_event(b"", event=bad)


def test_id_with_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        write_event(b"", id=b"a\0")


@pytest.mark.parametrize("payload", [b'{"a":1}', b'{"a":\n1}', b'{"a":\r1}'])
def test_entries_are_written_as_events_that_carry_their_epoch_and_number(payload: bytes) -> None:
    assert write_entries(2, 9, [payload, b"{}"]) == (
        write_event(payload, id=b"2-9") + write_event(b"{}", id=b"2-10")
    )


def test_large_payload_is_written_like_a_small_one() -> None:
    large = b'"' + b"x" * 100_000 + b'"'
    assert (
        write_entries(2, 5, (b"1", large, b"3"))
        == b"id: 2-5\ndata: 1\n\nid: 2-6\ndata: %b\n\nid: 2-7\ndata: 3\n\n" % large
    )
