"""A number of several rows by how many updates they trained for, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from cmapkd_core.report.figures.style import Drawing, Look, SeriesStyle, label_ends, panel
from cmapkd_core.report.row_differences import wider_of
from cmapkd_core.report.significance import Interval

Series = Mapping[int, Interval]  # updates -> a row's number, or its difference to the full method
APART = 1.05  # between the points of two series, so that their whiskers do not lie on each other
ROOM = 0.02  # right of the names, and left of the title, as a share of the width


def draw_by_updates(title: str, series: Mapping[str, Series], unit: str, zero: bool = False) -> Drawing:
    """At most four series over the number of updates, which is on a logarithmic axis; of ranks better is upwards.

    A number of one seed has no interval over seeds, and a hollow mark.

    Args:
        series: name -> what it has, never of nothing. zero: a rule at 0, of differences.
    """
    words = (f"{name} {', '.join(f'{one.mean:.1f} at {n}' for n, one in of.items())}" for name, of in series.items())
    return Drawing(title, f"{title}, {unit} by updates: {'; '.join(words)}", partial(_draw, title, series, unit, zero))


def _draw(title: str, series: Mapping[str, Series], unit: str, zero: bool, look: Look) -> Figure:
    figure, axes = panel(look, title, "updates of the student", unit, wide=True)
    axes.set_xscale("log")
    if zero:
        axes.axhline(0, color=look.ink, linewidth=0.8)
    for place, of in enumerate(series.values()):
        _series(axes, SeriesStyle(place, look), place - (len(series) - 1) / 2, of)
    every = sorted({updates for of in series.values() for updates in of})
    axes.set_xticks(every, [str(updates) for updates in every])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    if unit == "ranks":
        axes.invert_yaxis()
    _names(figure, axes, look, series)
    return figure


def _series(axes: Axes, style: SeriesStyle, turn: float, of: Series) -> None:
    xs, means = [updates * APART**turn for updates in of], [one.mean for one in of.values()]
    looks = style.keywords(marker=True)
    axes.plot(xs, means, **style.keywords())
    for x, one in zip(xs, of.values(), strict=True):
        inside = style.look.blank if one.half is None else looks["color"]
        axes.plot(x, one.mean, **looks | {"markerfacecolor": inside, "markeredgewidth": 0.8})
        if wider := wider_of(one):
            axes.plot([x, x], [wider.low, wider.high], color=looks["color"], linewidth=0.6)
        if one.half is not None:
            axes.errorbar(x, one.mean, yerr=one.half, fmt="none", ecolor=looks["color"], elinewidth=1.6, capsize=1.5)


def _names(figure: Figure, axes: Axes, look: Look, series: Mapping[str, Series]) -> None:
    """Names at the lines' right ends, and a right margin that holds them."""
    low, high = sorted(axes.get_ylim())
    ends = [list(of.values())[-1].mean for of in series.values()]
    turned = axes.yaxis_inverted()
    # label_ends moves names apart on an axis that rises.
    axes.set_ylim(low, high)
    places = [low + high - end for end in ends] if turned else ends
    before = len(axes.texts)
    label_ends(axes, list(series), axes.get_xlim()[1], places, list(look.series[: len(series)]))
    figure.draw_without_rendering()
    if turned:
        for text in axes.texts[before:]:
            text.xy = (text.xy[0], low + high - text.xy[1])  # type: ignore[attr-defined]
        axes.set_ylim(high, low)
    widest = max(text.get_window_extent().width for text in axes.texts[before:]) / figure.bbox.width
    left, right = figure.subplotpars.left, 1 - widest - 2 * ROOM
    figure.subplots_adjust(right=right)
    axes.set_title(axes.get_title(loc="left"), loc="left", x=(ROOM - left) / (right - left))
    axes.yaxis.set_label_coords((2 * ROOM - left) / (right - left), 0.5)
