"""The paper's Figure 6: image levels against text levels as cells with their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cmapkd_core.report.figures.style import SIZE, Drawing, Look, small_pictures


def draw_matrix(
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
    cells = "; ".join(
        f"{row} {', '.join(f'{v:.{digits}f}' for v in line)}" for row, line in zip(rows, values, strict=True)
    )
    return Drawing(
        title,
        f"{title}, columns {', '.join(columns)}: {cells}",
        partial(_draw_matrix, title, values, rows, columns, limits, digits, picture),
    )


def _shown(value: float, digits: int) -> str:
    """The number without the minus of a value that rounds to 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _draw_matrix(
    title: str,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float],
    digits: int,
    picture: Image.Image | None,
    look: Look,
) -> Figure:
    """values: [rows, columns], coloured from the lower to the upper of `limits`."""
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
    small_pictures(figure, [picture] if picture is not None else [], (0.78, 0.62, 0.24))
    return figure
