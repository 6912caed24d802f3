"""A short run with real processes: every kind of client, and one fault of each kind that ends something."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from chaos.clients.worker import load
from chaos.journal import Journal, StreamJournal, read
from chaos.schedule import KINDS, make_schedule, request_plan

ROOT = Path(__file__).resolve().parents[2]
FAULTS = [
    {"at": 0.5, "target": "client_link", "kind": "cut"},
    {"at": 0.9, "target": "client_link", "kind": "reset_at", "direction": "down", "offset": 2000, "count": 3},
    {"at": 1.3, "target": "client_link", "kind": "reset"},
    {"at": 1.6, "target": "client", "kind": "kill", "name": "session", "seconds": 0.1},
    {"at": 2.0, "target": "provider_link", "kind": "cut"},
    {"at": 2.8, "target": "gateway", "kind": "kill", "seconds": 0.1},
]


@pytest.mark.timeout(150)
async def test_short_run_loses_doubles_and_reorders_nothing(tmp_path: Path) -> None:
    schedule = tmp_path / "schedule.json"
    schedule.write_text(json.dumps({"seed": 145, "seconds": 4.0, "width": 1, "faults": FAULTS}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chaos", "--schedule", schedule, "--out", tmp_path / "run"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(140):
            output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    sums = re.fullmatch(
        r"chaos: (\d+) streams, (\d+) tokens; lost 0, doubled 0, reordered 0, billed twice 0, unexplained 0; "
        r"told lost with their process \d+",
        output.splitlines()[-1],
    )
    assert sums is not None, output
    assert int(sums[1]) >= len(KINDS)
    assert int(sums[2]) >= 20 * len(KINDS)
    assert process.returncode == 0, output
    assert "gateway kill 1" in output, output


def test_worker_goes_on_where_a_killed_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    journal = Journal(path)
    streams = {}
    for index in (0, 2, 1):  # pauses differ, so requests do not begin in the order of their numbers
        plan = request_plan(3, "sdk", index)
        streams[index] = StreamJournal(journal, plan["id"])
        streams[index].begin("sdk", plan)
    streams[0].end("completed")
    streams[1].identify("st_1")
    streams[1].read_from(-1)
    streams[1].got(0, ["", "amber0"])
    with path.open("ab") as file:
        file.write(b'{"at":1,"event":"got","req')
    journal.close()
    journal = Journal(path)
    unfinished, index = load(path, journal)
    unfinished[1][1].end("completed")
    journal.close()
    assert [record["event"] for record in read(path)][-2:] == ["got", "end"]
    assert index == 3
    assert [(plan["index"], state.stream_id, state.after) for plan, state in unfinished] == [
        (2, None, -1),
        (1, "st_1", 1),
    ]


def test_schedule_follows_from_its_seed() -> None:
    assert make_schedule(3, 60, 4) == make_schedule(3, 60, 4)
    assert make_schedule(3, 60, 4) != make_schedule(4, 60, 4)
    assert request_plan(3, "sdk", 5) == request_plan(3, "sdk", 5)


def test_schedule_can_be_written_and_read() -> None:
    schedule = make_schedule(3, 600, 4)
    assert json.loads(json.dumps(schedule)) == schedule


def test_ten_minutes_have_every_kind_of_fault() -> None:
    kinds = {(fault["target"], fault["kind"]) for fault in make_schedule(1, 600, 4)["faults"]}
    assert len(kinds) == 17
