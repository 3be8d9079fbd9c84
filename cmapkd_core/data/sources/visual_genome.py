"""Visual Genome: every region's phrase is a caption of its picture.

    image_data.json             108,077 pictures: image_id, url, coco_id and flickr_id (or null)
    region_descriptions.json    their regions: [{"id": 1, "regions": [{"region_id": 1382, "image_id": 1, "phrase": "the
                                clock is green in colour", "x": 421, "y": 57, "width": 82, "height": 139}, ..]}, ..]
    VG_100K/2.jpg, VG_100K_2/1.jpg

There is no official split: groups fall on a side by their hash. 51,208 of the pictures are COCO's, so that a model
trained on them and tested on COCO has seen its test pictures: name COCO's artifact in `data.against`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cmapkd_core.config import DataConfig
from cmapkd_core.data.annotations import a_list, json_items, number, required, value_of
from cmapkd_core.data.files import find, picture, place
from cmapkd_core.data.rows import BadRow, Counted, Item, LazyRow, Row
from cmapkd_core.data.texts import BadValueError, missing, shown, text, texts

LICENCE = "Visual Genome: CC-BY 4.0; pictures of YFCC100M and COCO, each with the licence of its photographer"
FOLDERS = ("VG_100K", "VG_100K_2")
_WAY_OUT = "unpack it from visualgenome.org there"


@dataclass(frozen=True)
class _Picture:
    """What image_data.json says of one. files: where it may lie. problem: why it cannot be used, "" if it can."""

    number: int
    files: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    problem: str = ""


def visual_genome_rows(config: DataConfig) -> Counted:
    """One row a picture with its phrases, each once; a region without a phrase is a bad row of its own.

    Raises:
        InputError: one of the two JSON files is not there or broken.
    """
    url = place(config)
    data = find(config, ["image_data.json"], _WAY_OUT)
    regions = find(config, ["region_descriptions.json"], _WAY_OUT)
    pictures: dict[int, _Picture] = {}
    strays: list[Item] = []
    for at, image in enumerate(json_items(data, "item"), start=1):
        value, where = required(image, ("image_id", "url"), data)
        try:
            one = number(value, "image_id")
        except BadValueError as error:
            strays.append(BadRow(f"(image {at} of image_data.json)", str(error)))
            continue
        if one in pictures:
            strays.append(BadRow(f"vg-{one}", f"duplicate image_id: image {at} of image_data.json has it again"))
        else:
            pictures[one] = _picture(one, where, image)
    return Counted(_described(url, regions, pictures, strays), len(pictures) + len(strays))


def _picture(one: int, where: Any, image: dict[str, Any]) -> _Picture:
    try:
        folder, name = ("", "", *PurePosixPath(text(where, "url")).parts)[-2:]  # the URL ends as the files lie
        ids = {of: image.get(f"{of}_id") for of in ("coco", "flickr")}
        known = (f"{of}:{number(value, f'{of}_id')}" for of, value in ids.items() if not missing(value))
        folders = sorted(FOLDERS, key=lambda one: one != folder)
        return _Picture(one, tuple(f"{folder}/{name}" for folder in folders), (f"vg:{one}", *known))
    except BadValueError as error:
        return _Picture(one, problem=str(error))


def _described(url: str, regions: str, pictures: dict[int, _Picture], strays: list[Item]) -> Iterator[Item]:
    """Every picture in the order of its regions, then what belongs to none."""
    seen: set[int] = set()
    for at, entry in enumerate(json_items(regions, "item"), start=1):
        value, described = required(entry, ("id", "regions"), regions)
        try:
            one = number(value, "id")
        except BadValueError as error:
            yield BadRow(f"(entry {at} of region_descriptions.json)", str(error))
            continue
        if one in pictures:
            seen.add(one)
            yield from _rows(url, pictures[one], described)
        else:
            yield BadRow(f"vg-{one}", "image_data.json has no such picture")
    for one in pictures:
        if one not in seen:
            yield BadRow(f"vg-{one}", "region_descriptions.json says nothing of it")
    yield from strays


def _rows(url: str, entry: _Picture, described: Any) -> Iterator[Item]:
    """A bad row for each region without a phrase, then the picture."""
    key = f"vg-{entry.number}"
    try:
        regions = list(enumerate(a_list(described, "regions"), start=1))
    except BadValueError as error:
        yield BadRow(key, str(error))
        return
    phrases: list[str] = []
    for at, region in regions:
        called = shown(region["region_id"]) if isinstance(region, dict) and "region_id" in region else f"{at}"
        try:
            phrases += texts(value_of(region, "phrase", "it"), "the region's phrase")
        except BadValueError as error:
            yield BadRow(f"{key} region {called}", str(error))
    if entry.problem:
        yield BadRow(key, entry.problem)
        return
    row = Row(key, b"", tuple(phrases), licence=LICENCE, origins=entry.origins)
    yield LazyRow(row, picture(url, *entry.files))
