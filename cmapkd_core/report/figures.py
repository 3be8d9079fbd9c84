"""The report's figures, each a small panel: a grid of them stays legible on a phone, and side by side in a paper."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmapkd_core.report.history import Curve
from cmapkd_core.report.statistics import Interval, counted
from cmapkd_core.report.style import Drawing, Line, Look, label_ends, panel
from cmapkd_core.report.table import KS, SHORT, Row, standard_error
from cmapkd_core.report.weights import Profile

STEPS = "training steps"
# Of a panel whose rows are names, as shares of its width: the left margin at least, what is right of the names, and
# where the title begins.
LEAST_ROOM, ROOM_FOR_TICKS, EDGE = 0.36, 0.03, 0.01


def curves(title: str, ylabel: str, lines: dict[str, Curve], zero: bool = True) -> Drawing:
    """Named curves over the same phases, with the phases' boundaries and the names at the lines' ends.

    Args:
        lines: name -> curve. All start at the same phase; a later phase may be missing. The place in the
            dict decides the looks, and an empty curve keeps its place.
        zero: whether the axis has to hold 0.
    """
    shown = ", ".join(name for name, curve in lines.items() if curve)
    return Drawing(title, f"{title}: {ylabel} over {STEPS} for {shown}", partial(_curves, title, ylabel, lines, zero))


def _curves(title: str, ylabel: str, lines: dict[str, Curve], zero: bool, look: Look) -> Figure:
    figure, axes = panel(look, title, STEPS, ylabel)
    for place, curve in enumerate(lines.values()):
        for segment in curve:
            axes.plot(segment.steps, segment.values, **Line(place, look).keywords(marker=len(segment.steps) == 1))
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low) if zero and high > 0 else low, high)
    _phases(look, axes, max(filter(None, lines.values()), key=lambda curve: curve[-1].steps[-1]))
    shown = {name: (curve[-1].values[-1], look.series[i]) for i, (name, curve) in enumerate(lines.items()) if curve}
    label_ends(axes, list(shown), axes.get_xlim()[1], [y for y, _ in shown.values()], [c for _, c in shown.values()])
    return figure


def _phases(look: Look, axes: Axes, curve: Curve) -> None:
    """A rule where each phase begins, with the phase's name above it, on a second line where it would overlap."""
    start, stop = curve[0].steps[0], max(curve[-1].steps[-1], curve[0].steps[0] + 1)
    axes.set_xlim(start, stop)
    free = [0.0, 0.0]  # where the last name of each line ends, as a share of the axis
    for segment in curve:
        place = (segment.steps[0] - start) / (stop - start)
        if segment is not curve[0]:
            axes.axvline(segment.steps[0], color=look.muted, linewidth=0.7, linestyle=(0, (2, 2)))
        line = 0 if place >= free[0] else 1
        free[line] = place + 0.03 * (len(segment.phase) + 1)
        height = 1.015 + 0.08 * line
        axes.text(place, height, segment.phase, transform=axes.transAxes, color=look.muted, fontsize=7, va="bottom")


def weights(title: str, profile: Profile, top: float) -> Drawing:
    """Mean level weights in quantile bins of difficulty, with a band of one standard error."""
    names = ", ".join(level.name for level in profile.levels)
    return Drawing(title, f"{title}: mean weight of {names} against difficulty", partial(_weights, title, profile, top))


def _weights(title: str, profile: Profile, top: float, look: Look) -> Figure:
    xlabel = f"percentile of difficulty (easy to hard), n = {profile.samples}"
    figure, axes = panel(look, title, xlabel, "mean weight", wide=True)
    for place, level in enumerate(profile.levels):
        axes.plot(profile.centres, level.mean, **Line(place, look).keywords(marker=True))
        low, high = level.mean - level.error, level.mean + level.error
        axes.fill_between(profile.centres, low, high, color=look.series[place], alpha=0.18, linewidth=0)
    axes.set_ylim(0, top)
    axes.set_xlim(0, 100)
    axes.axhline(1 / len(profile.levels), color=look.muted, linewidth=0.7, linestyle=(0, (2, 2)))
    names, ends = [level.name for level in profile.levels], [float(level.mean[-1]) for level in profile.levels]
    label_ends(axes, names, 100, ends, look.series)
    return figure


def recalls(title: str, rows: Sequence[Row], chance: Row, side: str, queries: float, top: float) -> Drawing:
    """R@1, R@5 and R@10 of every model as dots on one line, with one standard error; chance's R@1 as a rule."""
    shown = [row for row in rows if f"retrieval/{side}/R@1" in row.values]
    description = f"{title}: R@1, R@5 and R@10 of {', '.join(row.label for row in shown)}"
    return Drawing(title, description, partial(_recalls, title, shown, chance, side, queries, top))


def _recalls(
    title: str, shown: Sequence[Row], chance: Row, side: str, queries: float, top: float, look: Look
) -> Figure:
    figure, axes = panel(look, title, f"recall, % of {queries:.0f} queries", "", wide=True)
    _across(look, axes)
    for y, row in enumerate(shown):
        values = [row.values[f"retrieval/{side}/R@{k}"] for k in KS]
        axes.plot(values, [y] * len(KS), color=look.rule, linewidth=3, zorder=1)
        for place, value in enumerate(values):
            mark = Line(place, look).keywords(marker=True) | {"linestyle": "none", "markersize": 5}
            label = f"R@{KS[place]}" if y == 0 else "_"
            error = standard_error(value, queries)
            axes.errorbar(value, y, xerr=error, elinewidth=1, capsize=2, ecolor=mark["color"], label=label, **mark)
    axes.axvline(chance.values[f"retrieval/{side}/R@1"], color=look.muted, linewidth=0.7, linestyle=(0, (2, 2)))
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.03, 0.97), ncols=3, frameon=False, columnspacing=1, handletextpad=0
    )
    axes.set_yticks(np.arange(len(shown)), [SHORT[row.name] for row in shown], color=look.ink)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1.02 * top)
    return figure


def differences(title: str, found: dict[str, Interval], base: str, unit: str = "points") -> Drawing:
    """Differences to the row `base` as dots with their intervals, the worst at the bottom; no whisker of one seed.

    A filled dot has an interval without zero, a hollow one does not: grey print keeps the message. Of ranks lower is
    better, so their axis runs from right to left: better is always to the right.
    """
    ordered = sorted(found.items(), key=lambda item: item[1].mean if unit == "ranks" else -item[1].mean)
    said = ", ".join(f"{name} {one.mean:+.1f}" for name, one in ordered)
    description = f"{title}, differences to {base} in {unit}: {said}"
    return Drawing(title, description, partial(_differences, title, ordered, base, unit))


def _differences(title: str, ordered: list[tuple[str, Interval]], base: str, unit: str, look: Look) -> Figure:
    n = counted(one.n for _, one in ordered)
    xlabel = f"{unit}, minus {base}; n = {n} seed{'' if n == '1' else 's'}"
    figure, axes = panel(look, title, xlabel, "", wide=True, height=0.25 + 0.2 * len(ordered))
    _across(look, axes)
    axes.axvline(0, color=look.ink, linewidth=0.8)
    blue = look.series[0]
    for y, (_, one) in enumerate(ordered):
        fill = blue if one.excludes_zero else "none"
        axes.errorbar(one.mean, y, xerr=one.half, fmt="none", ecolor=blue, elinewidth=1.2, capsize=2.5)
        mark: dict[str, Any] = {"marker": "o", "markersize": 5.5, "markeredgewidth": 1.2, "linestyle": "none"}
        axes.plot(one.mean, y, color=blue, markerfacecolor=look.blank, **mark)
        axes.plot(one.mean, y, color=blue, markerfacecolor=fill, **mark)
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
    figure.subplots_adjust(left=left)
    axes.set_title(axes.get_title(loc="left"), loc="left", x=(EDGE - left) / (figure.subplotpars.right - left))


def _across(look: Look, axes: Axes) -> None:
    """Grid lines across the values of a panel whose rows are names."""
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=look.rule, linewidth=0.5)
