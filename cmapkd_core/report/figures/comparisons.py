"""Models side by side as dots with their intervals: recalls of a run, differences in a suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmapkd_core.report.figures.style import Drawing, Look, SeriesStyle, grid_across, panel
from cmapkd_core.report.read.results import KS, ModelResults
from cmapkd_core.report.read.run_inputs import ROLES
from cmapkd_core.report.row_differences import wider_of
from cmapkd_core.report.significance import Interval, counted, signed, wilson

# Of a panel whose rows are names, as shares of its width: the left margin at least, what is right of the names, and
# where the title begins.
SHORT_ROOM = 0.2  # the left margin where the rows have short names
APART = 0.2  # of the dots of one model, in rows
LEAST_ROOM, ROOM_FOR_TICKS, EDGE = 0.36, 0.03, 0.01
# The numbers stand in a column right of the panel, which ends at this share: so far from it, in points, they end.
RIGHT, BESIDE = 0.86, 32


def draw_recalls(
    title: str, rows: Sequence[ModelResults], chance: ModelResults, side: str, queries: float, top: float
) -> Drawing:
    """R@1, R@5 and R@10 of every model as dots on one line, with Wilson's intervals; chance's R@1 as a rule.

    Args:
        rows: a run's models, whose values are of no seed. queries: how many there are. top: the axis' end, in percent.
    """
    shown = [row for row in rows if f"retrieval/{side}/R@1" in row.values]
    description = f"{title}: R@1, R@5 and R@10 of {', '.join(row.label for row in shown)}"
    return Drawing(title, description, partial(_draw_recalls, title, shown, chance, side, queries, top))


def _draw_recalls(
    title: str, shown: Sequence[ModelResults], chance: ModelResults, side: str, queries: float, top: float, look: Look
) -> Figure:
    figure, axes = panel(look, title, f"recall, % of {queries:.0f} queries", "", wide=True)
    grid_across(look, axes)
    for y, row in enumerate(shown):
        values = [row.values[f"retrieval/{side}/R@{k}"][""] for k in KS]
        for place, value in enumerate(values):
            mark = SeriesStyle(place, look).keywords(marker=True) | {"linestyle": "none", "markersize": 5}
            label = f"R@{KS[place]}" if y == 0 else "_"
            low, high = wilson(value, queries)
            at = y + APART * (place - 1)  # their intervals would lie on each other
            axes.errorbar(
                value,
                at,
                xerr=[[value - low], [high - value]],
                elinewidth=1,
                capsize=2,
                ecolor=mark["color"],
                label=label,
                **mark,
            )
    axes.axvline(chance.values[f"retrieval/{side}/R@1"][""], color=look.muted, linewidth=0.7, linestyle=(0, (2, 2)))
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.03, 0.97), ncols=3, frameon=False, columnspacing=1, handletextpad=0
    )
    axes.set_yticks(np.arange(len(shown)), [ROLES[row.name].short for row in shown], color=look.ink)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1.02 * top)
    figure.subplots_adjust(left=SHORT_ROOM)
    return figure


def draw_gains(title: str, intervals: dict[str, Interval], base: str) -> Drawing:
    """Gains of one model over `base` on the same queries, in the order given, otherwise as `draw_differences`."""
    ordered = list(intervals.items())
    description = f"{title}, differences to {base} in points: {_in_words(ordered)}"
    n = counted(one.n for one in intervals.values())
    xlabel = f"points, 95 % intervals over {n} pictures"
    return Drawing(title, description, partial(_draw_differences, title, ordered, xlabel, "points"))


def _in_words(ordered: list[tuple[str, Interval]]) -> str:
    return ", ".join(f"{name} {signed(one.mean)}" for name, one in ordered)


def draw_differences(title: str, intervals: Mapping[str, Interval], base: str, unit: str = "points") -> Drawing:
    """Differences to the row `base` as dots with their intervals and the number beside, the worst at the bottom.

    A thick whisker is over the seeds, so there is none of one seed; a thin one is over seeds and test concepts.

    A filled dot has an interval without zero, a hollow one does not: grey print keeps the message. Of ranks lower is
    better, so their axis runs from right to left: better is always to the right.
    """
    ordered = sorted(intervals.items(), key=lambda item: item[1].mean if unit == "ranks" else -item[1].mean)
    description = f"{title}, differences to {base} in {unit}: {_in_words(ordered)}"
    n = counted(one.n for _, one in ordered)
    xlabel = f"{unit}, minus {base}; n = {n} seed{'' if n == '1' else 's'}"
    return Drawing(title, description, partial(_draw_differences, title, ordered, xlabel, unit))


def _draw_differences(title: str, ordered: list[tuple[str, Interval]], xlabel: str, unit: str, look: Look) -> Figure:
    figure, axes = panel(look, title, xlabel, "", wide=True, height=0.25 + 0.2 * len(ordered))
    grid_across(look, axes)
    axes.axvline(0, color=look.ink, linewidth=0.8)
    blue = look.series[0]
    for y, (_, one) in enumerate(ordered):
        fill = blue if one.excludes_zero else "none"
        if wider := wider_of(one):
            axes.plot([wider.low, wider.high], [y, y], color=blue, linewidth=0.7)
        axes.errorbar(one.mean, y, xerr=one.half, fmt="none", ecolor=blue, elinewidth=2, capsize=2.5)
        mark: dict[str, Any] = {"marker": "o", "markersize": 5.5, "markeredgewidth": 1.2, "linestyle": "none"}
        axes.plot(one.mean, y, color=blue, markerfacecolor=look.blank, **mark)
        axes.plot(one.mean, y, color=blue, markerfacecolor=fill, **mark)
        axes.annotate(
            signed(one.mean),
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(BESIDE, 0),
            textcoords="offset points",
            va="center_baseline",
            ha="right",
            color=look.ink,
        )
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], color=look.ink)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.margins(x=0.08)
    if unit == "ranks":
        axes.invert_xaxis()
    _room_for_names(figure, axes)
    return figure


def _room_for_names(figure: Figure, axes: Axes) -> None:
    """A left margin as wide as the longest name of a row, and the title as far left as the names may begin."""
    figure.draw_without_rendering()
    widest = max(label.get_window_extent().width for label in axes.get_yticklabels())
    left = max(LEAST_ROOM, widest / figure.bbox.width + ROOM_FOR_TICKS)
    figure.subplots_adjust(left=left, right=RIGHT)
    axes.set_title(axes.get_title(loc="left"), loc="left", x=(EDGE - left) / (figure.subplotpars.right - left))
