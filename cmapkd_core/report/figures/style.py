"""How figures look: a figure is data with a function that paints it in given colours.

Text stays text; lines differ in lightness, dash and marker as well as in hue, so that grey print and colour-blind
readers lose nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cmapkd_core.report.figures.print_font import print_fonts


@dataclass(frozen=True)
class Look:
    """The colours of a medium: text, secondary text, grid, background, and four series."""

    ink: str
    muted: str
    rule: str
    blank: str
    series: tuple[str, str, str, str]


PAGE = Look("#010101", "#020202", "#030303", "#080808", ("#040404", "#050505", "#060606", "#070707"))
PRINT = Look("#000000", "#444444", "#bbbbbb", "#ffffff", ("#12305e", "#c2500f", "#0f8f78", "#c08a00"))
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = ("o", "s", "^", "D")
# Inches. Three panels or two wide ones stand in a row of the page at about this size, so 8 pt text is read as such.
SIZE, WIDE = (3.4, 2.3), (4.1, 2.3)
_MARGINS = {"left": 0.165, "right": 0.785, "bottom": 0.17, "top": 0.8}
_WIDE_MARGINS = {"left": 0.165, "right": 0.94, "bottom": 0.17, "top": 0.88}


@dataclass(frozen=True)
class Drawing:
    """A figure that can be painted in the colours of any medium. description: what a screen reader says."""

    title: str
    description: str
    paint: Callable[[Look], Figure]

    @property
    def slug(self) -> str:
        """The title as a part of a file's name, without its numbers in brackets and its n."""
        name = re.sub(r" \(.*\)|, n = \d+", "", self.title.lower())
        return re.sub(r"[^a-z0-9]+", "_", name).strip("_")


def _settings(look: Look) -> Any:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "cmapkd",
        "pdf.fonttype": 42,  # TrueType, embedded
        "font.size": 8,
        "axes.edgecolor": look.muted,
        "axes.labelcolor": look.muted,
        "axes.titlecolor": look.ink,
        "axes.titlesize": 8.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "axes.unicode_minus": False,
        "axes.formatter.useoffset": False,
        "xtick.color": look.muted,
        "ytick.color": look.muted,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "text.color": look.ink,
        "lines.linewidth": 1.3,
    }


@contextmanager
def painted(drawing: Drawing, look: Look) -> Iterator[Figure]:
    """The figure in a medium's colours, to be saved inside the block: matplotlib's own settings stay as they were."""
    font = {"font.family": print_fonts()} if look is PRINT else {}
    with matplotlib.rc_context(_settings(look) | font):
        yield drawing.paint(look)


@dataclass(frozen=True)
class SeriesStyle:
    """How a series is drawn: its place decides colour, dash and marker, everywhere the same."""

    place: int
    look: Look

    def keywords(self, marker: bool = False) -> dict[str, Any]:
        """Arguments of `Axes.plot`."""
        i = self.place % len(self.look.series)
        shape = {"marker": MARKERS[i], "markersize": 3.2, "markeredgewidth": 0} if marker else {}
        return {"color": self.look.series[i], "linestyle": DASHES[i], **shape}


def panel(
    look: Look, title: str, xlabel: str, ylabel: str, wide: bool = False, height: float = 0.0
) -> tuple[Figure, Axes]:
    """An empty panel whose axes lie at the same place in every panel of its width, so that a grid aligns.

    Args:
        height: inches of the axes alone; 0 leaves the usual height of the panel.
    """
    (width, usual), margins = (WIDE, _WIDE_MARGINS) if wide else (SIZE, _MARGINS)
    below, above = margins["bottom"] * usual, (1 - margins["top"]) * usual
    whole = height + below + above if height else usual
    figure = Figure(figsize=(width, whole))
    figure.subplots_adjust(**margins | {"bottom": below / whole, "top": 1 - above / whole})
    axes = figure.subplots()
    axes.set_title(title, pad=6 if wide else 20)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.yaxis.set_label_coords(-0.12 if wide else -0.2, 0.5)
    axes.grid(axis="y", color=look.rule, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.locator_params(nbins=5)
    return figure, axes


def label_ends(axes: Axes, labels: Sequence[str], x: float, ys: Sequence[float], colours: Sequence[str]) -> None:
    """Names beside the lines' ends, moved apart as little as needed where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.095 * (high - low)
    order = np.argsort(ys, kind="stable")
    places = np.array(ys, dtype=float)[order]
    for _ in range(100):
        for i in range(len(places) - 1):
            lack = max(0.0, gap - (places[i + 1] - places[i])) / 2
            places[i] -= lack
            places[i + 1] += lack
        places += max(0.0, low - places[0]) - max(0.0, places[-1] - high)
    keywords: dict[str, Any] = {
        "xytext": (4, 0),
        "textcoords": "offset points",
        "va": "center",
        "annotation_clip": False,
    }
    for place, i in zip(places, order, strict=True):
        axes.annotate(labels[i], (x, place), color=colours[i], **keywords)


def grid_across(look: Look, axes: Axes) -> None:
    """Grid lines across the values of a panel whose rows are names."""
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=look.rule, linewidth=0.5)


def small_pictures(figure: Figure, pictures: Sequence[Image.Image], place: tuple[float, float, float]) -> list[Axes]:
    """Up to three small pictures in a row, on white squares as everywhere in the report; gives their axes.

    Args:
        place: left, bottom and height of the first one, in shares of the figure.
    """
    left, bottom, height = place
    width = height * figure.get_figheight() / figure.get_figwidth()
    made = []
    for i, picture in enumerate(pictures[:3]):
        axes = figure.add_axes((left + i * (width + 0.01), bottom, width, height))
        axes.imshow(np.asarray(picture))
        axes.axis("off")
        made.append(axes)
    return made
