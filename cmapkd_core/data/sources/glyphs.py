"""Drawings of emoji and icons in 30 styles with their names: a test bed of npm packages that can tell methods apart.

`glyph_sets.py` says where they come from, `glyph_names.py` what they are called. A drawing is rasterised by resvg
(`pip install resvg-py`) on white. Concepts, and not pictures, are held out: 15 % for the test and 5 % for validation,
all styles of a concept together. Emoji have their subgroup as a zero-shot class, icons have none.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import partial

from cmapkd_core.config import DataConfig
from cmapkd_core.data.order import hash64
from cmapkd_core.data.rows import Counted, LazyRow, Row, listed
from cmapkd_core.data.sources.glyph_names import Emoji, concept, icon_caption, split_of_concept, without_others
from cmapkd_core.data.sources.glyph_sets import SETS, Drawings, Packages, read_packages
from cmapkd_core.errors import BadImageError, InputError

SIDE = 96  # pixels of a picture
_FLAGS = ("flag", "country-flag", "subdivision-flag")


@dataclass(frozen=True)
class Named:
    """A drawing of a set that has a name there; class_name: "" of an icon."""

    set: str
    drawings: Drawings
    name: str
    captions: tuple[str, ...]
    class_name: str = ""


def glyph_rows(config: DataConfig) -> Counted:
    """One row a drawing that has a name, in an order that mixes the sets.

    Raises:
        InputError: the archives are not there, or resvg is not installed.
    """
    render = _renderer()
    packages = read_packages(config.url)
    named = [one for name in packages.sets for one in _named(name, packages)]
    concepts = {concept(one.captions[0]) for one in named}
    rows = [(_row(one, concepts), partial(_picture, render, one)) for one in named]
    return listed(sorted(rows, key=lambda one: hash64(one[0].key, "glyph order")), lambda one: LazyRow(*one))


def _renderer() -> partial[bytes]:
    try:
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError:
        raise InputError("data.source=glyphs draws with resvg: pip install resvg-py") from None
    return partial(svg_to_bytes, background="#ffffff", skip_system_fonts=True, width=SIDE, height=SIDE)


def _picture(render: partial[bytes], named: Named) -> bytes:
    """PNG, SIDE x SIDE."""
    try:
        return bytes(render(svg_string=named.drawings.svg(named.name)))
    except ValueError as error:
        raise BadImageError(f"resvg cannot draw it: {error}") from None


def _row(named: Named, concepts: Container[str]) -> Row:
    key = concept(named.captions[0])
    return Row(
        f"{named.set}/{named.name}",
        b"",
        without_others(named.captions, concepts),
        named.class_name,
        f"glyph {key}",
        split_of_concept(key),
        licence=named.drawings.licence,
    )


def _named(name: str, packages: Packages) -> Iterator[Named]:
    return _emoji(name, packages) if SETS[name].emoji else _icons(name, packages.sets[name])


def _emoji(name: str, packages: Packages) -> Iterator[Named]:
    """Each emoji of a set once: some draw one in several ways."""
    drawings, seen = packages.sets[name], set[Emoji]()
    for drawing in drawings.names():
        emoji = packages.emoji.find(drawing, drawings.points.get(drawing, []))
        if emoji and emoji not in seen and (SETS[name].flags or emoji.kind not in _FLAGS):
            seen.add(emoji)
            yield Named(name, drawings, drawing, emoji.captions, emoji.class_name)


def _icons(name: str, drawings: Drawings) -> Iterator[Named]:
    """Each name of a set once: sizes and styles of one drawing differ in its end alone."""
    seen = set[str]()
    for drawing in sorted(drawings.names(), key=lambda name: (len(name), name)):
        caption = icon_caption(drawing)
        if caption and caption not in seen:
            seen.add(caption)
            yield Named(name, drawings, drawing, (caption,))
