"""The nearest pictures as an HTML page without a script: served (page_server.py), or one file that needs nothing else.

It has the look of the reports: their base template, with its colours by day and by night.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

from PIL import Image

from cmapkd.searching import MOST
from cmapkd.searching.picture_folder import PictureFolder, shown
from cmapkd.searching.picture_index import Match
from cmapkd_core.report.render.html import environment

SIDE = 320  # pixels of a thumbnail's longest side
_TEMPLATE = "nearest.html.j2"


@dataclass(frozen=True)
class Column:
    """What one model found. name: the model's. role: such as student. seconds: that the search took."""

    name: str
    role: str
    found: Sequence[Match]
    seconds: float = 0.0


@dataclass(frozen=True)
class Asked:
    """What was asked: words, or the number of a picture of the folder, or the name of one from elsewhere."""

    query: str = ""
    number: int | None = None
    like: str = ""
    top: int = 5


def agreed(columns: Sequence[Column]) -> frozenset[int]:
    """Numbers of the pictures that every one of two and more models found."""
    sets = [frozenset(match.number for match in column.found) for column in columns]
    return frozenset.intersection(*sets) if len(sets) > 1 else frozenset()


def page(
    folder: PictureFolder,
    asked: Asked,
    columns: Sequence[Column],
    source: Callable[[int], str],
    *,
    left_out: int = 0,
    live: bool = False,
    message: str = "",
) -> str:
    """The page as text.

    Args:
        source: URL of a picture's thumbnail, by its number.
        left_out: pictures that cannot be read.
        live: it is served: a query can be typed, and a picture asked for those like it.
        message: what is wrong with what was asked.
    """
    template = environment().from_string(resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        folder=shown(folder.place),
        count=len(folder.pictures) - left_out,
        left_out=left_out,
        asked=asked,
        like=shown(folder.pictures[asked.number].path) if asked.number is not None else shown(asked.like),
        columns=columns,
        agreed=agreed(columns),
        source=source,
        captions=[shown(picture.caption) for picture in folder.pictures],
        shown=shown,
        most=MOST,
        live=live,
        message=message,
    )


def thumbnail(image: Image.Image) -> bytes:
    """A JPEG of at most SIDE pixels a side."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    made = io.BytesIO()
    small.save(made, "JPEG", quality=85)
    return made.getvalue()


def inline(folder: PictureFolder) -> Callable[[int], str]:
    """Thumbnails that are part of the page."""

    def source(number: int) -> str:
        with folder.read(folder.pictures[number]) as image:
            return f"data:image/jpeg;base64,{base64.b64encode(thumbnail(image)).decode()}"

    return source
