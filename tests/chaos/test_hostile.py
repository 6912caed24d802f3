"""The judge of the hostile suite finds each planted fault, and does not take an attack that did not happen."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos.checker import Verdict
from chaos.hostile import command
from chaos.hostile.attack import From, attack
from chaos.hostile.catalogue import ATTACKS, BY_NAME, SAMPLE
from chaos.hostile.honest import PACE_MS
from chaos.hostile.verdict import MIB, Held, Row, Times, expanded, judge, percentile
from chaos.hostile.wire import TEXT, Arena, Tally, frame

ROOT = Path(__file__).resolve().parents[2]
TALLY: dict[str, Any] = {"connections": 5, "sent": 10_000, "received": 0, "lost": 0, "notes": {"401": 3}}
START = Held(50 * MIB, 12, {"connections": 1, "streams that are kept": 0})


@attack("planted", From.STRANGER, connections=2, sent=5_000, proofs=("401",))
async def planted(arena: Arena) -> None:
    """Do nothing."""


other = replace(planted, name="other")


def row(**fields: Any) -> Row:
    """A row in which all is as it should be, but for what is given."""
    times = Times(gaps=[20.0] * 1000, probes=[1.0] * 1900, count=900, seconds=10.0, stolen=0.0)
    whole: dict[str, Any] = {
        "name": "planted",
        "attacks": [planted],
        "seconds": 10.0,
        "budget": 256 * MIB,
        "quiet_probe": 1.0,
        "times": times,
        "streams": Verdict(streams=2, tokens=1000),
        "tallies": {"planted": TALLY},
        "start": START,
        "peak": 100 * MIB,
        "after": START,
    }
    return Row(**{**whole, **fields})


def times(**fields: Any) -> Times:
    return replace(row().times, **fields)


def the_only(findings: list[str]) -> str:
    assert len(findings) == 1, findings
    return findings[0]


def test_row_in_which_all_held_has_no_findings() -> None:
    assert judge(row()) == []


# -- figures -------------------------------------------------------------------------------------------


def test_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert percentile([7.0], 0.5) == 7.0


def test_percentile_of_nothing_is_infinite() -> None:
    assert math.isinf(percentile([], 0.99))


def test_stall_counts_for_each_token_that_it_held() -> None:
    assert expanded([20.0, 100.0], 20.0) == [20.0, 100.0, 80.0, 60.0, 40.0, 20.0]


def test_gap_of_less_than_two_paces_counts_once() -> None:
    assert expanded([20.0, 39.9], 20.0) == [20.0, 39.9]


def test_one_stall_of_seconds_is_seen_among_many_tokens() -> None:
    """Ten thousand tokens, one stall of five seconds: it is one gap, but 250 tokens were late."""
    assert percentile(expanded([20.0] * 10_000 + [5000.0], PACE_MS), 0.99) > 1000


# -- what honest callers suffer ------------------------------------------------------------------------


def test_late_tokens_are_found() -> None:
    late = times(gaps=[20.0] * 1000 + [60.0] * 20)
    assert the_only(judge(row(times=late))) == "honest gap p99 60 ms, at most 50"


def test_late_probes_are_found_beyond_their_quiet_value() -> None:
    late = times(probes=[1.0] * 1000 + [60.0] * 20)
    assert the_only(judge(row(times=late))) == "probe p99 60 ms, quiet 1.0"
    assert judge(row(times=late, quiet_probe=11.0)) == []


def test_refused_probe_is_found() -> None:
    assert "door: status 503" in the_only(judge(row(times=times(refused=["door: status 503"]))))


@pytest.mark.parametrize("what", ["lost", "doubled", "reordered", "unexplained"])
def test_stream_that_is_not_whole_is_found(what: str) -> None:
    streams = Verdict(streams=2, tokens=1000, findings=[f"{what} 1: st"])
    setattr(streams, what, 1)
    assert the_only(judge(row(streams=streams))) == f"honest streams: {what} 1: st"


# -- what the gateway takes and keeps ------------------------------------------------------------------


def test_memory_beyond_the_budget_is_found() -> None:
    most = START.memory + (256 + 64) * MIB
    assert judge(row(peak=most)) == []
    assert the_only(judge(row(peak=most + MIB))) == "memory +321 MiB at its peak, at most +320"


def test_memory_that_stays_is_found() -> None:
    assert judge(row(after=replace(START, memory=62 * MIB))) == []
    assert the_only(judge(row(after=replace(START, memory=63 * MIB)))) == "memory 63 MiB afterwards, 50 before"
    large = replace(START, memory=1000 * MIB)
    assert judge(row(start=large, peak=1000 * MIB, after=replace(large, memory=1100 * MIB))) == []
    assert len(judge(row(start=large, peak=1000 * MIB, after=replace(large, memory=1101 * MIB)))) == 1


def test_descriptor_that_stays_open_is_found() -> None:
    assert "descriptors 13" in the_only(judge(row(after=replace(START, descriptors=13))))


@pytest.mark.parametrize("name", ["connections", "streams that are kept", "streams of key mallory"])
def test_use_that_was_not_given_back_is_found(name: str) -> None:
    after = replace(START, uses={**START.uses, name: 3})
    assert f"left over: {name} 3" in the_only(judge(row(after=after)))


def test_gateway_that_is_gone_is_found() -> None:
    assert the_only(judge(row(after=None))) == "the gateway does not answer afterwards"


def test_fault_in_the_log_is_found() -> None:
    assert "Traceback" in the_only(judge(row(faults=["Traceback (most recent call last):"])))


# -- what would show nothing ---------------------------------------------------------------------------


def test_attack_that_could_not_connect_fails() -> None:
    assert "had 0 connections" in the_only(judge(row(tallies={"planted": {**TALLY, "connections": 0}})))


def test_attack_that_sent_too_little_fails() -> None:
    assert "sent 10 bytes" in the_only(judge(row(tallies={"planted": {**TALLY, "sent": 10}})))


def test_attack_that_never_met_its_target_fails() -> None:
    assert "never saw 401" in the_only(judge(row(tallies={"planted": {**TALLY, "notes": {"503": 9}}})))


def test_attack_that_failed_by_its_own_fault_fails() -> None:
    notes = {"401": 1, "broken: ValueError('x')": 1}
    assert (
        the_only(judge(row(tallies={"planted": {**TALLY, "notes": notes}})))
        == "planted is broken: ValueError('x')"
    )


def test_attack_without_a_tally_fails() -> None:
    assert the_only(judge(row(tallies={}))) == "planted did not take place"


def test_one_of_several_attacks_that_never_connected_fails() -> None:
    tallies = {"planted": TALLY, "other": {**TALLY, "connections": 0}}
    assert the_only(judge(row(attacks=[planted, other], tallies=tallies))) == "other has never connected"


def test_honest_callers_that_got_nothing_fail() -> None:
    findings = judge(row(times=times(gaps=[], probes=[], count=0), streams=Verdict()))
    assert len(findings) == 3
    assert "honest streams: there was none" in findings


def test_honest_callers_that_measured_too_seldom_fail() -> None:
    assert "measured 100 times" in the_only(judge(row(times=times(count=100))))


# -- the suite itself ----------------------------------------------------------------------------------


def test_there_are_attacks_of_every_kind_of_guest() -> None:
    assert len(BY_NAME) == len(ATTACKS) >= 30
    assert {each.origin for each in ATTACKS} == set(From)
    assert all(each.does for each in ATTACKS)


def parsed(*arguments: str) -> list[tuple[str, int, float]]:
    args = command._parser().parse_args(arguments)
    return [(name, len(attacks), seconds) for name, attacks, seconds in command.plan(args)]


def test_every_attack_is_played_alone_and_then_all_together() -> None:
    rows = parsed()
    assert [name for name, _, _ in rows] == [*(each.name for each in ATTACKS), "together", "crowds", "tls"]
    assert {seconds for _, _, seconds in rows} == {20.0}


def test_a_minute_has_a_few_attacks_at_a_time_of_each_kind_of_guest() -> None:
    rows = parsed("--minutes", "1")
    assert len(rows) == 4
    assert all(2 <= count <= 5 for _, count, _ in rows)
    assert sum(seconds for _, _, seconds in rows) < 20
    assert {BY_NAME[name].origin for _, names in SAMPLE for name in names} >= {From.STRANGER, From.KEY}
    assert parsed("--minutes", "1", "--only", "garbage")[0][:2] == ("garbage", 1)


@pytest.mark.parametrize(("stolen", "allowance"), [(0.0, 1.0), (0.1, 1.0), (0.55, 2.0), (1.0, 9.0)])
def test_bounds_are_wider_as_far_as_the_gateways_core_was_taken_by_others(stolen: float, allowance: float) -> None:
    assert times(stolen=stolen).allowance == pytest.approx(allowance)
    held = row(times=times(gaps=[50.0 * allowance] * 1000, probes=[50.0 * allowance] * 1000, stolen=stolen))
    assert judge(held) == []
    hurt = row(times=times(gaps=[51.0 * allowance] * 1000, stolen=stolen))
    assert "honest gap" in the_only(judge(hurt))


def test_chosen_attacks_are_played_alone() -> None:
    assert parsed("--only", "garbage", "--seconds", "3") == [("garbage", 1, 3.0)]


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_frame_has_its_length(size: int) -> None:
    made = frame(TEXT, b"x" * size)
    assert made.endswith(b"\0\0\0\0" + b"x" * size)
    extended = 0 if size < 126 else 2 if size < 65536 else 8
    length = made[1] & 0x7F if not extended else int.from_bytes(made[2 : 2 + extended])
    assert (made[0], length, len(made)) == (0x81, size, 6 + extended + size)


async def test_crowd_comes_back_after_it_was_thrown_out() -> None:
    arena, visits = Arena(0, None, False, Tally()), 0

    async def visit() -> None:
        nonlocal visits
        visits += 1
        if visits == 3:
            raise RuntimeError("seen")
        raise ConnectionResetError

    with pytest.raises(ExceptionGroup):
        await arena.crowd(1, visit)
    assert arena.tally.lost == 2


@pytest.mark.timeout(90)
async def test_short_run_measures_and_attacks(tmp_path: Path) -> None:
    """One attack with real processes. Whether the bounds hold is asked where the machine is quiet, not here."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chaos", "--hostile", "--only", "wrong-keys", "--seconds", "1"),
        *("--out", tmp_path / "run"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(80):
            output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    (only,) = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert only["tallies"]["wrong-keys"]["notes"]["401"] > 50, output
    assert only["gap_p99_ms"] is not None, output
    assert only["probe_p99_ms"] is not None, output
    assert "2 streams, 100 tokens; lost 0, doubled 0, reordered 0" in only["streams"], output
    assert only["memory"]["peak"] >= only["memory"]["start"] > 10 * MIB, output
    assert process.returncode == (1 if only["findings"] else 0), output
