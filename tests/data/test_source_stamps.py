"""An unpacked tuxpaint-stamps-default, small."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cmapkd_core.data.rows import BadRow, Row
from cmapkd_core.data.sources.stamps import CLASSES, class_name, stem
from cmapkd_core.errors import InputError
from cmapkd_core.storage import StorageError

Publish = Callable[[dict[str, Any]], str]
Read = Callable[..., list[Row | BadRow]]
ROOT = "usr/share/tuxpaint/stamps"


def test_pictures_and_glyphs(publish: Publish, read_source: Read, picture: Callable[..., bytes]) -> None:
    image = picture(39, 7, (0, 0, 255, 128))
    names = [
        "animals/birds/owl",
        "seasonal/newyears/horn",
        "symbols/alphabets/asl/a",
        "symbols/math/1",
        "town/sign_mirror",
    ]
    files = {f"{ROOT}/{name}.png": image for name in [*names, "plants/lost"]}
    files |= {f"{ROOT}/{name}.txt": b"An owl.\nde.utf8=Eine Eule.\n" for name in names[:4]}
    files |= {
        f"{ROOT}/animals/birds/owl.ogg": b"hoo",
        f"{ROOT}/town/house.svg": b"<svg/>",
        f"{ROOT}/town/house.txt": b"A",
    }
    rows = {row.key: row for row in read_source("stamps", publish(files))}
    assert set(rows) == {"animals/birds/owl", "seasonal/newyears/horn", "plants/lost"}
    assert rows["plants/lost"] == BadRow("plants/lost", "plants/lost.txt is not there")
    bird = rows["animals/birds/owl"]
    assert isinstance(bird, Row)
    assert (bird.captions, bird.class_name, bird.group) == (("An owl.",), "bird", "stamp owl")
    square = Image.open(io.BytesIO(bird.image))
    assert (square.size, square.mode) == ((39, 39), "RGB")
    assert square.getpixel((0, 0)) == (255, 255, 255)
    assert square.getpixel((20, 19)) == (127, 127, 255)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("A frog.", "The frog", True),
        ("A US 25 cent piece ($.25).", "A US 50 cent piece ($.50)!", True),
        ("A frog.", "A tree frog.", False),
        ("Pawn.", "Rook.", False),
    ],
)
def test_captions_of_one_thing_have_one_stem(one: str, other: str, alike: bool) -> None:
    assert (stem(one) == stem(other)) == alike


def test_the_class_is_that_of_the_longest_folder() -> None:
    assert class_name("animals/mammals/cats/lion.png") == "mammal"
    assert class_name("animals/lizards/iguana.png") == "animal"
    assert len(set(CLASSES.values())) == len(CLASSES)


def test_another_folder_says_how_to_get_the_package(publish: Publish, read_source: Read) -> None:
    with pytest.raises(InputError, match="apt-get download tuxpaint-stamps-default && dpkg-deb -x"):
        read_source("stamps", publish({"a.png": b""}))


def test_a_fault_of_the_place_is_no_bad_stamp(
    tmp_path: Path, read_source: Read, picture: Callable[..., bytes], fail_once: Callable[..., None]
) -> None:
    (folder := tmp_path / ROOT).mkdir(parents=True)
    (folder / "owl.png").write_bytes(picture())
    (folder / "owl.txt").write_bytes(b"An owl.\n")
    fail_once("read_bytes", "owl.txt")
    with pytest.raises(StorageError, match=r"cannot read .*owl\.txt: Input/output error"):
        read_source("stamps", str(tmp_path))
    assert [row.captions for row in read_source("stamps", str(tmp_path)) if isinstance(row, Row)] == [("An owl.",)]
