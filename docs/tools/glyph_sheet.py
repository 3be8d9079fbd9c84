"""The contact sheet of source `glyphs`: `python docs/tools/glyph_sheet.py [FOLDER]` writes docs/figures/glyphs.png.

FOLDER: of the two archives (cmapkd_core/data/sources/glyph_sets.py); without it npm fetches them. Above: concepts that
many sets draw, a column a set. Below: icons with their names. Sets whose licence binds what they are put into are left
out; the command prints who drew what is shown.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import LazyRow
from cmapkd_core.data.sources.glyph_sets import SETS
from cmapkd_core.data.sources.glyphs import SIDE, glyph_rows
from cmapkd_core.errors import InputError

FIGURE = Path(__file__).parents[1] / "figures" / "glyphs.png"
CONCEPTS = ("red apple", "owl", "hot beverage", "bicycle", "guitar", "umbrella")
SHARE_ALIKE = "-SA-"
ICON_LINES = 2
GAP, LEFT, WORDS = 8, 136, 30  # pixels
LINE = 17  # of the names of sets, up to three lines

Sheet = dict[str, dict[str, LazyRow]]  # set -> caption -> drawing


def main(arguments: list[str] | None = None) -> None:
    """Draw, write and say from whom the drawings are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="", help="of the two archives; without it npm fetches them")
    try:
        drawn = by_set(parser.parse_args(arguments).folder)
    except InputError as error:
        sys.exit(f"error: {error}")
    emoji = [name for name in drawn if SETS[name].emoji and {*CONCEPTS} <= {*drawn[name]}]
    icons = icons_of(drawn, len(emoji) * ICON_LINES)
    sheet(drawn, emoji, icons).save(FIGURE, optimize=True)
    shown = {drawn[name][CONCEPTS[0]].row.licence for name in emoji} | {one.row.licence for one in icons}
    print(*sorted(shown), sep="\n")


def by_set(url: str) -> Sheet:
    """All drawings that may be shown, by set, in the order of SETS, and by first caption."""
    drawn: Sheet = {name: {} for name in SETS}
    for one in glyph_rows(DataConfig(source="glyphs", url=url)):
        assert isinstance(one, LazyRow)
        if SHARE_ALIKE not in one.row.licence:
            drawn[one.key.partition("/")[0]].setdefault(one.row.captions[0], one)
    return drawn


def icons_of(drawn: Sheet, number: int) -> list[LazyRow]:
    """Icons with short names, as many of each set; which ones is the order of the source."""
    sets = [[one for words, one in drawn[name].items() if len(words) <= 13] for name in SETS if not SETS[name].emoji]
    return [one for turn in zip(*sets, strict=False) for one in turn][:number]


def sheet(drawn: Sheet, emoji: list[str], icons: list[LazyRow]) -> Image.Image:
    """The picture: names of concepts at the left, of sets above, of icons below each."""
    cell, top = SIDE + GAP, 3 * LINE + GAP
    middle = top + len(CONCEPTS) * cell + GAP
    size = LEFT + len(emoji) * cell, middle + ICON_LINES * (cell + WORDS)
    page = Image.new("RGB", size, "white")
    put = ImageDraw.Draw(page)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 14)
    for x, name in enumerate(emoji):
        for y, line in enumerate(name.replace("high-", "high ").split("-")):
            put.text((LEFT + x * cell + SIDE / 2, LINE * (y + 0.7)), line, "black", font, "mm")
    for y, words in enumerate(CONCEPTS):
        put.text((GAP, top + y * cell + SIDE / 2), words, "black", font, "lm")
        for x, name in enumerate(emoji):
            page.paste(picture(drawn[name][words]), (LEFT + x * cell, top + y * cell))
    put.text((GAP, middle + SIDE / 2), "icons", "black", font, "lm")
    for one, (x, y) in zip(icons, places(len(emoji)), strict=False):
        left, upper = LEFT + x * cell, middle + y * (cell + WORDS)
        page.paste(picture(one), (left, upper))
        put.text((left + SIDE / 2, upper + SIDE + 12), one.row.captions[0], "black", font.font_variant(size=12), "mm")
    return page


def places(columns: int) -> Iterator[tuple[int, int]]:
    """(column, line) of the icons, line by line."""
    return ((x, y) for y in range(ICON_LINES) for x in range(columns))


def picture(one: LazyRow) -> Image.Image:
    """The drawing, SIDE x SIDE."""
    return Image.open(io.BytesIO(one.read())).convert("RGB")


if __name__ == "__main__":
    main()
