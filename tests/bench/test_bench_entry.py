"""The one command: what it runs, what a failure does, and what an interrupted run leaves behind."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

import bench.__main__ as entry
from bench import record
from bench.leftovers import end_descendants
from bench.results import Case, Options, SuiteResult


def suite(name: str, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    def run(options: Options) -> SuiteResult:
        if error is not None:
            raise error
        return SuiteResult(name, f"Suite {name}", "python -m bench", [Case({"n": 1}, {"ns": [1.0]})])

    module = types.ModuleType(f"bench.suites.{name}")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("error", [RuntimeError("it lost a token"), SystemExit("it lost a token")])
def test_suite_that_fails_does_not_stop_the_others(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry, "SUITES", ("bad", "good"))
    suite("bad", monkeypatch, error)
    suite("good", monkeypatch)
    assert entry.run_suites(["bad", "good"], Options(), tmp_path) == 1
    assert list(record.read_all(tmp_path)) == ["good"]
    report = (tmp_path / "report.md").read_text()
    assert "## Suite good" in report
    assert "**failed** - bad" in report
    assert "it lost a token" in report
    assert "good: Suite good" in capsys.readouterr().out


def test_failed_suite_is_not_reported_from_an_older_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(entry, "SUITES", ("good",))
    suite("good", monkeypatch)
    assert entry.run_suites(["good"], Options(), tmp_path) == 0
    suite("good", monkeypatch, RuntimeError("not today"))
    assert entry.run_suites(["good"], Options(), tmp_path) == 1
    assert "## Suite good" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sclae"], "there is no suite 'sclae'; there are"),
        (["micro", "--windows", "4"], "a spread takes at least 5, not 4"),
        (["micro", "--seconds", "0"], "must be above 0, not 0"),
        (["scale", "--check"], "belong to the suite micro"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        entry.parse(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_comparison_with_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.compare(tmp_path, tmp_path) == 1
    assert "there is no result" in capsys.readouterr().err


def test_run_compared_with_itself_is_reproduced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    suite("good", monkeypatch)
    entry.run_suites(["good"], Options(), tmp_path)
    assert entry.compare(tmp_path, tmp_path) == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find processes")
def test_processes_below_this_one_are_ended_with_their_children() -> None:
    # Both hold the pipe: its end is reached when neither lives.
    below = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])"
    program = f"{below}; print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert end_descendants() == [grandchild, child.pid]
        assert child.stdout.read() == ""
