"""COCO captions, with Karpathy's split wherever its file is.

    annotations/dataset_coco.json                           Karpathy: train + restval 113,287, val and test 5,000
    train2014/COCO_train2014_000000000009.jpg, val2014/..   the pictures; or those of 2017, which are the same:
    train2017/000000000009.jpg, val2017/..

Without Karpathy's file the official captions of one year serve, whose val pictures become the test split (val is a
share of train then):

    annotations/captions_train2014.json, captions_val2014.json    82,783 and 40,504
    annotations/captions_train2017.json, captions_val2017.json    118,287 and 5,000

No split is mixed with another: train2017 holds most of val2014, and so of Karpathy's test pictures. A model that is
trained on one split and tested on another meets the leakage gate by COCO's ids (`data.against`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.annotations import json_items, number, required
from cmapkd_core.data.files import below, find, picture, place
from cmapkd_core.data.karpathy import KarpathyEntry, karpathy_entries
from cmapkd_core.data.order import split_of
from cmapkd_core.data.rows import BadRow, Item, LazyRow, Row, listed
from cmapkd_core.data.texts import BadValueError, texts
from cmapkd_core.errors import InputError

KARPATHY = ("annotations/dataset_coco.json", "dataset_coco.json")
YEARS = ("2014", "2017")
LICENCE = "COCO: captions CC-BY 4.0; pictures under Flickr's terms, each with the licence of its photographer"
_WAY_OUT = (
    "unpack annotations_trainval2014.zip (or 2017) from cocodataset.org there, or dataset_coco.json of Karpathy's split"
)


@dataclass
class _Picture:
    number: int
    split: str
    folder: str = ""  # "val2014", where the file says so
    captions: list[Any] = field(default_factory=list)  # as the file has them


def coco_rows(config: DataConfig) -> Iterable[Item]:
    """One row a picture with all its captions; entries that belong to no picture come last.

    Raises:
        InputError: no annotations, those of two years without Karpathy's file, or broken ones.
    """
    url = place(config)
    here = [name for name in KARPATHY if storage.exists(below(url, name))]
    pictures = _karpathy(below(url, here[0])) if here else _official(config)
    return listed(pictures, lambda entry: entry if isinstance(entry, BadRow) else _row(url, entry))


def coco_files(number: int, folder: str = "") -> tuple[str, ...]:
    """Where a picture may lie: in `folder` first, under its names of 2014 and 2017."""
    folders = sorted((f"{part}{year}" for year in YEARS for part in ("train", "val")), key=lambda name: name != folder)
    return tuple(f"{name}/{'' if name.endswith('2017') else f'COCO_{name}_'}{number:012d}.jpg" for name in folders)


def _row(url: str, entry: _Picture) -> LazyRow | BadRow:
    key = f"coco-{entry.number}"
    try:
        captions = texts(entry.captions)
    except BadValueError as error:
        return BadRow(key, str(error), entry.split)
    row = Row(key, b"", captions, split=entry.split, licence=LICENCE, origins=(f"coco:{entry.number}",))
    return LazyRow(row, picture(url, *coco_files(entry.number, entry.folder)))


def _karpathy(url: str) -> list[_Picture | BadRow]:
    entries = karpathy_entries(url)
    if all(entry.number < 0 for entry in entries):
        raise InputError(f"{url}: {entries[0].file} has no cocoid: this is the file of another data set")
    return [_known(entry) for entry in entries]


def _known(entry: KarpathyEntry) -> _Picture | BadRow:
    if entry.problem or entry.number < 0:
        key = entry.file if entry.number < 0 else f"coco-{entry.number}"
        return BadRow(key, entry.problem or "it has no cocoid", entry.split)
    return _Picture(entry.number, entry.split, entry.folder, list(entry.captions))


def _official(config: DataConfig) -> list[_Picture | BadRow]:
    years = [year for year in YEARS if storage.exists(below(config.url, f"annotations/captions_train{year}.json"))]
    if len(years) > 1:
        raise InputError(
            f"{config.url}/annotations has captions of 2014 and of 2017, whose splits differ: keep one, or add "
            f"{KARPATHY[0]}"
        )
    names = [f"annotations/captions_train{year}.json" for year in years or YEARS]
    train = find(config, [KARPATHY[0], *names] if not years else names, _WAY_OUT)
    year = train.removesuffix(".json")[-4:]
    test = find(config, [f"annotations/captions_val{year}.json"], _WAY_OUT)
    return [*_year(train, f"train{year}", "", config), *_year(test, f"val{year}", "test", config)]


def _year(url: str, folder: str, split: str, config: DataConfig) -> list[_Picture | BadRow]:
    """The pictures of one official file; those of training give the share data.val_share of them to val."""
    pictures: dict[int, _Picture] = {}
    rows: list[_Picture | BadRow] = []
    for at, image in enumerate(json_items(url, "images.item"), start=1):
        (value,) = required(image, ("id",), url)
        try:
            one = number(value, "id")
        except BadValueError as error:
            rows.append(BadRow(f"(image {at} of {folder})", str(error), split))
            continue
        side = split or split_of(f"coco:{one}", config.val_share, 0.0)
        if one in pictures:
            rows.append(BadRow(f"coco-{one}", f"duplicate id: image {at} of {folder} has it again", side))
            continue
        pictures[one] = _Picture(one, side, folder)
        rows.append(pictures[one])
    for at, annotation in enumerate(json_items(url, "annotations.item"), start=1):
        value, caption = required(annotation, ("image_id", "caption"), url)
        try:
            pictures[number(value, "image_id")].captions.append(caption)
        except (BadValueError, KeyError) as error:
            reason = f"there is no image {value}" if isinstance(error, KeyError) else str(error)
            rows.append(BadRow(f"(annotation {at} of {folder})", reason, split))
    return rows
