"""The paper's Figure 4: level weights of four kinds of sample, chosen by rules that work on any data."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from PIL import Image

from cmapkd_core.report.figures.print_font import can_be_printed
from cmapkd_core.report.figures.style import WIDE, Drawing, Look, SeriesStyle, small_pictures
from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.samples import Samples

SHARE = 0.05  # of the samples that a kind takes, the most extreme ones
LEAST = 8  # samples of a kind at least
NEIGHBOURS = 10  # of a picture that are looked through for one with other captions
SHOWN = 3  # pictures of a kind
COLUMNS, LINES = 11, 4  # characters below a picture, at most


@dataclass(frozen=True)
class Rule:
    """A kind of sample. score: greatest for the samples that are most of this kind; ties go by `tie`."""

    name: str
    words: str
    score: Callable[[Samples], np.ndarray]
    tie: Callable[[Samples], np.ndarray] = lambda samples: np.zeros(len(samples.keys))


@dataclass(frozen=True)
class SampleGroup:
    """The samples of a rule, the most extreme first, with the mean and its standard error for each level."""

    rule: Rule
    keys: list[str]
    mean: dict[str, float]
    error: dict[str, float]


def word_count(samples: Samples) -> np.ndarray:
    """Mean number of words of a sample's captions, [n]."""
    return np.array([np.mean([len(text.split()) for text in texts]) for texts in samples.captions])


def nearest_other(samples: Samples) -> np.ndarray:
    """Cosine to the nearest other picture that has none of its captions, in the teacher's image space, [n].

    Of the NEIGHBOURS nearest ones; -1 where all of them share a caption with it.
    """
    cosines = samples.image @ samples.image.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
    texts = [{text.casefold() for text in captions} for captions in samples.captions]
    nearest = np.full(len(texts), -1.0)
    for i, row in enumerate(order):
        others = [j for j in row if j != i and not texts[i] & texts[j]]
        if others:
            nearest[i] = cosines[i, others[0]]
    return nearest


def agreement(samples: Samples) -> np.ndarray:
    """Cosine of the teacher's embeddings of picture and caption, [n]."""
    cosines: np.ndarray = np.einsum("ne,ne->n", samples.image, samples.text)
    return cosines


RULES = (
    Rule("simple", "fewest words a caption, the easiest first", lambda s: -word_count(s), lambda s: -s.difficulty),
    Rule("complex", "most words a caption, the hardest first", word_count, lambda s: s.difficulty),
    Rule(
        "fine-grained", "greatest cosine to a picture with other captions, in the teacher's image space", nearest_other
    ),
    Rule("abstract", "smallest cosine of picture and caption in the teacher's joint space", lambda s: -agreement(s)),
)


def choose_groups(samples: Samples, rules: Sequence[Rule] = RULES) -> list[SampleGroup]:
    """The samples of each rule; one sample may be of several kinds.

    Raises:
        Missing: too few samples for four kinds.
    """
    n = len(samples.keys)
    count = max(LEAST, round(SHARE * n))
    if n < 4 * LEAST:
        raise Missing(f"Missing: weights of at least {4 * LEAST} samples, to choose kinds among; there are {n}.")
    groups = []
    for rule in rules:
        order = np.lexsort((-rule.tie(samples), -rule.score(samples)))[:count]
        rows = samples.weights[order]
        mean = dict(zip(samples.names, rows.mean(0).tolist(), strict=True))
        error = dict(zip(samples.names, (rows.std(0, ddof=1) / len(rows) ** 0.5).tolist(), strict=True))
        groups.append(SampleGroup(rule, [samples.keys[i] for i in order], mean, error))
    return groups


_SPOKES = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]], dtype=float)  # the finest level points up, then clockwise


def draw_radar(
    title: str,
    polygons: Mapping[str, Sequence[float]],
    spokes: Sequence[str],
    top: float,
    uniform: float,
    pictures: Sequence[tuple[Image.Image, str]] = (),
) -> Drawing:
    """Polygons over four spokes, a dotted ring at the uniform weight, and pictures at the right.

    Args:
        polygons: name -> its value on each spoke. top: the outer ring's value.
        pictures: each with its caption, of which there is as much below it as has room.
    """
    values_in_words = "; ".join(f"{name} {', '.join(f'{v:.2f}' for v in values)}" for name, values in polygons.items())
    return Drawing(
        title,
        f"{title}, weights: {values_in_words}",
        partial(_draw_radar, title, polygons, spokes, top, uniform, pictures),
    )


def _draw_radar(
    title: str,
    polygons: Mapping[str, Sequence[float]],
    spokes: Sequence[str],
    top: float,
    uniform: float,
    pictures: Sequence[tuple[Image.Image, str]],
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
        axes.plot(*closed.T, **SeriesStyle(place, look).keywords(marker=True))
        axes.fill(*closed.T, color=look.series[place], alpha=0.1, linewidth=0)
    handles = [
        Line2D([], [], label=name, **SeriesStyle(place, look).keywords(marker=True))
        for place, name in enumerate(polygons)
    ]
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(1.0, 0.92), frameon=False, fontsize=7.5)
    places = small_pictures(figure, [picture for picture, _ in pictures], (0.6, 0.32, 0.215))
    for (_, caption), axes in zip(pictures, places, strict=False):
        words = short_caption(caption)
        axes.text(0.5, -0.12, words, transform=axes.transAxes, ha="center", va="top", fontsize=5.5, parse_math=False)
    return figure


def short_caption(text: str) -> str:
    """At most LINES lines of COLUMNS characters, cut with an ellipsis; "" where a letter cannot be printed.

    The page has more of it beside the figure.
    """
    lines = textwrap.wrap(text, COLUMNS, max_lines=LINES, placeholder="\N{HORIZONTAL ELLIPSIS}")
    return "\n".join(lines) if can_be_printed("".join(lines)) else ""
