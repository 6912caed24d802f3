"""The log and its cursors: numbering, bounds, trimming, refusals, rendering."""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.core.entries import EndBody, Position
from holdfast.core.log import ENTRY_OVERHEAD, Cursor, Log
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.dialects.chat import CHAT
from holdfast.errors import AheadOfLog, LogTrimmed, UnknownEpoch

END = EndBody("completed")
PAYLOAD = b'{"status":"completed"}'


def new_log(entries: int = 0, *, size: int = 10, is_ended: bool = False, **options: Any) -> Log:
    """A log whose entries are `size` bytes each."""
    log = Log("st_1", **{"max_bytes": 1_000_000, **options})
    log.append([b"%0*d" % (size, 10 ** (size - 1) + i) for i in range(entries)])
    if is_ended:
        log.seal(END)
    return log


def read_all(cursor: Cursor, max_bytes: int = 1000) -> list[dict[str, Any]]:
    messages = []
    while (message := cursor.read(SESSION_FRAMING, max_bytes)) is not None:
        messages.append(json.loads(message))
    return messages


def seqs(messages: list[dict[str, Any]]) -> list[int]:
    """The sequence numbers of all entries in order, the end's included."""
    found: list[int] = []
    for message in messages:
        count = len(message["data"]) if message["type"] == "events" else 1
        found += range(message["seq"], message["seq"] + count)
    return found


# -- appending ------------------------------------------------------------------------------------------


def test_entries_are_counted_with_their_overhead() -> None:
    log = Log("st_1", max_bytes=100)
    assert log.append([b"12", b"3"]) == 3 + 2 * ENTRY_OVERHEAD
    assert log.append([]) == 0
    assert (log.first, log.next, log.bytes) == (0, 2, 3 + 2 * ENTRY_OVERHEAD)


def test_log_at_its_bound_still_takes_entries() -> None:
    log = Log("st_1", max_bytes=ENTRY_OVERHEAD + 2)
    log.append([b"1"])
    log.append([b"2"])
    assert log.bytes > log.max_bytes
    log.append([b"3"])
    assert log.next == 3


def test_seal_is_the_last_entry() -> None:
    log = new_log(2)
    assert log.end is None
    assert log.seal(END) == len(PAYLOAD) + ENTRY_OVERHEAD
    assert (log.next, log.end) == (3, END)


def test_append_to_a_sealed_log_raises() -> None:
    log = new_log(is_ended=True)
    with pytest.raises(RuntimeError, match="sealed"):
        log.append([b"1"])
    with pytest.raises(RuntimeError, match="sealed"):
        log.seal(END)
    assert log.next == 1


# -- reading --------------------------------------------------------------------------------------------


def test_cursor_reads_all_entries_then_waits() -> None:
    log = new_log(3)
    cursor = log.cursor()
    assert cursor.is_ready
    assert read_all(cursor) == [
        {"type": "events", "stream": "st_1", "seq": 0, "data": [1000000000, 1000000001, 1000000002]}
    ]
    assert not cursor.is_ready
    assert not cursor.is_done
    log.append([b'{"x":1}'])
    assert cursor.read(SESSION_FRAMING, 1000) == b'{"type":"event","stream":"st_1","seq":3,"data":{"x":1}}'


def test_end_is_a_message_of_its_own() -> None:
    cursor = new_log(2, is_ended=True).cursor()
    assert [message["type"] for message in read_all(cursor)] == ["events", "end"]
    assert cursor.is_done
    assert not cursor.is_ready


def test_end_of_an_empty_log_is_read() -> None:
    cursor = new_log(is_ended=True).cursor()
    assert cursor.read(SESSION_FRAMING, 1) == b'{"type":"end","stream":"st_1","seq":0,"status":"completed"}'
    assert cursor.is_done


@pytest.mark.parametrize(("max_bytes", "batches"), [(1, [1] * 7), (10, [1] * 7), (25, [2, 2, 2, 1]), (70, [7])])
def test_batch_keeps_to_max_bytes_but_has_at_least_one_entry(max_bytes: int, batches: list[int]) -> None:
    cursor = new_log(7).cursor()
    messages = read_all(cursor, max_bytes)
    assert [len(message["data"]) if message["type"] == "events" else 1 for message in messages] == batches
    assert seqs(messages) == list(range(7))


def test_batch_that_reaches_the_end_leaves_it_out() -> None:
    cursor = new_log(2, is_ended=True).cursor()
    assert seqs(read_all(cursor, 10)) == [0, 1, 2]


def test_far_behind_reader_reads_in_bounded_turns() -> None:
    cursor = Log("st_1", max_bytes=1).cursor()
    cursor.log.append([b"1"] * 2000)
    lengths = [len(message["data"]) for message in read_all(cursor, 10**9)]
    assert lengths == [512, 512, 512, 464]


def test_readers_at_the_same_place_share_one_rendering() -> None:
    log = new_log(5)
    one, two, late = log.cursor(), log.cursor(), log.cursor(Position(2))
    first, second = one.read(SESSION_FRAMING, 1000), two.read(SESSION_FRAMING, 1000)
    assert second is first
    assert json.loads(late.read(SESSION_FRAMING, 1000) or b"")["seq"] == 3
    log.append([b"7"])
    assert json.loads(one.read(SESSION_FRAMING, 1000) or b"") == {
        "type": "event",
        "stream": "st_1",
        "seq": 5,
        "data": 7,
    }
    # A message that is too large for this reader is not shared with it.
    shared = log.cursor()
    other = log.cursor()
    assert json.loads(shared.read(SESSION_FRAMING, 1000) or b"")["type"] == "events"
    assert json.loads(other.read(SESSION_FRAMING, 10) or b"")["type"] == "event"


def test_single_reader_keeps_no_rendering() -> None:
    log = new_log(5)
    cursor = log.cursor()
    message = cursor.read(SESSION_FRAMING, 1000)
    cursor.close()
    assert log.cursor().read(SESSION_FRAMING, 1000) is not message


@pytest.mark.parametrize("is_ended", [True, False])
def test_log_that_has_ended_or_has_no_readers_keeps_no_rendering(is_ended: bool) -> None:
    """Nobody counts it, and it may be as large as the log."""
    log = new_log(5)
    one, two = log.cursor(), log.cursor()
    message = one.read(SESSION_FRAMING, 1000)
    assert message is not None
    if is_ended:
        log.seal(END)
        assert two.read(SESSION_FRAMING, 1000) == message
        assert log.cursor().read(SESSION_FRAMING, 1000) == message
    else:
        one.close()
        two.close()
    held = [value for name in type(log).__slots__ if type(value := getattr(log, name)) is bytes]
    assert sum(map(len, held)) == len(log.stream)


def test_payloads_include_the_end() -> None:
    cursor = new_log(3, is_ended=True).cursor(Position(0))
    assert cursor.read_payloads(10) == [b"1000000001"]
    assert cursor.read_payloads(1000) == [b"1000000002", PAYLOAD]
    assert cursor.read_payloads(1000) == []
    assert cursor.is_done


# -- credit ---------------------------------------------------------------------------------------------


def test_cursor_stops_when_its_credit_is_spent() -> None:
    cursor = new_log(5).cursor(credit=25)
    assert seqs(read_all(cursor)) == [0, 1, 2]
    assert cursor.credit == -5
    assert not cursor.is_ready
    cursor.credit += 5
    assert not cursor.is_ready
    cursor.credit += 1
    assert cursor.is_ready
    assert seqs(read_all(cursor)) == [3]


def test_batch_keeps_to_the_credit_where_it_can() -> None:
    cursor = new_log(5).cursor(credit=25)
    message = json.loads(cursor.read(SESSION_FRAMING, 1000) or b"")
    assert len(message["data"]) == 2
    assert cursor.credit == 5


def test_single_entry_at_the_live_tail_takes_its_bytes_off_the_credit() -> None:
    log = new_log(1)
    cursor = log.cursor(credit=25)
    assert cursor.read(SESSION_FRAMING, 1000) is not None
    assert cursor.credit == 25 - 10
    assert cursor.read(SESSION_FRAMING, 1000) is None


def test_end_needs_no_credit() -> None:
    log = new_log(2, is_ended=True)
    cursor = log.cursor(credit=20)
    assert seqs(read_all(cursor)) == [0, 1, 2]
    assert cursor.credit == 0
    blocked = log.cursor(Position(0), credit=0)
    assert not blocked.is_ready
    assert blocked.read(SESSION_FRAMING, 1000) is None
    last = log.cursor(Position(1), credit=0)
    assert last.is_ready
    assert seqs(read_all(last)) == [2]


def test_batch_with_credit_leaves_the_end_out() -> None:
    cursor = new_log(2, is_ended=True).cursor(credit=1000)
    first, last = read_all(cursor)
    assert (first["type"], last["type"]) == ("events", "end")
    assert cursor.credit == 980


# -- attaching ------------------------------------------------------------------------------------------


def test_cursor_starts_behind_what_its_reader_has() -> None:
    log = new_log(5)
    assert seqs(read_all(log.cursor(Position(2)))) == [3, 4]
    assert seqs(read_all(log.cursor(Position(4)))) == []


def test_cursor_beyond_the_log_is_refused() -> None:
    log = new_log(5)
    with pytest.raises(AheadOfLog, match="last entry is 4"):
        log.cursor(Position(5))
    with pytest.raises(AheadOfLog):
        new_log().cursor(Position(0))
    assert log.cursors == set()


def test_cursor_before_what_was_trimmed_is_refused() -> None:
    log = new_log(5)
    cursor = log.cursor()
    cursor.read(SESSION_FRAMING, 1000)
    cursor.acknowledge(2)
    log.trim()
    with pytest.raises(LogTrimmed, match="entries 2 to 2 were trimmed; the log now starts at 3"):
        log.cursor(Position(1))
    assert seqs(read_all(log.cursor(Position(2)))) == [3, 4]


@pytest.mark.parametrize("epoch", [None, 1, 2, 3])
def test_cursor_of_a_past_or_present_epoch_is_taken(epoch: int | None) -> None:
    assert new_log(2, epoch=3).cursor(Position(0, epoch)).position == 1


@pytest.mark.parametrize("epoch", [-1, 0, 4])
def test_cursor_of_an_epoch_that_never_was_is_refused(epoch: int) -> None:
    with pytest.raises(UnknownEpoch, match="epoch 3"):
        new_log(2, epoch=3).cursor(Position(0, epoch))


def test_closed_cursor_has_left_the_log() -> None:
    log = new_log(2)
    cursor = log.cursor()
    cursor.close()
    cursor.close()
    assert log.cursors == set()


# -- trimming -------------------------------------------------------------------------------------------


def test_trim_drops_what_every_cursor_has_consumed() -> None:
    log = new_log(5)
    fast, slow = log.cursor(), log.cursor()
    fast.read(SESSION_FRAMING, 1000)
    fast.acknowledge(4)
    assert log.trim() == 0
    slow.read(SESSION_FRAMING, 25)
    slow.acknowledge(1)
    assert log.trim() == 2 * (10 + ENTRY_OVERHEAD)
    assert (log.first, log.next, log.bytes) == (2, 5, 3 * (10 + ENTRY_OVERHEAD))
    assert seqs(read_all(slow)) == [2, 3, 4]
    slow.close()
    assert log.trim() == 3 * (10 + ENTRY_OVERHEAD)
    assert (log.first, log.bytes) == (5, 0)
    assert log.trim() == 0


def test_log_without_readers_keeps_everything() -> None:
    log = new_log(5)
    cursor = log.cursor()
    cursor.read(SESSION_FRAMING, 1000)
    cursor.consume()
    cursor.close()
    assert log.trim() == 0
    assert log.first == 0


def test_trim_keeps_the_end() -> None:
    log = new_log(2, is_ended=True)
    cursor = log.cursor()
    read_all(cursor)
    cursor.consume()
    log.trim()
    assert (log.first, log.next) == (2, 3)
    assert seqs(read_all(log.cursor(Position(1)))) == [2]


def test_acknowledgement_is_cumulative_and_never_beyond_what_was_read() -> None:
    cursor = new_log(5).cursor()
    cursor.acknowledge(3)
    assert cursor.consumed == -1
    cursor.read(SESSION_FRAMING, 25)
    cursor.acknowledge(1)
    cursor.acknowledge(0)
    assert cursor.consumed == 1
    cursor.acknowledge(99)
    assert cursor.consumed == 1
    cursor.read(SESSION_FRAMING, 1000)
    cursor.acknowledge(99)
    assert cursor.consumed == 4


def test_consume_takes_all_that_was_read() -> None:
    cursor = new_log(5).cursor()
    cursor.read(SESSION_FRAMING, 25)
    cursor.consume()
    assert cursor.consumed == 1


# -- epochs ---------------------------------------------------------------------------------------------


def test_newer_epoch_carries_the_log_on() -> None:
    log = new_log(3)
    log.begin_epoch(2)
    log.append([b"4"])
    assert seqs(read_all(log.cursor(Position(2, 1)))) == [3]
    assert seqs(read_all(log.cursor(Position(2, 2)))) == [3]
    assert seqs(read_all(log.cursor(Position(0, 1)))) == [1, 2, 3]


def test_reader_behind_a_takeover_is_written_the_newer_epoch() -> None:
    """Also where another reader was written the same entries before: that rendering is not for it."""
    log = new_log()
    first, second = log.cursor(), log.cursor()
    log.append([b"0", b"1"])
    assert first.read(CHAT.framing, 1000) == b"id: 1-0\ndata: 0\n\nid: 1-1\ndata: 1\n\n"
    log.begin_epoch(2)
    assert second.read(CHAT.framing, 1000) == b"id: 2-0\ndata: 0\n\nid: 2-1\ndata: 1\n\n"


def test_position_of_an_older_epoch_beyond_its_end_is_refused() -> None:
    log = new_log(3)
    log.begin_epoch(2)
    log.append([b"4"])
    log.begin_epoch(5)
    log.append([b"5"])
    with pytest.raises(AheadOfLog, match="epoch 1 ended with entry 2"):
        log.cursor(Position(3, 1))
    with pytest.raises(AheadOfLog, match="epoch 2 ended with entry 3"):
        log.cursor(Position(4, 2))
    assert log.cursor(Position(4, 5)).position == 5


def test_epoch_that_is_not_newer_is_misuse() -> None:
    log = new_log(1, epoch=2)
    with pytest.raises(RuntimeError, match="cannot follow"):
        log.begin_epoch(2)
    log.seal(END)
    with pytest.raises(RuntimeError, match="cannot follow"):
        log.begin_epoch(3)
