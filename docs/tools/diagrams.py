"""The drawings of the documents as SVG files: `python docs/tools/diagrams.py` writes them below docs/figures.

Plain SVG needs no script and no font from a server, so GitHub and the site show the same picture offline. Every drawing
has a light ground of its own and is readable on a dark page too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path

FIGURES = Path(__file__).parents[1] / "figures"
BLUE, GREEN, ORANGE, GREY = (
    ("#dbeafe", "#1d4ed8"),
    ("#dcfce7", "#15803d"),
    ("#ffedd5", "#c2410c"),
    ("#f3f4f6", "#4b5563"),
)
WIDTH, HEIGHT = 104, 40


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "middle", weight: str = "normal") -> str:
    """One line of words, its middle at (x, y)."""
    return (
        f'<text x="{x:g}" y="{y + size * 0.35:g}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def box(x: float, y: float, words: str, colour: tuple[str, str], width: float = WIDTH, height: float = HEIGHT) -> str:
    """A box with its left upper corner at (x, y); a line break in `words` is a line break."""
    lines = words.split("\n")
    first = y + height / 2 - 8 * (len(lines) - 1)
    shown = "".join(text(x + width / 2, first + 16 * n, line) for n, line in enumerate(lines))
    fill, stroke = colour
    size = f'width="{width:g}" height="{height:g}" rx="6"'
    return f'<rect x="{x:g}" y="{y:g}" {size} fill="{fill}" stroke="{stroke}"/>{shown}'


def arrow(*points: tuple[float, float], dashed: bool = False) -> str:
    """A line through `points` with a head at its end."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="#4b5563" stroke-width="1.3"{dash} marker-end="url(#head)"/>'


def drawing(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A whole SVG file. title: what a screen reader says."""
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#4b5563"/></marker></defs>'
    )
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="Helvetica, Arial, sans-serif" fill="#111827">\n<title>{escape(title)}</title>\n'
        f"{head}\n{ground}\n{body}\n</svg>\n"
    )


def pipeline() -> str:
    """The stages of a run and what each reads."""
    upper, lower = 56, 156
    names = ("prepare", "teacher", "warmup", "alsn", "joint", "evaluate", "report")
    xs = [20 + 128 * n for n in range(len(names))]
    colours = (GREY, BLUE, GREEN, ORANGE, GREEN, GREY, GREY)
    parts = [box(x, upper, name, colour) for x, name, colour in zip(xs, names, colours, strict=True)]
    parts += [arrow((x + WIDTH, upper + 20), (x + 126, upper + 20)) for x in xs[:-1]]
    under = (
        *("data into\nchecked shards", "fit the frozen\nlarge model", "train levels,\ncoarse to fine"),
        *("learn weights\nof levels", "train the\nsmall model", "on held-out\npictures", "one HTML page"),
    )
    for x, words in zip(xs, under, strict=True):
        parts += [text(x + WIDTH / 2, 20 + 15 * n, line, 11) for n, line in enumerate(words.split("\n"))]
    middle = xs[0] + WIDTH / 2
    parts += [box(xs[2], lower, "reference: the same student, same pairs, no teacher", GREEN, 360)]
    parts += [arrow((middle, upper + HEIGHT), (middle, lower + 20), (xs[2] - 2, lower + 20))]
    parts += [box(xs[5], lower, "evaluate", GREY), arrow((xs[2] + 360, lower + 20), (xs[5] - 2, lower + 20))]
    end = xs[6] + WIDTH / 2
    parts += [arrow((xs[5] + WIDTH, lower + 20), (end, lower + 20), (end, upper + HEIGHT + 2))]
    parts += [box(xs[5], 108, "export", ORANGE, WIDTH, 32)]
    joint = xs[4] + WIDTH / 2
    parts += [arrow((joint, upper + HEIGHT), (joint, 124), (xs[5] - 2, 124))]
    return drawing(924, 216, "The stages of a CMAPKD run", parts)


def pyramid() -> str:
    """Four levels of each tower, student beside teacher."""
    parts = [text(260, 24, "image tower", 14, weight="bold"), text(620, 24, "text tower", 14, weight="bold")]
    vision = (("P2", "56 x 56", 200), ("P3", "28 x 28", 150), ("P4", "14 x 14", 110), ("P5", "7 x 7", 80))
    words = (
        ("L1", "mean of all words", "1/4"),
        ("L2", "neighbouring words", "1/2"),
        ("L3", "weighted words", "3/4"),
        ("L4", "the whole sentence", "all"),
    )
    for n, ((name, size, width), (level, what, depth)) in enumerate(zip(vision, words, strict=True)):
        y = 44 + 54 * n
        parts += [text(20, y + 20, f"after {depth} of the layers" if n < 3 else "after all layers", 11, "start")]
        parts += [
            box(260 - width / 2, y, f"{name}  {size}", BLUE, width),
            arrow((140, y + 20), (258 - width / 2, y + 20)),
        ]
        parts += [box(520, y, f"{level}  {what}", GREEN, 200)]
        parts += [arrow((364, y + 20), (516, y + 20), dashed=True)]
    parts += [arrow((260, y), (260, y - 12)) for y in (98, 152, 206)]
    parts += [
        text(440, 274, "P5 is the coarsest level, P2 the finest; coarse levels are added to finer ones (arrows up)", 12)
    ]
    parts += [
        text(
            440,
            294,
            "dashed: how alike an image level and a text level are, compared for all 4 x 4 pairs of levels",
            12,
        )
    ]
    return drawing(880, 316, "The pyramid of image levels P2 to P5 and the hierarchy of text levels L1 to L4", parts)


def selector() -> str:
    """What chooses the level weights, and what it learns from."""
    parts = [
        box(20, 30, "teacher's embedding\nof the picture", BLUE, 160, 48),
        box(20, 94, "teacher's embedding\nof the caption", BLUE, 160, 48),
        box(240, 62, "small network\n(ALSN)", ORANGE, 130, 48),
        box(430, 30, "weights of P2..P5", GREY, 150),
        box(430, 102, "weights of L1..L4", GREY, 150),
        box(650, 62, "weighted distance of\nstudent and teacher levels", GREEN, 200, 48),
        arrow((180, 54), (210, 54), (210, 80), (238, 80)),
        arrow((180, 118), (210, 118), (210, 92), (238, 92)),
        arrow((370, 80), (400, 80), (400, 50), (428, 50)),
        arrow((370, 92), (400, 92), (400, 122), (428, 122)),
        arrow((580, 50), (615, 50), (615, 80), (648, 80)),
        arrow((580, 122), (615, 122), (615, 92), (648, 92)),
        box(240, 170, "utility of a level: does its gradient point where the task's gradient points?", ORANGE, 520),
        arrow((305, 170), (305, 112), dashed=True),
        text(318, 148, "what it learns from", 11, "start"),
    ]
    return drawing(870, 226, "The selector: a small network gives each pair its own level weights", parts)


DEMO = (  # R@10 of docs/tutorial/demo.md, image to text and text to image
    ("teacher (large model)", 36.3, 40.4, BLUE),
    ("student, distilled", 21.6, 23.8, GREEN),
    ("same student, no teacher", 17.3, 19.9, ORANGE),
    ("student before training", 2.8, 2.5, GREY),
)


def demo() -> str:
    """R@10 of the demo's four models."""
    parts = [
        text(20, 22, "Right answer among the first 10 (R@10, %), 532 test pictures, one seed", 14, "start", "bold")
    ]
    for n, (name, to_text, to_image, (fill, stroke)) in enumerate(DEMO):
        for m, (value, what) in enumerate(((to_text, "image to text"), (to_image, "text to image"))):
            y = 48 + 58 * n + 24 * m
            bar = f'<rect x="210" y="{y}" width="{12 * value:g}" height="20" fill="{fill}" stroke="{stroke}"/>'
            parts += [bar, text(218 + 12 * value, y + 10, f"{value}  {what}", 12, "start")]
        parts += [text(200, 48 + 58 * n + 22, name, 13, "end")]
    return drawing(
        880, 284, "R@10 of teacher, distilled student, student without a teacher and untrained student", parts
    )


DRAWINGS = {"pipeline": pipeline, "pyramid": pyramid, "selector": selector, "demo": demo}


def main() -> int:
    """Write all drawings."""
    for name, draw in DRAWINGS.items():
        (FIGURES / f"{name}.svg").write_text(draw(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
