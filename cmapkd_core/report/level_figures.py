"""Figures of levels: radars of weights, points of a t-SNE map, heat maps of levels against levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from PIL import Image

from cmapkd_core.report.style import MARKERS, SIZE, WIDE, Drawing, Line, Look

_SPOKES = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]], dtype=float)  # the finest level points up, then clockwise


def radar(
    title: str,
    polygons: Mapping[str, Sequence[float]],
    spokes: Sequence[str],
    top: float,
    uniform: float,
    pictures: Sequence[Image.Image] = (),
) -> Drawing:
    """Polygons over four spokes, a dotted ring at the uniform weight, and pictures at the right.

    Args:
        polygons: name -> its value on each spoke. top: the outer ring's value.
    """
    said = "; ".join(f"{name} {', '.join(f'{v:.2f}' for v in values)}" for name, values in polygons.items())
    return Drawing(title, f"{title}, weights: {said}", partial(_radar, title, polygons, spokes, top, uniform, pictures))


def _radar(
    title: str,
    polygons: Mapping[str, Sequence[float]],
    spokes: Sequence[str],
    top: float,
    uniform: float,
    pictures: Sequence[Image.Image],
    look: Look,
) -> Figure:
    figure = Figure(figsize=WIDE)
    axes = figure.add_axes((0.02, 0.02, 0.56, 0.86))
    figure.text(0.02, 0.93, title, color=look.ink, fontsize=8.5, fontweight="bold")
    axes.set_aspect("equal")
    axes.set_xlim(-1.45, 1.45)
    axes.set_ylim(-1.25, 1.25)
    axes.axis("off")
    for share in (0.5, 1.0):
        axes.add_patch(Circle((0, 0), share, fill=False, edgecolor=look.rule, linewidth=0.5))
    axes.add_patch(
        Circle((0, 0), uniform / top, fill=False, edgecolor=look.muted, linewidth=0.8, linestyle=(0, (1, 2)))
    )
    axes.text(0.03, 1.0, f"{top:.2g}", color=look.muted, fontsize=6.5, va="bottom", ha="left")
    for (x, y), name in zip(_SPOKES, spokes, strict=True):
        axes.plot([0, x], [0, y], color=look.rule, linewidth=0.5)
        side = "center" if x == 0 else "left" if x > 0 else "right"
        height = "center" if y == 0 else "bottom" if y > 0 else "top"
        axes.text(
            1.04 * x - (0.05 if y > 0 else 0), 1.04 * y, name, color=look.ink, ha="right" if y > 0 else side, va=height
        )
    for place, values in enumerate(polygons.values()):
        points = _SPOKES * (np.asarray(values)[:, None] / top)
        closed = np.vstack([points, points[:1]])
        axes.plot(*closed.T, **Line(place, look).keywords(marker=True))
        axes.fill(*closed.T, color=look.series[place], alpha=0.1, linewidth=0)
    handles = [
        Line2D([], [], label=name, **Line(place, look).keywords(marker=True)) for place, name in enumerate(polygons)
    ]
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(1.0, 0.92), frameon=False, fontsize=7.5)
    _pictures(figure, pictures, (0.59, 0.06, 0.255))
    return figure


def _pictures(figure: Figure, pictures: Sequence[Image.Image], place: tuple[float, float, float]) -> None:
    """Up to three small pictures in a row, on white squares as everywhere in the report.

    Args:
        place: left, bottom and height of the first one, in shares of the figure.
    """
    left, bottom, height = place
    width = height * figure.get_figheight() / figure.get_figwidth()
    for i, picture in enumerate(pictures[:3]):
        axes = figure.add_axes((left + i * (width + 0.01), bottom, width, height))
        axes.imshow(np.asarray(picture))
        axes.axis("off")


def scatter(title: str, points: Mapping[str, tuple[np.ndarray, np.ndarray]], limits: tuple[float, float]) -> Drawing:
    """Points of a map without units: a colour and shape for each name, hollow the teacher's, filled the student's.

    Args:
        points: name -> positions of the teacher and of the student, each [n,2].
        limits: of both axes, the same in every panel.
    """
    return Drawing(
        title, f"{title}: map of {', '.join(points)}, teacher and student", partial(_scatter, title, points, limits)
    )


def _scatter(
    title: str, points: Mapping[str, tuple[np.ndarray, np.ndarray]], limits: tuple[float, float], look: Look
) -> Figure:
    figure = Figure(figsize=(4.6, 3.9))
    axes = figure.add_axes((0.01, 0.01, 0.79, 0.92))
    axes.set_title(title, pad=5)
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(True)
        axes.spines[side].set_color(look.rule)
    for place, (theirs, ours) in enumerate(points.values()):
        colour, shape = look.series[place], MARKERS[place]
        axes.plot(*theirs.T, shape, markersize=3.2, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=0.6)
        axes.plot(*ours.T, shape, markersize=2.8, color=colour, markeredgewidth=0)
    _key(axes, list(points), look)
    return figure


def _key(axes: Axes, names: Sequence[str], look: Look) -> None:
    common: dict[str, Any] = {"linestyle": "none", "markersize": 4.5}
    handles = [
        Line2D([], [], marker=MARKERS[i], color=look.series[i], markeredgewidth=0, label=name, **common)
        for i, name in enumerate(names)
    ]
    hollow: dict[str, Any] = {"marker": "o", "color": look.muted, "markerfacecolor": "none", "markeredgewidth": 0.8}
    handles += [Line2D([], [], label="teacher", **hollow, **common)]
    handles += [Line2D([], [], marker="o", color=look.muted, markeredgewidth=0, label="student", **common)]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.01), frameon=False, handletextpad=0.1)


def heat(
    title: str,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float],
    digits: int = 2,
    picture: Image.Image | None = None,
) -> Drawing:
    """A matrix as cells with their numbers; the deeper the colour, the greater the value.

    Args:
        values: [rows, columns]. limits: the values of no colour and of the deepest one.
    """
    said = "; ".join(
        f"{row} {', '.join(f'{v:.{digits}f}' for v in line)}" for row, line in zip(rows, values, strict=True)
    )
    return Drawing(
        title,
        f"{title}, columns {', '.join(columns)}: {said}",
        partial(_heat, title, values, rows, columns, limits, digits, picture),
    )


def _shown(value: float, digits: int) -> str:
    """The number without the minus of a value that rounds to 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _heat(
    title: str,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float],
    digits: int,
    picture: Image.Image | None,
    look: Look,
) -> Figure:
    figure = Figure(figsize=SIZE)
    axes = figure.add_axes((0.14, 0.14, 0.6, 0.72))
    figure.text(0.02, 0.93, title, color=look.ink, fontsize=8.5, fontweight="bold")
    low, high = limits
    for (i, j), value in np.ndenumerate(values):
        depth = 0.62 * float(np.clip((value - low) / (high - low or 1.0), 0, 1))
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=look.series[0], alpha=depth, linewidth=0))
        axes.add_patch(Rectangle((j, i), 1, 1, fill=False, edgecolor=look.rule, linewidth=0.5))
        axes.text(j + 0.5, i + 0.5, _shown(value, digits), color=look.ink, ha="center", va="center", fontsize=7.5)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, color=look.ink)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows, color=look.ink)
    axes.tick_params(length=0)
    axes.set_xlabel("text level")
    axes.set_ylabel("image level")
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
    _pictures(figure, [picture] if picture is not None else [], (0.78, 0.62, 0.24))
    return figure
