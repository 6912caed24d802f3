"""The operations that are timed and counted do what they say, and the check of their counts can fail."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bench.micro import instructions
from bench.micro.hot_path import HotPath
from bench.micro.operation import Operation
from bench.micro.operations import OPERATIONS
from bench.suites import micro


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_checks_its_own_work(name: str) -> None:
    operation = OPERATIONS[name]
    operation.build()(operation.step)


def test_hot_path_that_loses_a_token_fails() -> None:
    path = HotPath(per_read=1)
    path._reads = itertools.chain([b""], path._reads)  # one read brings nothing
    with pytest.raises(RuntimeError, match="as many entries as the provider sent"):
        path.run(path.step)


def test_counts_that_are_no_multiple_of_the_step_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of its step, 16"):
        Operation("odd", "", lambda: lambda _: None, step=16, counted=100)


def test_instructions_beyond_the_tolerance_are_a_fault() -> None:
    baseline = {"log_append": 1000, "gone": 5}
    assert instructions.compare({"log_append": 1000}, {"log_append": 1150}) == []
    faults = instructions.compare(baseline, {"log_append": 1151, "new": 7})
    assert [fault.partition(":")[0] for fault in faults] == ["log_append", "new", "gone"]
    assert "1.15 x its baseline of 1000" in faults[0]


def test_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    instructions.write_baseline(path, {"b": 2, "a": 1})
    python, machine = instructions.here()
    assert instructions.read_baseline(path) == instructions.Baseline(python, machine, {"a": 1, "b": 2})


def test_committed_baseline_has_every_operation_of_ours() -> None:
    baseline = instructions.read_baseline(micro.BASELINE)
    assert set(baseline.instructions) == {name for name in OPERATIONS if not name.startswith("h2_")}


def test_check_against_another_interpreter_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "baseline.json"
    path.write_text('{"python": "CPython 2.7", "machine": "vax", "instructions": {}}')
    assert micro.check(path) == 0
    assert "skipped: the baseline is of CPython 2.7 on vax" in capsys.readouterr().out
