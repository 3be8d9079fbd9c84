"""COCO's own files, small: Karpathy's JSON, and the official captions of two years."""

from collections.abc import Callable
from typing import Any

import pytest

from cmapkd_core.data.rows import BadRow, Row
from cmapkd_core.errors import InputError

Publish = Callable[[dict[str, Any]], str]
Read = Callable[..., list[Row | BadRow]]
Make = Callable[..., bytes]

# (cocoid, folder, split), in an order that no sorting gives
PICTURES = [
    (391895, "val2014", "test"),
    (9, "train2014", "train"),
    (522418, "val2014", "restval"),
    (7, "val2014", "val"),
]
OFFICIAL = {"info": {"year": 2017}, "licenses": [{"id": 1, "name": "Attribution", "url": "http://x"}]}


def old_name(number: int, folder: str) -> str:
    return f"COCO_{folder}_{number:012d}.jpg"


def karpathy() -> dict[str, Any]:
    images = []
    for imgid, (number, folder, split) in enumerate(PICTURES):
        said = [f"Picture {number}.", f"It is {number}!"]
        sentences = [
            {"tokens": text.lower().split(), "raw": text, "imgid": imgid, "sentid": 2 * imgid + at}
            for at, text in enumerate(said)
        ]
        images.append(
            {
                "filepath": folder,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "filename": old_name(number, folder),
                "imgid": imgid,
                "split": split,
                "sentences": sentences,
                "cocoid": number,
            }
        )
    return {"images": images, "dataset": "coco"}


def captions(year: str, numbers: list[int], part: str) -> dict[str, Any]:
    name = "{:012d}.jpg" if year == "2017" else f"COCO_{part}{year}_{{:012d}}.jpg"
    image = {"license": 1, "height": 16, "width": 20, "date_captured": "2013-11-14", "coco_url": "", "flickr_url": ""}
    return OFFICIAL | {
        "images": [image | {"id": number, "file_name": name.format(number)} for number in numbers],
        "annotations": [
            {"image_id": number, "id": 10 * number + at, "caption": f"caption {at} of {number}"}
            for at in range(2)
            for number in reversed(numbers)
        ],
    }


@pytest.fixture
def pictures(picture: Make) -> dict[int, bytes]:
    return {number: picture(colour=(at * 40, 0, 0), kind="JPEG") for at, (number, _, _) in enumerate(PICTURES)}


def test_karpathys_split_with_the_pictures_of_2014(
    publish: Publish, read_source: Read, pictures: dict[int, bytes]
) -> None:
    files = {f"{folder}/{old_name(number, folder)}": pictures[number] for number, folder, _ in PICTURES}
    rows = read_source("coco", publish({"annotations/dataset_coco.json": karpathy(), **files}))
    splits = {number: {"restval": "train"}.get(split, split) for number, _, split in PICTURES}
    assert [(row.key, row.split, row.origins, row.captions, row.image) for row in rows if isinstance(row, Row)] == [
        (
            f"coco-{number}",
            splits[number],
            (f"coco:{number}",),
            (f"Picture {number}.", f"It is {number}!"),
            pictures[number],
        )
        for number, _, _ in PICTURES
    ]


def test_the_same_pictures_under_their_names_of_2017(
    publish: Publish, read_source: Read, pictures: dict[int, bytes]
) -> None:
    """train2017 and val2017 hold the pictures of 2014 otherwise divided: Karpathy's split counts, not the folder."""
    files = {f"train2017/{number:012d}.jpg": pictures[number] for number in (391895, 9)}
    files |= {f"val2017/{number:012d}.jpg": pictures[number] for number in (522418, 7)}
    rows = read_source("coco", publish({"dataset_coco.json": karpathy(), **files}))
    assert [(row.image, row.split) for row in rows if isinstance(row, Row)] == [
        (pictures[number], split)
        for (number, _, _), split in zip(PICTURES, ("test", "train", "train", "val"), strict=True)
    ]


def test_a_missing_picture_is_a_bad_row_and_only_wanted_splits_are_read(publish: Publish, read_source: Read) -> None:
    url = publish({"dataset_coco.json": karpathy()})
    assert read_source("coco", url, splits="test") == [
        BadRow("coco-391895", f"file val2014/{old_name(391895, 'val2014')} is not there")
    ]


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_official_captions_of_one_year_are_a_split_of_their_own(
    publish: Publish, read_source: Read, picture: Make, year: str
) -> None:
    numbers = list(range(1, 41))
    files: dict[str, Any] = {
        f"annotations/captions_train{year}.json": captions(year, numbers, "train"),
        f"annotations/captions_val{year}.json": captions(year, [50, 41], "val"),
    }
    rows = read_source("coco", publish(files), val_share=0.3)
    assert [row.key for row in rows] == [f"coco-{number}" for number in [*numbers, 50, 41]]
    folder = "val2017/000000000050.jpg" if year == "2017" else "val2014/COCO_val2014_000000000050.jpg"
    assert rows[40] == BadRow("coco-50", f"file {folder} is not there")


def test_official_val_is_test_and_a_share_of_train_is_val(publish: Publish, read_source: Read, picture: Make) -> None:
    numbers = list(range(1, 41))
    files: dict[str, Any] = {f"train2017/{number:012d}.jpg": picture(kind="JPEG") for number in numbers}
    files |= {"val2017/000000000041.jpg": picture(kind="JPEG")}
    files["annotations/captions_train2017.json"] = captions("2017", numbers, "train")
    files["annotations/captions_val2017.json"] = captions("2017", [41], "val")
    rows = [row for row in read_source("coco", publish(files), val_share=0.3) if isinstance(row, Row)]
    assert rows[-1].split == "test"
    assert rows[0].captions == ("caption 0 of 1", "caption 1 of 1")
    sides = [row.split for row in rows[:-1]]
    assert set(sides) == {"train", "val"}
    assert 5 <= sides.count("val") <= 20


def test_nulls_and_texts_in_karpathys_file(publish: Publish, read_source: Read) -> None:
    """None of them is a caption "None", and an id as text is the id."""
    said = karpathy()
    images = [dict(said["images"][0]) for _ in range(8)]
    images[0] |= {"cocoid": "391895"}
    images[1] |= {"cocoid": 2, "sentences": [{"raw": "a dog"}, {"raw": None}]}
    images[2] |= {"cocoid": 3, "sentences": None}
    images[3] |= {"cocoid": None}
    images[4] |= {"cocoid": 5, "split": None}
    images[5] |= {"cocoid": 6, "split": "dev"}
    images[6] |= {"cocoid": 7, "filename": None}
    del images[7]["cocoid"]
    rows = read_source("coco", publish({"dataset_coco.json": {"images": images}}))
    assert [(row.key, row.reason) for row in rows if isinstance(row, BadRow)] == [
        ("coco-391895", f"file val2014/{old_name(391895, 'val2014')} is not there"),
        ("coco-2", "caption 2 of 2 is missing or empty"),
        ("coco-3", "sentences are no list: null"),
        (old_name(391895, "val2014"), "cocoid is no whole number: null"),
        ("coco-5", "split is missing or empty"),
        ("coco-6", "it is in split 'dev', which is none of train, restval, val, test"),
        ("coco-7", "filename is missing or empty"),
        (old_name(391895, "val2014"), "it has no cocoid"),
    ]
    images[1]["split"] = "train"  # and so its caption is of no matter where the test split alone is wanted
    keys = [row.key for row in read_source("coco", publish({"dataset_coco.json": {"images": images}}), splits="test")]
    assert keys == ["coco-391895", "coco-3", *(row.key for row in rows[3:])]


def test_nulls_and_texts_in_the_official_file(publish: Publish, read_source: Read, picture: Make) -> None:
    train, val = captions("2017", [1, 2, 3, 4], "train"), captions("2017", [9], "val")
    train["annotations"] = [
        {"image_id": "1", "caption": "as text"},
        {"image_id": 2, "caption": None},
        {"image_id": 3, "caption": ["a dog", "one dog"]},
        {"image_id": None, "caption": "whose?"},
        {"image_id": 77, "caption": "whose?"},
    ]
    train["images"] += [{"id": 1}, {"id": None}]
    names = {"annotations/captions_train2017.json": train, "annotations/captions_val2017.json": val}
    rows = read_source("coco", publish(names | {f"train2017/{1:012d}.jpg": picture()}), splits="train", val_share=0.0)
    good, *bad = rows
    assert isinstance(good, Row)
    assert (good.key, good.captions) == ("coco-1", ("as text",))
    assert [(row.key, row.reason) for row in bad if isinstance(row, BadRow)] == [
        ("coco-2", "caption is missing or empty"),
        ("coco-3", "caption is no text: ['a dog', 'one dog']"),
        ("coco-4", "caption is missing or empty"),
        ("coco-1", "duplicate id: image 5 of train2017 has it again"),
        ("(image 6 of train2017)", "id is no whole number: null"),
        ("(annotation 4 of train2017)", "image_id is no whole number: null"),
        ("(annotation 5 of train2017)", "there is no image 77"),
    ]


def test_bad_rows_of_a_split_that_is_not_asked_for_are_not_its_own(publish: Publish, read_source: Read) -> None:
    train, val = captions("2017", [1, 2], "train"), captions("2017", [9], "val")
    train["annotations"][0]["caption"] = None
    url = publish({"annotations/captions_train2017.json": train, "annotations/captions_val2017.json": val})
    assert [row.key for row in read_source("coco", url, splits="test")] == ["coco-9"]
    assert [row.key for row in read_source("coco", url, splits="train", val_share=0.0)] == ["coco-1", "coco-2"]


def test_two_years_without_karpathys_file_are_refused(publish: Publish, read_source: Read) -> None:
    files = {
        f"annotations/captions_{part}{year}.json": captions(year, [1], part)
        for part in ("train", "val")
        for year in ("2014", "2017")
    }
    with pytest.raises(
        InputError, match="captions of 2014 and of 2017, whose splits differ: keep one, or add annotations/"
    ):
        read_source("coco", publish(files))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x": b""}, r"has no annotations/dataset_coco\.json or annotations/captions_train2014\.json or .*: unpack"),
        (
            {"dataset_coco.json": b'{"images": [{"filename": "a.jpg", '},
            r"dataset_coco\.json is no complete JSON .*again",
        ),
        ({"dataset_coco.json": {"annotations": [1]}}, "has no list 'images', or nothing in it"),
        ({"dataset_coco.json": {"images": [{"filename": "a.jpg"}]}}, "an entry has no field split, sentences"),
        (
            {"dataset_coco.json": {"images": [{"filename": "a.jpg", "split": "dev", "sentences": []}]}},
            "a.jpg: it is in split 'dev', which is none of train, restval, val, test: this is no file of Karpathy's",
        ),
        (
            {"dataset_coco.json": {"images": [{"filename": "7.jpg", "split": "val", "sentences": []}]}},
            "7.jpg has no cocoid: this is the file of another data set",
        ),
        (
            {"annotations/captions_train2014.json": captions("2014", [1], "train")},
            r"has no annotations/captions_val2014\.json",
        ),
    ],
)
def test_files_that_are_not_cocos_are_named(
    publish: Publish, read_source: Read, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_source("coco", publish(files))


def test_no_url_says_what_is_wanted(read_source: Read) -> None:
    with pytest.raises(InputError, match=r"data.source=coco needs data.url: .* such as --data coco:/data/coco"):
        read_source("coco", "")
