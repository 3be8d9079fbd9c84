"""Every picture of a source read, decoded and hashed: by several threads, in the source's order.

Reading waits for a disk or a network, decoding and hashing leave Python's lock: threads are enough, and
what comes out is the same for any number of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dct

from cmapkd_core.config import DataConfig
from cmapkd_core.data.images import EXTENSIONS, format_of
from cmapkd_core.data.order import split_of
from cmapkd_core.data.pixels import shown_quickly
from cmapkd_core.data.prepare_resume import SavedShards
from cmapkd_core.data.repack import repacked
from cmapkd_core.data.rows import BadRow, Item, LazyRow, Row
from cmapkd_core.data.threads import in_groups, in_order
from cmapkd_core.errors import BadImageError

_AHEAD, _GROUP = 16, 4  # threads that read, which hides the latency of S3, and how many pictures each takes
_SIDE = 32  # pixels of the grey thumbnail that the perceptual hash sees
_LOW = dct(np.eye(_SIDE), axis=0)[:8]  # the eight lowest cosines of a row or column
_FLAT = 4.0  # grey levels; a thumbnail that deviates less has nothing to tell it from others


@dataclass(frozen=True)
class Inspected:
    """A row whose picture can be decoded, and what is known of it.

    Attributes:
        row: with the picture as it will be stored.
        extension, width, height: of that.
        sha256, phash: of the picture as it came, so that copies of it are found whatever becomes of it; phash: see
            `perceptual_hash`.
    """

    row: Row
    extension: str
    sha256: str
    phash: int | None
    width: int
    height: int


@dataclass(frozen=True)
class Stored:
    """A row that an earlier attempt stored: its line of the index, and its shard."""

    row: Row
    sample: dict[str, Any]


Inspection = Inspected | Stored | BadRow


def side_of(row: Row, digest: str, config: DataConfig) -> tuple[str, str]:
    """Group and split of a row whose file has this sha256.

    Without a group of its own a picture is one, so that copies of a file never lie on both sides.
    """
    group = row.group or digest
    return group, row.split or split_of(group, config.val_share, config.test_share)


def inspected(rows: Iterable[Item], config: DataConfig, workers: int, saved: SavedShards) -> Iterator[Inspection]:
    """What becomes of every row, in order.

    Args:
        rows: from a source.
        config: a picture of more than its `max_pixels` is bad; by its `repack` those of training become smaller.
        workers: threads that decode; 0: none, in this one.
        saved: what an earlier attempt stored; those pictures are not read again.
    """

    def fetch(numbered: tuple[int, Item]) -> Row | Stored | BadRow:
        number, item = numbered
        if isinstance(item, BadRow):
            return item
        sample = saved.sample(number, item.key)
        if sample is not None:
            return Stored(item.row if isinstance(item, LazyRow) else item, sample)
        return item.load() if isinstance(item, LazyRow) else item

    fetched = in_groups(enumerate(rows, start=1), fetch, _AHEAD, _GROUP)
    return in_order(fetched, lambda row: inspect(row, config), workers)


def inspect(row: Row | Stored | BadRow, config: DataConfig) -> Inspection:
    """Decode, hash and perhaps repack one picture; what cannot be decoded becomes a BadRow.

    What a student is evaluated on stays as it is, and so does a JPEG that is small enough.
    """
    if not isinstance(row, Row):
        return row
    try:
        kind = format_of(row.image)
        digest = hashlib.sha256(row.image).hexdigest()
        with shown_quickly(row.image, config.max_pixels) as image:
            size, phash = image.size, perceptual_hash(image)
            small = kind == "JPEG" and min(size) <= config.repack
            if config.repack and not small and side_of(row, digest, config)[1] == "train":
                stored, size = repacked(np.asarray(image), config.repack)
                kind, row = "JPEG", replace(row, image=stored)
    except BadImageError as error:
        return BadRow(row.key, str(error))
    return Inspected(row, EXTENSIONS[kind], digest, phash, *size)


def perceptual_hash(image: Image.Image) -> int | None:
    """pHash as ImageHash computes it, 64 bits: the same but for a few after scaling or compressing a picture.

    Which of the 8 x 8 lowest frequencies of the thumbnail are above their median. As one product of matrices, since
    ImageHash's call holds Python's lock for as long as decoding takes, and threads would wait for each other.

    None for a picture without structure, such as one plain colour, which would be like all others of its kind.
    """
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    grey = np.asarray(small, dtype=np.float64)
    values = grey.ravel()
    if values.size * (values @ values) - values.sum() ** 2 < (_FLAT * values.size) ** 2:  # whole numbers: exact
        return None
    low = (_LOW @ grey @ _LOW.T).ravel()
    ranked = np.sort(low)
    return int.from_bytes(np.packbits(low > (ranked[31] + ranked[32]) / 2).tobytes(), "big")
