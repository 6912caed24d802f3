"""Tables, the Markdown report, the records, and the comparison of two runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import record, report, reproduction
from bench.environment import Environment
from bench.record import Record
from bench.results import Case, Options, Plot, SuiteResult


def result(cost: list[float], *, name: str = "cost", notes: list[str] | None = None) -> SuiteResult:
    cases = [
        Case({"relay": "ws", "streams": 10}, {"cpu_us_per_event": cost, "lost": [0.0] * 5}, notes or []),
        Case(
            {"relay": "nginx", "streams": 1000},
            {"cpu_us_per_event": [17.0], "lost": [0.0]},
            ["not installed", *(notes or [])],
        ),
    ]
    plot = Plot("cost", "Cost", "streams", "us", {"ws": [(10.0, 2.0, 1.0, 3.0)]})
    return SuiteResult(name, "What it costs", "python -m bench cost", cases, [plot], ["on two cores"])


def made(cost: list[float], **of: object) -> Record:
    where = Environment("2026-01-02 03:04", "Linux 6.1 x86_64", "A CPU", 2, 7.7, {"CPython": "3.11.7"})
    return Record(where, Options(), 12.3, result(cost, **of))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1_234_567.8, "1,234,568"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.01234, "0.0123"),
        (0.0, "0"),
    ],
)
def test_number_has_three_significant_digits(value: float, expected: str) -> None:
    assert report.number(value) == expected


def test_cell_shows_the_median_and_never_the_best_window_alone() -> None:
    assert report.cell([3.0, 1.0, 2.0, 9.0, 4.0]) == "3 (1-9)"
    assert report.cell([5.0, 5.0]) == "5"
    assert report.cell([]) == "-"


def test_table_is_aligned_and_numbers_its_notes() -> None:
    lines = report.table(result([3.0, 1.0, 2.0], notes=["a core is saturated"])).splitlines()
    assert lines == [
        "cost: What it costs",
        "$ python -m bench cost",
        "",
        "relay  streams  cpu_us_per_event  lost  notes",
        "ws          10           2 (1-3)     0  [1]",
        "nginx    1,000                17     0  [2] [1]",
        "",
        "[1] a core is saturated",
        "[2] not installed",
        "on two cores",
    ]


def test_table_without_cases_is_its_head_and_notes() -> None:
    empty = SuiteResult("cost", "What it costs", "python -m bench cost", notes=["nothing was found"])
    assert report.table(empty).splitlines()[2:] == ["", "nothing was found"]


def test_cases_with_other_columns_are_a_table_of_their_own() -> None:
    mixed = result([1.0])
    mixed.cases.insert(1, Case({"what": "idle"}, {"memory_bytes": [2048.0]}))
    lines = report.table(mixed).splitlines()
    assert lines.index("relay  streams  cpu_us_per_event  lost  notes") == 3
    assert lines[7:9] == ["what  memory_bytes", "idle         2,048"]


def test_report_names_machine_command_dispersion_and_failures() -> None:
    text = report.markdown([made([3.0, 1.0, 2.0])], ["scale: RuntimeError: no"], has_plots=True)
    for part in (
        "A CPU, 2 cores, 7.7 GiB; Linux 6.1 x86_64; CPython 3.11.7.",
        "- **failed** - scale: RuntimeError: no",
        "`python -m bench cost`, 5 windows of 1 s, 2026-01-02 03:04 UTC, took 12 s",
        "| ws | 10 | 2 (1-3) | 0 |",
        "![Cost](cost.svg)",
    ):
        assert part in text
    assert "cost.svg" not in report.markdown([made([1.0])], [], has_plots=False)


def test_record_that_is_written_is_read_again(tmp_path: Path) -> None:
    written = made([3.0, 1.0, 2.0])
    path = record.write(written, tmp_path)
    assert path.name == "cost.json"
    assert record.read_all(tmp_path) == record.read_all(path) == {"cost": written}


def test_record_that_is_none_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"a": 1}')
    for path in (tmp_path, tmp_path / "other.json", tmp_path / "absent.json"):
        with pytest.raises(record.UnreadableRecord, match=r"other\.json|absent\.json"):
            record.read_all(path)


def test_empty_folder_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(record.UnreadableRecord, match="there is no result"):
        record.read_all(tmp_path)


def test_comparison_lists_medians_beyond_the_factor_either_way() -> None:
    old, same, worse, better = (made([value]) for value in (10.0, 12.9, 13.1, 7.6))
    assert not reproduction.compare({"cost": old}, {"cost": same}).differing
    for new in (worse, better):
        (figure,) = reproduction.compare({"cost": old}, {"cost": new}).differing
        assert (figure.case, figure.metric, figure.old) == ("relay ws, streams 10", "cpu_us_per_event", 10.0)


def test_comparison_takes_the_median_of_the_windows() -> None:
    old, new = made([1.0, 10.0, 11.0]), made([10.0, 10.5, 90.0])
    assert not reproduction.compare({"cost": old}, {"cost": new}).differing


def test_comparison_of_zero_with_more_than_zero_differs() -> None:
    old, new = made([10.0]), made([10.0])
    new.result.cases[0].metrics["lost"] = [1.0]
    (figure,) = reproduction.compare({"cost": old}, {"cost": new}).differing
    assert figure.metric == "lost"


def test_comparison_says_what_only_one_run_has() -> None:
    old, new = made([10.0]), made([10.0])
    del new.result.cases[1]
    comparison = reproduction.compare({"cost": old}, {"cost": new, "micro": made([1.0], name="micro")})
    text = reproduction.text(comparison)
    assert "cost / relay nginx, streams 1000 / cpu_us_per_event is not in the new run" in text
    assert "micro / relay ws, streams 10 / lost is not in the old run" in text
    assert text.endswith("2 of 2 figures are the same within 1.3 x")
