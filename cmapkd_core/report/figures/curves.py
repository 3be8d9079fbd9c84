"""Curves over training: losses, learning rates, weights of levels."""

from __future__ import annotations

from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmapkd_core.report.figures.style import Drawing, Look, SeriesStyle, label_ends, panel
from cmapkd_core.report.read.history import Curve

STEPS = "training steps"


def draw_curves(title: str, ylabel: str, lines: dict[str, Curve], zero: bool = True) -> Drawing:
    """Named curves over the same phases, with the phases' boundaries and the names at the lines' ends.

    Args:
        lines: name -> curve. All start at the same phase; a later phase may be missing. The place in the
            dict decides the looks, and an empty curve keeps its place.
        zero: whether the axis has to hold 0.
    """
    shown = ", ".join(name for name, curve in lines.items() if curve)
    return Drawing(
        title, f"{title}: {ylabel} over {STEPS} for {shown}", partial(_draw_curves, title, ylabel, lines, zero)
    )


def _draw_curves(title: str, ylabel: str, lines: dict[str, Curve], zero: bool, look: Look) -> Figure:
    figure, axes = panel(look, title, STEPS, ylabel)
    for place, curve in enumerate(lines.values()):
        for segment in curve:
            axes.plot(
                segment.steps, segment.values, **SeriesStyle(place, look).keywords(marker=len(segment.steps) == 1)
            )
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
