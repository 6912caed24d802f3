"""Loads that are cut and come back, idle sessions, and answers that are read once, against a real gateway."""

from __future__ import annotations

import asyncio

import pytest

from holdfast_tools.bench.countdown import Countdown
from holdfast_tools.bench.plan import Pace, Plan, Transport
from holdfast_tools.bench.tally import Tally
from holdfast_tools.bench.workers import Workers, started
from tests.support.gateway_path import GatewayPath, MakePath

TOKENS = 200
PACE = Pace(interval_ms=4, ttft_ms=0)


async def run(plan: Plan, *, cuts: int, away: float = 0.02, processes: int = 1) -> tuple[Tally, list[Tally]]:
    """Cut the load some times on its way and read it to its end; return the sum, and the tally of each cut."""

    def work() -> tuple[Tally, list[Tally]]:
        with started(plan, processes=processes) as workers:
            total = workers.wait_until_ready()
            tallies = [workers.cut(away=away) for _ in range(cuts)]
            for tally in (*tallies, workers.finish()):
                total.merge(tally)
        return total, tallies

    return await asyncio.to_thread(work)


@pytest.mark.parametrize("transport", ["ws", "sse"])
async def test_streams_that_are_cut_go_on_where_they_were_cut(path: GatewayPath, transport: Transport) -> None:
    plan = Plan(
        url=f"{path.url}/v1",
        transport=transport,
        streams=4,
        tokens=TOKENS,
        pace=PACE,
        spread_ms=40,
        once=True,
        resumable=True,
    )
    total, cuts = await run(plan, cuts=3, processes=2)
    assert (total.faults, total.failed, total.errors) == ({}, 0, [])
    assert (total.answers, total.tokens) == (4, 4 * TOKENS)
    assert [tally.resume.total for tally in cuts] == [4, 4, 4]
    assert total.opened == 4 * 4
    assert total.first_token.total == 4


async def test_session_with_several_streams_brings_all_of_them_back(path: GatewayPath) -> None:
    plan = Plan(url=f"{path.url}/v1", streams=6, sockets=2, tokens=TOKENS, pace=PACE, once=True)
    total, (cut,) = await run(plan, cuts=1)
    assert (total.faults, total.failed, total.answers) == ({}, 0, 6)
    assert (cut.opened, cut.resume.total) == (2, 6)


@pytest.mark.parametrize("transport", ["ws", "sse"])
async def test_answer_that_is_over_before_its_cut_is_a_failure(path: GatewayPath, transport: Transport) -> None:
    plan = Plan(
        url=f"{path.url}/v1",
        transport=transport,
        tokens=2,
        pace=Pace(interval_ms=0, ttft_ms=0),
        once=True,
        resumable=True,
    )

    def work() -> tuple[Tally, Tally]:
        with started(plan) as workers:
            workers.wait_until_ready()
            return workers.finish(), workers.cut()

    _, cut = await asyncio.to_thread(work)
    assert cut.failed == 1
    assert "too short" in cut.errors[0]


async def test_stream_that_does_not_end_in_time_is_a_failure(path: GatewayPath) -> None:
    plan = Plan(url=f"{path.url}/v1", tokens=TOKENS, pace=Pace(interval_ms=1000, ttft_ms=0), once=True)

    def work() -> Tally:
        with started(plan) as workers:
            workers.wait_until_ready()
            return workers.finish(timeout=0.05)

    tally = await asyncio.to_thread(work)
    assert tally.failed == 1
    assert tally.errors == ["1 streams had not ended after 0.05 s"]


async def test_streams_that_are_cut_while_answers_follow_each_other_lose_nothing(path: GatewayPath) -> None:
    plan = Plan(url=f"{path.url}/v1", streams=8, sockets=2, tokens=5, pace=Pace(interval_ms=1, ttft_ms=1))

    def work() -> Tally:
        with started(plan) as workers:
            total = workers.wait_until_ready()
            for _ in range(10):
                total.merge(workers.cut())
        return total

    total = await asyncio.to_thread(work)
    assert (total.faults, total.failed) == ({}, 0), total.errors


async def test_idle_sessions_answer_pings_and_come_back_within_their_time(make_path: MakePath) -> None:
    path = await make_path(server={"ping_interval": 0.1, "ping_timeout": 0.1})
    plan = Plan(url=f"{path.url}/v1", streams=0, idle=5, addresses=3)

    def work() -> tuple[Tally, Tally, Tally, Tally, int]:
        with started(plan, processes=2) as workers:
            first, more = workers.wait_until_ready(), workers.add(idle=4)
            _, window = workers.windows(1, 0.3)
            return first, more, window, workers.cut(over=0.1), path.gateway.peers.statistics().conversations

    first, more, window, cut, left = await asyncio.to_thread(work)
    assert left == 9
    assert (first.opened, first.setup.total, more.opened) == (5, 5, 4)
    assert window.pings >= 9
    assert (cut.opened, cut.setup.total, cut.failed, cut.errors) == (9, 9, 0, [])
    assert cut.seconds >= 0.05  # the last ones of each process come when most of the time is over


async def test_added_streams_begin_before_the_answer_comes(path: GatewayPath) -> None:
    plan = Plan(url=f"{path.url}/v1", streams=0, tokens=TOKENS, pace=PACE)

    def work() -> Tally:
        with started(plan) as workers:
            workers.wait_until_ready()
            return workers.add(streams=6, sockets=2)

    tally = await asyncio.to_thread(work)
    assert (tally.opened, tally.first_token.total, tally.failed) == (2, 6, 0)


def test_load_that_polls_cannot_be_cut() -> None:
    plan = Plan(url="http://127.0.0.1:1/v1", transport="long-poll")
    with pytest.raises(ValueError, match="long-poll holds no connection"):
        Workers(plan, []).cut()


async def test_gateway_that_is_gone_when_the_load_comes_back_is_a_failure(make_path: MakePath) -> None:
    path = await make_path()
    plan = Plan(url=f"{path.url}/v1", streams=0, idle=2)

    def work(loop: asyncio.AbstractEventLoop) -> Tally:
        with started(plan) as workers:
            workers.wait_until_ready()
            asyncio.run_coroutine_threadsafe(path.gateway.aclose(), loop).result()
            return workers.cut()

    tally = await asyncio.to_thread(work, asyncio.get_running_loop())
    assert tally.failed >= 2


async def test_countdown_waits_for_the_last_and_no_longer() -> None:
    countdown = Countdown()
    await countdown.wait(0.01)  # nothing is expected
    countdown.expect(2)
    countdown.count()
    with pytest.raises(TimeoutError):
        await countdown.wait(0.01)
    countdown.count()
    countdown.count()  # of no effect
    await countdown.wait(0.01)
    assert countdown.left == 0
