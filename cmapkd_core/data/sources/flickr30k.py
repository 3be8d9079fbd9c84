"""Flickr30K with Karpathy's split.

dataset_flickr30k.json               train 29,000, val 1,014, test 1,000
flickr30k-images/1000092795.jpg      31,783 pictures, of which 31,014 have a split
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from cmapkd_core.config import DataConfig
from cmapkd_core.data.files import find, picture, place
from cmapkd_core.data.karpathy import KarpathyEntry, karpathy_entries
from cmapkd_core.data.rows import BadRow, Item, LazyRow, Row, listed

SPLIT_FILES = ("dataset_flickr30k.json", "annotations/dataset_flickr30k.json")
FOLDERS = ("flickr30k-images", "flickr30k_images", "images")
LICENCE = "Flickr30K: research use; pictures under Flickr's terms, each with the licence of its photographer"


def flickr30k_rows(config: DataConfig) -> Iterable[Item]:
    """One row a picture with its five captions.

    Raises:
        InputError: the split's file is not there or broken.
    """
    url = place(config)
    entries = karpathy_entries(
        find(config, SPLIT_FILES, "it is in caption_datasets.zip of Karpathy's splits, beside dataset_coco.json")
    )
    return listed(entries, lambda entry: _row(url, entry))


def _row(url: str, entry: KarpathyEntry) -> LazyRow | BadRow:
    number = PurePosixPath(entry.file).stem  # the picture's id at Flickr
    key = f"flickr-{number}"
    if entry.problem:
        return BadRow(key, entry.problem, entry.split)
    row = Row(key, b"", entry.captions, split=entry.split, licence=LICENCE, origins=(f"flickr:{number}",))
    return LazyRow(row, picture(url, *(f"{folder}/{entry.file}" for folder in FOLDERS)))
