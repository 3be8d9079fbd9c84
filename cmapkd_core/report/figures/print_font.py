"""The font of figures for print: the European letters and the signs of matplotlib's own, in a small file.

Every PDF embeds the glyphs that it shows. To choose them fontTools reads a font whole each time, with 6,000 glyphs and
all that says how they join, which was two thirds of what a report took. Letters that are not in the small file come
from the large one.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

import matplotlib
from fontTools import subset
from matplotlib import font_manager

FAMILY = "CMAPKD Print"
_STYLES = ("DejaVuSans", "DejaVuSans-Bold")
# Latin with its extensions, Greek, Cyrillic, punctuation, superscripts, letterlike signs, arrows, operators, shapes.
_RANGES = ((0x20, 0x24F), (0x370, 0x4FF), (0x2000, 0x209F), (0x2100, 0x22FF), (0x25A0, 0x25FF))
_FAMILY_NAMES = (1, 16)  # of table name (OpenType, "Name IDs")


@cache
def print_fonts() -> list[str]:
    """The families in which a glyph is looked for; matplotlib knows them then. Files stay in its cache folder."""
    folder = Path(matplotlib.get_cachedir()) / f"cmapkd-{matplotlib.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    for style in _STYLES:
        file = folder / f"{style}.ttf"
        if not file.is_file():
            _write(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{style}.ttf", file)
        font_manager.fontManager.addfont(file)
    return [FAMILY, "DejaVu Sans"]


def can_be_printed(text: str) -> bool:
    """Whether these fonts have all of its letters: matplotlib draws an empty box for any other."""
    font = font_manager.get_font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{_STYLES[0]}.ttf"))
    return all(font.get_char_index(ord(sign)) for sign in text)


def _write(original: Path, file: Path) -> None:
    """Other processes may write the same: each a file of its own, which then takes the place."""
    options = subset.Options(layout_features=[], glyph_names=True, name_IDs=["*"], notdef_outline=True)
    with subset.load_font(str(original), options) as font:
        chosen = subset.Subsetter(options)
        chosen.populate(unicodes=[sign for first, last in _RANGES for sign in range(first, last + 1)])
        chosen.subset(font)
        for record in font["name"].names:
            if record.nameID in _FAMILY_NAMES:
                record.string = FAMILY
        handle, made = tempfile.mkstemp(dir=file.parent, suffix=".ttf")
        os.close(handle)
        font.save(made)
    os.replace(made, file)
