"""The paper's Figure 5: the teacher's and the student's image levels in one t-SNE map, before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from cmapkd_core.report.figures.style import MARKERS, Drawing, Look
from cmapkd_core.report.read.samples import MODELS, levels_in, unit

PAIRS = 120  # pairs whose levels are shown: twelve points each
PERPLEXITY = 30.0
SEED = 0


@dataclass(frozen=True)
class LevelMap:
    """Positions by model and level, [n,2] each."""

    places: dict[str, dict[str, np.ndarray]]
    samples: int
    perplexity: float

    @property
    def limits(self) -> tuple[float, float]:
        """Both axes' limits in every panel."""
        every = np.concatenate([points for levels in self.places.values() for points in levels.values()])
        low, high = float(every.min()), float(every.max())
        return low - 0.04 * (high - low), high + 0.04 * (high - low)


def embed_levels(table: pa.Table) -> LevelMap:
    """One map of all models and levels, so that the teacher's points are the same before and after.

    Each vector has unit length, so distances are those of cosines. The same table always gives the same map: fixed
    seed, started from the principal components, one thread (sums over threads have no fixed order).
    """
    names, rows = levels_in(table), table.slice(0, PAIRS)
    blocks = {(model, name): unit(rows[f"{model}_{name}"]) for model in MODELS for name in names}
    points = np.concatenate(list(blocks.values()))
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    with threadpool_limits(limits=1):
        placed = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED, n_jobs=1).fit_transform(points)
    parts = dict(zip(blocks, np.split(placed, len(blocks)), strict=True))
    places = {model: {name: parts[model, name] for name in names} for model in MODELS}
    return LevelMap(places, rows.num_rows, perplexity)


def draw_map(title: str, points: Mapping[str, tuple[np.ndarray, np.ndarray]], limits: tuple[float, float]) -> Drawing:
    """Points of a map without units: a colour and shape for each name, hollow the teacher's, filled the student's.

    Args:
        points: name -> positions of the teacher and of the student, each [n,2].
        limits: of both axes, the same in every panel.
    """
    return Drawing(
        title, f"{title}: map of {', '.join(points)}, teacher and student", partial(_draw_map, title, points, limits)
    )


def _draw_map(
    title: str, points: Mapping[str, tuple[np.ndarray, np.ndarray]], limits: tuple[float, float], look: Look
) -> Figure:
    """points: of each group its places x and y, [n] each."""
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
    for place, (teacher, student) in enumerate(points.values()):
        colour, shape = look.series[place], MARKERS[place]
        axes.plot(
            *teacher.T, shape, markersize=3.2, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=0.6
        )
        axes.plot(*student.T, shape, markersize=2.8, color=colour, markeredgewidth=0)
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
