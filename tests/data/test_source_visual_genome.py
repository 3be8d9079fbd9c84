"""Visual Genome's two JSON files, small."""

from collections.abc import Callable
from typing import Any

import pytest

from cmapkd_core.data.rows import BadRow, Row
from cmapkd_core.errors import InputError

Publish = Callable[[dict[str, Any]], str]
Read = Callable[..., list[Row | BadRow]]
SITE = "https://cs.stanford.edu/people/rak248"


def image(number: int, folder: str, coco: int | None, flickr: int | None) -> dict[str, Any]:
    url = f"{SITE}/{folder}/{number}.jpg"
    return {"width": 20, "url": url, "height": 16, "image_id": number, "coco_id": coco, "flickr_id": flickr}


def regions(number: int, *phrases: str) -> dict[str, Any]:
    box = {"width": 9, "height": 9, "image_id": number, "y": 1, "x": 2}
    return {
        "regions": [box | {"region_id": 1000 * number + at, "phrase": phrase} for at, phrase in enumerate(phrases)],
        "id": number,
    }


FILES = {
    "image_data.json": [
        image(1, "VG_100K_2", None, None),
        image(61512, "VG_100K", 391895, 2572),
        image(3, "VG_100K", None, 5),
    ],
    "region_descriptions.json": [
        regions(1, "the clock is green in colour", "shade is along the street ", "the clock is green in colour"),
        regions(61512, "a man", " "),
        regions(3, "a tree"),
        regions(4, "nowhere"),
    ],
}


def test_phrases_are_captions_and_ids_of_other_collections_are_kept(
    publish: Publish, read_source: Read, picture: Callable[..., bytes]
) -> None:
    one, two = picture(kind="JPEG"), picture(colour=(0, 9, 9), kind="JPEG")
    rows = read_source("visual_genome", publish(FILES | {"VG_100K_2/1.jpg": one, "VG_100K/61512.jpg": two}))
    good = [row for row in rows if isinstance(row, Row)]
    assert [(row.key, row.image, row.split) for row in good] == [("vg-1", one, ""), ("vg-61512", two, "")]
    assert good[0].captions[:2] == ("the clock is green in colour", "shade is along the street ")
    assert good[1].captions == ("a man",)
    assert [row.origins for row in good] == [("vg:1",), ("vg:61512", "coco:391895", "flickr:2572")]
    assert [row for row in rows if isinstance(row, BadRow)] == [
        BadRow("vg-61512 region 61512001", "the region's phrase is missing or empty"),
        BadRow("vg-3", "file VG_100K/3.jpg is not there"),
        BadRow("vg-4", "image_data.json has no such picture"),
    ]


@pytest.mark.parametrize("missing", list(FILES))
def test_a_missing_file_is_named(publish: Publish, read_source: Read, missing: str) -> None:
    url = publish({name: content for name, content in FILES.items() if name != missing})
    with pytest.raises(InputError, match=f"has no {missing}: unpack it from visualgenome.org"):
        read_source("visual_genome", url)


def test_another_file_under_its_name_is_told(publish: Publish, read_source: Read) -> None:
    with pytest.raises(InputError, match=r"region_descriptions.json: an entry has no field regions"):
        read_source("visual_genome", publish(FILES | {"region_descriptions.json": [{"id": 1, "objects": []}]}))


def test_nulls_and_texts(publish: Publish, read_source: Read, picture: Callable[..., bytes]) -> None:
    images = [image(number, "VG_100K", None, None) for number in range(1, 8)]
    images[0] |= {"image_id": "1", "flickr_id": "12"}
    images[1] |= {"url": None}
    images[2] |= {"coco_id": [9]}
    images[3] |= {"image_id": None}
    images[6] |= {"image_id": 6}
    described = [regions(number, f"phrase {number}") for number in range(1, 7)]
    described[0]["regions"] += [{"region_id": 7, "phrase": None}, None, {"region_id": 8, "phrase": "None"}]
    described[4]["regions"] = None
    del described[5]
    files = {"image_data.json": images, "region_descriptions.json": described, "VG_100K/1.jpg": picture()}
    rows = read_source("visual_genome", publish(files))
    (good,) = (row for row in rows if isinstance(row, Row))
    assert (good.key, good.captions, good.origins) == ("vg-1", ("phrase 1",), ("vg:1", "flickr:12"))
    assert [(row.key, row.reason) for row in rows if isinstance(row, BadRow)] == [
        ("vg-1 region 7", "the region's phrase is missing or empty"),
        ("vg-1 region 3", "it is no object: null"),
        ("vg-1 region 8", "the region's phrase is missing or empty: it is the word None"),
        ("vg-2", "url is missing or empty"),
        ("vg-3", "coco_id is no whole number: [9]"),
        ("vg-4", "image_data.json has no such picture"),
        ("vg-5", "regions are no list: null"),
        ("vg-6", "region_descriptions.json says nothing of it"),
        ("(image 4 of image_data.json)", "image_id is no whole number: null"),
        ("vg-6", "duplicate image_id: image 7 of image_data.json has it again"),
    ]
