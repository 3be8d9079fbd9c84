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
from pathlib import PurePosixPath

from cmapkd_core.config import DataConfig
from cmapkd_core.data.files import find, json_items, picture, place, required
from cmapkd_core.data.rows import BadRow, Counted, Item, LazyRow, Row

LICENCE = "Visual Genome: CC-BY 4.0; pictures of YFCC100M and COCO, each with the licence of its photographer"
FOLDERS = ("VG_100K", "VG_100K_2")
_WAY_OUT = "unpack it from visualgenome.org there"


def visual_genome_rows(config: DataConfig) -> Counted:
    """One row a picture with its phrases, each once; a region without a phrase is a bad row of its own.

    Raises:
        InputError: one of the two JSON files is not there or broken.
    """
    url = place(config, "image_data.json, region_descriptions.json, VG_100K/ and VG_100K_2/")
    data = find(config, ["image_data.json"], _WAY_OUT)
    regions = find(config, ["region_descriptions.json"], _WAY_OUT)
    pictures = {}
    for image in json_items(data, "item"):
        number, where = required(image, ("image_id", "url"), data)
        ids = {name: image.get(f"{name}_id") for name in ("coco", "flickr")}
        pictures[number] = (where, tuple(f"{name}:{value}" for name, value in ids.items() if value is not None))
    return Counted(_described(url, regions, pictures), len(pictures))


def _described(url: str, regions: str, pictures: dict[int, tuple[str, tuple[str, ...]]]) -> Iterator[Item]:
    for entry in json_items(regions, "item"):
        number, described = required(entry, ("id", "regions"), regions)
        if number in pictures:
            yield from _rows(url, number, described, *pictures[number], regions)
        else:
            yield BadRow(f"vg-{number}", "image_data.json has no such picture")


def _rows(
    url: str, number: int, described: list[object], where: str, origins: tuple[str, ...], file: str
) -> Iterator[Item]:
    phrases = []
    for region in described:
        place_of, phrase = required(region, ("region_id", "phrase"), file)
        if str(phrase).strip():
            phrases.append(str(phrase))
        else:
            yield BadRow(f"vg-{number} region {place_of}", "the region's phrase is empty")
    folder, name = PurePosixPath(where).parts[-2:]  # the URL ends as the files lie
    row = Row(f"vg-{number}", b"", tuple(phrases), licence=LICENCE, origins=(f"vg:{number}", *origins))
    folders = sorted(FOLDERS, key=lambda one: one != folder)
    yield LazyRow(row, picture(url, *(f"{one}/{name}" for one in folders)))
