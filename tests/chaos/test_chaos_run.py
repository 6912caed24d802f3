"""A short run with real processes: every kind of client, and one fault of each kind that ends something."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest
from chaos.schedule import KINDS, make_schedule, request_plan

ROOT = Path(__file__).resolve().parents[2]
FAULTS = [
    {"at": 1.0, "target": "client_link", "kind": "cut"},
    {"at": 1.5, "target": "client_link", "kind": "reset_at", "direction": "down", "offset": 2000, "count": 3},
    {"at": 2.0, "target": "client_link", "kind": "reset"},
    {"at": 2.5, "target": "client", "kind": "kill", "name": "session", "seconds": 0.1},
    {"at": 3.0, "target": "provider_link", "kind": "cut"},
    {"at": 4.0, "target": "gateway", "kind": "kill", "seconds": 0.1},
]


@pytest.mark.timeout(150)
async def test_short_run_loses_doubles_and_reorders_nothing(tmp_path):
    schedule = tmp_path / "schedule.json"
    schedule.write_text(json.dumps({"seed": 11, "seconds": 6.0, "width": 1, "faults": FAULTS}))
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


def test_schedule_follows_from_its_seed():
    assert make_schedule(3, 60, 4) == make_schedule(3, 60, 4)
    assert make_schedule(3, 60, 4) != make_schedule(4, 60, 4)
    assert request_plan(3, "sdk", 5) == request_plan(3, "sdk", 5)


def test_schedule_can_be_written_and_read():
    schedule = make_schedule(3, 600, 4)
    assert json.loads(json.dumps(schedule)) == schedule


def test_ten_minutes_have_every_kind_of_fault():
    kinds = {(fault["target"], fault["kind"]) for fault in make_schedule(1, 600, 4)["faults"]}
    assert len(kinds) == 17
