"""A few pairs of every split on one HTML page: whether captions fit their pictures is seen before anything is trained.

As the other contact sheet it is one file that fetches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from cmapkd_core.data.contact_sheet import inlined, whole_page
from cmapkd_core.data.pixels import shown_quickly
from cmapkd_core.data.shards import CorruptSampleError, ShardSet
from cmapkd_core.errors import BadImageError

SHOWN = {"train": 12, "val": 6, "test": 6}  # pictures of a split, evenly over its index
CAPTIONS = 3  # of a picture


def pair_sheet(shards: ShardSet) -> str:
    """The page."""
    return whole_page(
        "Pictures with their captions", "".join(part for split in SHOWN for part in _split(shards, split))
    )


def _split(shards: ShardSet, split: str) -> Iterator[str]:
    count = shards.count(split)
    chosen = sorted({i * count // SHOWN[split] for i in range(SHOWN[split])}) if count else []
    some = f", {len(chosen)} of them here" if len(chosen) < count else ""
    yield f"<h2>{split}: {count} picture{'s' * (count != 1)}{some}</h2><div class=pictures>"
    yield from (_pair(shards, split, i) for i in chosen)
    yield "</div>"


def _pair(shards: ShardSet, split: str, i: int) -> str:
    captions, line = shards.captions(split, i), shards.table(split).slice(i, 1).select(["key", "class_name"])
    key, name = (column[0].as_py() for column in line.columns)
    items = "".join(f"<li>{escape(text)}</li>" for text in captions[:CAPTIONS])
    more = f"<li>and {len(captions) - CAPTIONS} more</li>" if len(captions) > CAPTIONS else ""
    what = escape(f"{key}, class {name}" if name else key)
    caption = f"<figcaption><ul>{items}{more}</ul><small>{what}</small></figcaption>"
    return f"<figure>{_picture(shards, split, i)}{caption}</figure>"


def _picture(shards: ShardSet, split: str, i: int) -> str:
    try:
        with shown_quickly(shards.read_image(split, i), shards.max_pixels) as image:
            return f'<img src="{inlined(image)}" alt="">'
    except (BadImageError, CorruptSampleError) as error:
        return f"<p>{escape(str(error))}</p>"
