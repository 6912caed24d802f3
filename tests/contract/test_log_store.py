"""The contract of `LogStore`. The suite waits for answers: they may come in the same turn or much later."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from holdfast.core.entries import EndBody, Owner, Position
from holdfast.errors import AheadOfLog, HoldfastError, UnknownEpoch, UnknownStream
from holdfast.streams.store import Attended, Batch, Cancel, Claim, Claimed, LogStore, Signal

OWNER = Owner("acme")
END = EndBody("completed", finish_reason="stop")
DEADLINE = 5.0


async def answer(ask: Callable[..., None], *args: object) -> Any:
    """Ask, and wait for the one answer."""
    future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    ask(*args, future.set_result)  # a second answer would raise
    async with asyncio.timeout(DEADLINE):
        return await future


def new_claim(request_id: str = "r-1", *, owner: Owner = OWNER, digest: bytes = b"d") -> Claim:
    return Claim(owner, request_id, "st_" + secrets.token_hex(16), "demo", digest)


async def claimed(store: LogStore) -> str:
    found = await answer(store.claim, new_claim())
    assert isinstance(found, Claimed)
    return found.claim.stream


async def read_all(store: LogStore, stream: str, after: Position, max_bytes: int = 1 << 20) -> list[Batch]:
    """Read pages until there is no more."""
    batches: list[Batch] = []
    while True:
        batch = await answer(store.read, stream, after, max_bytes)
        assert isinstance(batch, Batch), batch
        if batch.next == batch.first:
            return batches
        assert batch.first == after.seq + 1
        batches.append(batch)
        after = Position(batch.next - 1, batch.epoch)


class Follower:
    """A sink that puts what it gets together, and a way to wait for it."""

    def __init__(self, store: LogStore, stream: str, after: Position = Position(-1)) -> None:  # noqa: B008
        self.next = after.seq + 1
        self.epoch = 0
        self.payloads: list[bytes] = []
        self.end: EndBody | None = None
        self.error: HoldfastError | None = None
        self._changed = asyncio.Event()
        self.subscription = store.follow(stream, after, self)

    def batch_received(self, batch: Batch) -> None:
        assert batch.first <= self.next, "a gap"
        assert batch.epoch >= self.epoch
        self.epoch = batch.epoch
        self.payloads += batch.payloads[self.next - batch.first :]
        self.next = max(self.next, batch.next)
        self.end = self.end or batch.end
        self._changed.set()

    def following_lost(self, error: HoldfastError) -> None:
        self.error = error
        self._changed.set()

    async def ended(self) -> None:
        await self.until(lambda: self.end is not None)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


# -- claims --


async def test_of_several_claims_of_a_request_exactly_one_wins_and_all_get_it(store: LogStore) -> None:
    claims = [new_claim(digest=bytes([number])) for number in range(8)]
    answers = await asyncio.gather(*(answer(store.claim, claim) for claim in claims))
    winners = [found for found in answers if found.is_new]
    assert len(winners) == 1
    assert {found.claim for found in answers} == {winners[0].claim}
    assert winners[0].claim in claims
    assert {found.epoch for found in answers} == {1}


async def test_same_request_id_of_another_owner_is_another_claim(store: LogStore) -> None:
    owners = [Owner("acme"), Owner("acme", "alice"), Owner("acme", "bob"), Owner("other", "alice")]
    answers = [await answer(store.claim, new_claim(owner=owner)) for owner in owners]
    assert all(found.is_new for found in answers)
    for owner, found in zip(owners, answers, strict=True):
        known = await answer(store.find_request, owner, "r-1")
        assert known.claim == found.claim


async def test_claim_is_found_by_stream_and_by_request(store: LogStore) -> None:
    claim = new_claim()
    assert await answer(store.claim, claim) == Claimed(claim, 1, True)
    assert await answer(store.find, claim.stream) == Claimed(claim, 1, False)
    assert await answer(store.find_request, OWNER, "r-1") == Claimed(claim, 1, False)


async def test_nothing_is_found_of_what_nobody_claimed(store: LogStore) -> None:
    await claimed(store)
    assert await answer(store.find, "st_none") is None
    assert await answer(store.find_request, OWNER, "r-2") is None
    assert await answer(store.find_request, Owner("acme", "alice"), "r-1") is None


async def test_released_claim_is_gone_and_its_request_id_free(store: LogStore) -> None:
    stream = await claimed(store)
    store.release(stream, keep=0)
    assert await answer(store.find, stream) is None
    assert await answer(store.find_request, OWNER, "r-1") is None
    again = await answer(store.claim, new_claim())
    assert again.is_new
    assert again.claim.stream != stream


async def test_release_of_an_unknown_stream_and_a_second_release_change_nothing(store: LogStore) -> None:
    stream = await claimed(store)
    store.release("st_none", keep=0)
    store.release(stream, keep=0)
    store.release(stream, keep=0)
    again = await answer(store.claim, new_claim())
    assert again.is_new
    assert await answer(store.find, again.claim.stream) is not None


async def test_released_stream_is_kept_and_forgotten_in_time(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [b"a"], END))
    store.release(stream, keep=0.2)
    assert (await answer(store.find, stream)).claim.stream == stream
    assert (await answer(store.read, stream, Position(-1), 100)).end == END
    async with asyncio.timeout(DEADLINE):
        while await answer(store.find, stream) is not None:  # noqa: ASYNC110 - a store does not tell
            await asyncio.sleep(0.01)
    assert isinstance(await answer(store.read, stream, Position(-1), 100), UnknownStream)
    assert (await answer(store.claim, new_claim())).is_new


# -- writing and reading --


async def test_confirmed_entries_are_read_in_order_and_each_once(store: LogStore) -> None:
    stream = await claimed(store)
    assert await answer(store.write, Batch(stream, 1, 0, [b"0", b"1"])) is None
    assert await answer(store.write, Batch(stream, 1, 2, [b"2"])) is None
    assert await answer(store.write, Batch(stream, 1, 3, [b"3"], END)) is None
    batches = await read_all(store, stream, Position(-1))
    assert [payload for batch in batches for payload in batch.payloads] == [b"0", b"1", b"2", b"3"]
    assert [batch.end for batch in batches if batch.end is not None] == [END]
    assert batches[-1].end == END
    assert {(batch.stream, batch.epoch) for batch in batches} == {(stream, 1)}


async def test_writes_that_do_not_wait_for_each_other_are_stored_in_order(store: LogStore) -> None:
    stream = await claimed(store)
    batches = [Batch(stream, 1, number, [b"%d" % number]) for number in range(20)]
    assert set(await asyncio.gather(*(answer(store.write, batch) for batch in batches))) == {None}
    (batch,) = await read_all(store, stream, Position(-1))
    assert list(batch.payloads) == [b"%d" % number for number in range(20)]


async def test_end_alone_is_stored(store: LogStore) -> None:
    stream = await claimed(store)
    assert await answer(store.write, Batch(stream, 1, 0, [], END)) is None
    (batch,) = await read_all(store, stream, Position(-1))
    assert (batch.first, list(batch.payloads), batch.end) == (0, [], END)


async def test_batch_that_was_stored_before_changes_nothing(store: LogStore) -> None:
    stream = await claimed(store)
    for batch in (
        Batch(stream, 1, 0, [b"0", b"1"]),
        Batch(stream, 1, 0, [b"0", b"1"]),
        Batch(stream, 1, 1, [b"1"]),
        Batch(stream, 1, 1, [b"1", b"2"]),  # a part of it is new
        Batch(stream, 1, 2, [b"2", b"3"], END),
        Batch(stream, 1, 2, [b"2", b"3"], END),
        Batch(stream, 1, 4, [], END),
    ):
        assert await answer(store.write, batch) is None
    (batch,) = await read_all(store, stream, Position(-1))
    assert (list(batch.payloads), batch.end) == ([b"0", b"1", b"2", b"3"], END)


async def test_batch_that_would_leave_a_gap_is_refused(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [b"0"]))
    assert isinstance(await answer(store.write, Batch(stream, 1, 2, [b"2"])), HoldfastError)
    assert isinstance(await answer(store.write, Batch(stream, 1, 2, [], END)), HoldfastError)
    (batch,) = await read_all(store, stream, Position(-1))
    assert (list(batch.payloads), batch.end) == ([b"0"], None)


async def test_nothing_is_written_behind_the_end(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [b"0"], END))
    for late in (Batch(stream, 1, 2, [b"2"]), Batch(stream, 1, 2, [], END)):
        assert isinstance(await answer(store.write, late), HoldfastError)
    (batch,) = await read_all(store, stream, Position(-1))
    assert (list(batch.payloads), batch.end) == ([b"0"], END)


async def test_write_to_an_unknown_stream_is_refused(store: LogStore) -> None:
    assert isinstance(await answer(store.write, Batch("st_none", 1, 0, [b"0"])), UnknownStream)


async def test_read_returns_pages_of_about_the_size_and_at_least_one_entry(store: LogStore) -> None:
    stream = await claimed(store)
    payloads = [b"%05d" % number for number in range(700)]
    await answer(store.write, Batch(stream, 1, 0, payloads, END))
    batches = await read_all(store, stream, Position(-1), 100)
    assert all(sum(map(len, batch.payloads)) <= 100 for batch in batches)
    assert [payload for batch in batches for payload in batch.payloads] == payloads
    assert batches[-1].end == END
    batches = await read_all(store, stream, Position(-1), 1)
    assert [len(batch.payloads) for batch in batches][:700] == [1] * 700


async def test_read_continues_after_a_position_and_refuses_one_that_is_ahead(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [b"0", b"1", b"2"]))
    (batch,) = await read_all(store, stream, Position(1, 1))
    assert (batch.first, list(batch.payloads)) == (2, [b"2"])
    assert await read_all(store, stream, Position(2, 1)) == []
    assert isinstance(await answer(store.read, stream, Position(3, 1), 100), AheadOfLog)
    assert isinstance(await answer(store.read, stream, Position(1, 2), 100), UnknownEpoch)
    assert isinstance(await answer(store.read, "st_none", Position(-1), 100), UnknownStream)


# -- following --


async def test_follower_gets_what_is_stored_and_what_will_be(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [b"0", b"1"]))
    follower = Follower(store, stream)
    await follower.until(lambda: follower.next == 2)
    await answer(store.write, Batch(stream, 1, 2, [b"2"]))
    await answer(store.write, Batch(stream, 1, 3, [b"3"], END))
    await follower.until(lambda: follower.end is not None)
    assert (follower.payloads, follower.end, follower.epoch) == ([b"0", b"1", b"2", b"3"], END, 1)


async def test_follower_begins_behind_its_position(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [b"0", b"1", b"2"]))
    follower = Follower(store, stream, Position(1, 1))
    await follower.until(lambda: follower.next == 3)
    assert follower.payloads == [b"2"]


async def test_follower_of_a_long_log_gets_all_of_it(store: LogStore) -> None:
    stream = await claimed(store)
    payloads = [b"%d" % number for number in range(2000)]
    await answer(store.write, Batch(stream, 1, 0, payloads, END))
    follower = Follower(store, stream)
    await follower.until(lambda: follower.end is not None)
    assert follower.payloads == payloads


async def test_each_follower_gets_everything(store: LogStore) -> None:
    stream = await claimed(store)
    followers = [Follower(store, stream) for _ in range(3)]
    for number in range(5):
        await answer(store.write, Batch(stream, 1, number, [b"%d" % number]))
        followers.append(Follower(store, stream))
    await answer(store.write, Batch(stream, 1, 5, [], END))
    for follower in followers:
        await follower.ended()
        assert follower.payloads == [b"%d" % number for number in range(5)]


async def test_nothing_comes_after_a_subscription_was_closed(store: LogStore) -> None:
    stream = await claimed(store)
    closed, open_ = Follower(store, stream), Follower(store, stream)
    closed.subscription.close()
    closed.subscription.close()
    await answer(store.write, Batch(stream, 1, 0, [b"0"], END))
    await open_.until(lambda: open_.end is not None)
    assert (closed.payloads, closed.end) == ([], None)


async def test_follower_of_an_unknown_stream_is_told(store: LogStore) -> None:
    follower = Follower(store, "st_none")
    await follower.until(lambda: follower.error is not None)
    assert isinstance(follower.error, UnknownStream)


async def test_follower_of_a_released_stream_is_told(store: LogStore) -> None:
    stream = await claimed(store)
    follower = Follower(store, stream)
    store.release(stream, keep=0)
    await follower.until(lambda: follower.error is not None)
    assert isinstance(follower.error, UnknownStream)


# -- epochs --


async def test_of_two_that_take_over_one_wins(store: LogStore) -> None:
    stream = await claimed(store)
    assert sorted(await asyncio.gather(*(answer(store.take_over, stream, 2) for _ in range(4)))) == [
        False,
        False,
        False,
        True,
    ]
    assert await answer(store.take_over, stream, 2) is False
    assert await answer(store.take_over, stream, 3) is True
    assert (await answer(store.find, stream)).epoch == 3
    assert (await answer(store.find_request, OWNER, "r-1")).epoch == 3
    assert (await answer(store.claim, new_claim())).epoch == 3


async def test_ended_stream_is_not_taken_over(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [], END))
    assert await answer(store.take_over, stream, 2) is False
    assert isinstance(await answer(store.take_over, "st_none", 2), UnknownStream)


async def test_who_lost_a_stream_cannot_write_to_it(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [b"0"]))
    assert await answer(store.take_over, stream, 2) is True
    assert isinstance(await answer(store.write, Batch(stream, 1, 1, [b"lost"])), UnknownEpoch)
    assert isinstance(await answer(store.write, Batch(stream, 1, 1, [], END)), UnknownEpoch)
    assert isinstance(await answer(store.write, Batch(stream, 3, 1, [b"early"])), UnknownEpoch)
    assert await answer(store.write, Batch(stream, 2, 1, [b"1"], END)) is None
    batches = await read_all(store, stream, Position(-1))
    assert [payload for batch in batches for payload in batch.payloads] == [b"0", b"1"]


async def test_batch_holds_entries_of_the_one_epoch_in_which_they_were_written(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [b"0", b"1"]))
    await answer(store.take_over, stream, 2)
    await answer(store.write, Batch(stream, 2, 2, [b"2"]))
    await answer(store.take_over, stream, 3)
    await answer(store.take_over, stream, 4)
    await answer(store.write, Batch(stream, 4, 3, [b"3"], END))
    batches = await read_all(store, stream, Position(-1))
    assert [(batch.epoch, batch.first, list(batch.payloads)) for batch in batches] == [
        (1, 0, [b"0", b"1"]),
        (2, 2, [b"2"]),
        (4, 3, [b"3"]),
    ]
    follower = Follower(store, stream)
    await follower.until(lambda: follower.end is not None)
    assert follower.payloads == [b"0", b"1", b"2", b"3"]


async def test_followers_learn_of_a_takeover_before_the_first_entry_of_its_epoch(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [b"0"]))
    follower = Follower(store, stream)
    await follower.until(lambda: follower.next == 1)
    await answer(store.take_over, stream, 2)
    await follower.until(lambda: follower.epoch == 2)
    assert follower.payloads == [b"0"]


async def test_position_of_an_earlier_epoch_is_valid_up_to_its_last_entry(store: LogStore) -> None:
    stream = await claimed(store)
    await answer(store.write, Batch(stream, 1, 0, [b"0", b"1"]))
    await answer(store.take_over, stream, 2)
    await answer(store.write, Batch(stream, 2, 2, [b"2", b"3"]))
    (batch,) = await read_all(store, stream, Position(1, 1))
    assert list(batch.payloads) == [b"2", b"3"]
    assert isinstance(await answer(store.read, stream, Position(2, 1), 100), AheadOfLog)


# -- signals --


async def test_owner_receives_what_is_signalled_in_order(store: LogStore) -> None:
    stream = await claimed(store)
    received: asyncio.Queue[Signal] = asyncio.Queue()
    listening = store.listen(stream, received.put_nowait)
    await answer(store.find, stream)  # what was asked before has reached the store
    store.signal(stream, Attended(20.0))
    store.signal(stream, Cancel("enough"))
    async with asyncio.timeout(DEADLINE):
        assert [await received.get(), await received.get()] == [Attended(20.0), Cancel("enough")]
    listening.close()
    listening.close()
    store.signal(stream, Cancel())
    await answer(store.find, stream)
    await answer(store.find, stream)
    assert received.empty()


async def test_signal_without_an_owner_is_lost(store: LogStore) -> None:
    stream = await claimed(store)
    store.signal(stream, Cancel())
    store.signal("st_none", Cancel())
    received: list[Signal] = []
    store.listen(stream, received.append)
    await answer(store.find, stream)
    await answer(store.find, stream)
    assert received == []


async def test_former_owner_that_stops_listening_does_not_silence_the_new_one(store: LogStore) -> None:
    stream = await claimed(store)
    received: asyncio.Queue[Signal] = asyncio.Queue()
    former = store.listen(stream, lambda signal: None)
    await answer(store.take_over, stream, 2)
    store.listen(stream, received.put_nowait)
    await answer(store.find, stream)
    former.close()
    await answer(store.find, stream)
    store.signal(stream, Cancel())
    async with asyncio.timeout(DEADLINE):
        assert await received.get() == Cancel()


# -- a request id that stands for nothing any more --


async def test_freed_request_id_is_claimed_anew_and_the_older_stream_stays(store: LogStore) -> None:
    older = await claimed(store)
    store.free_request(older)
    newer = await answer(store.claim, new_claim(digest=b"another"))
    assert (newer.is_new, newer.claim.digest) == (True, b"another")
    again = await answer(store.claim, new_claim())
    assert (again.is_new, again.claim.stream) == (False, newer.claim.stream)
    assert (await answer(store.find, older)).claim.stream == older
    assert (await answer(store.find_request, OWNER, "r-1")).claim.stream == newer.claim.stream


async def test_end_of_the_older_stream_leaves_the_freed_request_id_to_the_newer(store: LogStore) -> None:
    older = await claimed(store)
    store.free_request(older)
    newer = await claimed(store)
    store.free_request(older)  # once more
    store.release(older, keep=0)
    assert await answer(store.find, older) is None
    assert (await answer(store.find_request, OWNER, "r-1")).claim.stream == newer


async def test_freeing_the_request_of_an_unknown_stream_does_nothing(store: LogStore) -> None:
    stream = await claimed(store)
    store.free_request("st_unknown")
    assert (await answer(store.find_request, OWNER, "r-1")).claim.stream == stream
