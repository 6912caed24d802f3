"""Plots as SVG files that are the same for the same figures, so that a committed one changes only with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.report import number
from bench.results import Plot, Point

#: Legible on white and on dark, and told apart by those who see no red or green (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
_STYLE: Any = {
    "svg.hashsalt": "holdfast",  # ids of clip paths are random without one
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


def draw(plot: Plot, folder: Path) -> Path:
    """Write `<name>.svg` into a folder that exists. Raises ValueError for a kind of plot that there is not."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        if plot.kind == "line":
            _draw_lines(axes, plot)
        elif plot.kind == "bar":
            _draw_bars(axes, plot)
        else:
            raise ValueError(f"plot {plot.name}: kind must be `line` or `bar`, not {plot.kind!r}")
        axes.set_title(plot.title)
        path = folder / f"{plot.name}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    return path


def _draw_lines(axes: Axes, plot: Plot) -> None:
    measured = -1
    for label, points in plot.series.items():
        points = sorted(points)
        xs, medians = [x for x, *_ in points], [median for _, median, _, _ in points]
        if len(points) > 1 and _is_exact(points):
            # A fitted line has no windows. It follows the series that it was fitted to, and has its colour.
            axes.plot(xs, medians, label=label, color=_colour(max(measured, 0)), linestyle="--", linewidth=1)
            continue
        measured += 1
        axes.errorbar(
            xs,
            medians,
            yerr=_bars(points),
            label=label,
            color=_colour(measured),
            marker="o",
            markersize=4,
            linewidth=1.4,
            capsize=3,
        )
    if plot.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        places = sorted({x for points in plot.series.values() for x, *_ in points})
        axes.set_xticks(places, [number(x) for x in places])
    if plot.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: number(y)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: number(y)))
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(visible=True, which="both", linewidth=0.3, alpha=0.6)
    if len(plot.series) > 1:
        handles, labels = axes.get_legend_handles_labels()
        known = dict(zip(labels, handles, strict=True))
        axes.legend([known[label] for label in plot.series], list(plot.series), frameon=False)


def _draw_bars(axes: Axes, plot: Plot) -> None:
    """One bar for each series, from top to bottom, named at its foot; series may be too many for a legend."""
    labels = list(plot.series)
    for place, points in enumerate(plot.series.values()):
        for number_of_bar, point in enumerate(points):
            _, median, _, most = point
            height = 0.7 / len(points)
            at = place + (number_of_bar - (len(points) - 1) / 2) * height
            axes.barh(at, median, height=height, color=_COLOURS[0], xerr=_bars([point]), capsize=3)
            axes.annotate(number(median), (most, at), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    if plot.log_y:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda y, _: number(y)))
    axes.margins(x=0.12)  # room for the figures at the ends of the bars
    axes.set_xlabel(plot.y_label)
    axes.grid(visible=True, axis="x", linewidth=0.3, alpha=0.6)
    axes.set_axisbelow(True)


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _bars(points: list[Point]) -> list[list[float]]:
    """How far the least and the most are from the median."""
    return [
        [median - least for _, median, least, _ in points],
        [most - median for _, median, _, most in points],
    ]


def _is_exact(points: list[Point]) -> bool:
    return all(least == median == most for _, median, least, most in points)
