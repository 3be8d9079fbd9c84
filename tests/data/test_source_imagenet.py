"""ImageNet's folders, devkit and lists, small."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from cmapkd_core.data.rows import BadRow, Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.sources.imagenet import class_names
from cmapkd_core.errors import InputError

Publish = Callable[[dict[str, Any]], str]
Read = Callable[..., list[Row | BadRow]]
Make = Callable[..., bytes]

WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
    "n02012849": "crane",
    "n03126707": "crane",
    "n03710637": "maillot",
    "n03710721": "maillot, tank suit",
}
NAMES = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n02012849": "crane (n02012849)",
    "n03126707": "crane (n03126707)",
    "n03710637": "maillot",
    "n03710721": "maillot, tank suit",
}
MAPPING = "".join(f"{synset} {words}\n" for synset, words in WORDS.items()).encode()
FIRST, SECOND = "ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"
SOLUTION = (
    f"ImageId,PredictionString\n{SECOND},n02012849 1 2 3 4 \n{FIRST},n01443537 1 2 3 4 n01443537 5 6 7 8 \n".encode()
)


def meta() -> bytes:
    """meta.mat: the synsets in an order of their own, and inner nodes of the tree behind them."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    leaves = [(at, synset, words, "a fish", 0) for at, (synset, words) in enumerate(reversed(WORDS.items()), start=1)]
    table = np.array([*leaves, (1001, "n00000000", "entity", "all", 2)], dtype=kind)
    file = io.BytesIO()
    savemat(file, {"synsets": table.reshape(-1, 1)})
    return file.getvalue()


def seen(rows: list[Row | BadRow]) -> list[tuple[str, str, str]]:
    return [(row.key, row.class_name, row.split) for row in rows if isinstance(row, Row)]


def test_folders_of_synsets(publish: Publish, read_source: Read, picture: Make) -> None:
    image = picture(kind="JPEG")
    files = {f"val/n01443537/{FIRST}.JPEG": image, f"val/n02012849/{SECOND}.JPEG": image}
    files |= {"train/n01440764/n01440764_18.JPEG": image, "LOC_synset_mapping.txt": MAPPING}
    url = publish(files)
    test = [(FIRST, "goldfish", "test"), (SECOND, "crane (n02012849)", "test")]
    train = [("n01440764_18", "tench", "train")]
    assert seen(read_source("imagenet", url)) == test
    assert seen(read_source("imagenet", url, splits="train")) == train
    assert seen(read_source("imagenet", url, splits="train,test")) == [*test, *train]
    row = read_source("imagenet", url)[0]
    assert isinstance(row, Row)
    assert (row.captions, row.image, row.origins) == ((), image, (f"imagenet:{FIRST}",))


@pytest.mark.parametrize(
    "lists",
    [
        {
            "ILSVRC2012_devkit_t12/data/meta.mat": meta(),
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"5\n4\n",
        },
        {
            "synset_words.txt": MAPPING,
            "LOC_val_solution.csv": SOLUTION,
        },
    ],
)
def test_val_in_one_folder(publish: Publish, read_source: Read, picture: Make, lists: dict[str, bytes]) -> None:
    image = picture(kind="JPEG")
    url = publish({f"val/{FIRST}.JPEG": image, f"val/{SECOND}.JPEG": image, "val/other.JPEG": image} | lists)
    rows = read_source("imagenet", url)
    assert seen(rows) == [(FIRST, "goldfish", "test"), (SECOND, "crane (n02012849)", "test")]
    assert rows[2] == BadRow("other", "nothing says which class val/other.JPEG shows", "test")


def test_rows_with_a_class_and_no_caption_are_stored(
    publish: Publish, read_source: Read, picture: Make, prepare: Callable[..., ShardSet]
) -> None:
    files = {f"val/n01443537/{FIRST}.JPEG": picture(), "LOC_synset_mapping.txt": MAPPING}
    shards = prepare(read_source("imagenet", publish(files)))
    assert (shards.count("test"), shards.class_counts("test"), shards.captions("test", 0)) == (1, {"goldfish": 1}, [])


def test_the_thousand_classes_have_clips_names_and_each_its_own() -> None:
    words = {f"n{number:08d}": f"word {number}, more" for number in range(998)}
    words |= {"n10000000": "missile", "n10000001": "projectile, missile"}
    names = class_names(words)
    assert names["n00000000"] == "tench"
    assert names["n10000001"] == "toilet paper"
    assert len(set(names.values())) == 1000


def test_a_few_classes_have_their_first_word() -> None:
    assert class_names(WORDS) == NAMES


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"LOC_synset_mapping.txt": MAPPING}, "has no pictures in val/"),
        ({f"val/{FIRST}.JPEG": b"x"}, r"has no LOC_synset_mapping\.txt, synset_words\.txt or .*meta\.mat"),
        (
            {f"val/{FIRST}.JPEG": b"x", "synset_words.txt": MAPPING},
            r"val are not sorted into synsets, and there is neither .*ground_truth\.txt with meta\.mat nor LOC_val",
        ),
    ],
)
def test_what_is_missing_is_named(publish: Publish, read_source: Read, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_source("imagenet", publish(files))


DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH = {f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt": b"5\n"}


@pytest.mark.parametrize(
    ("files", "message", "mended"),
    [
        ({"synset_words.txt": b"n1 t\xeanch"}, r"words\.txt is not UTF-8 .*: save it as UTF-8", "n1 t\xeanch".encode()),
        ({"synset_words.txt": b"n1\n"}, "what n1 is called is missing or empty: .* or mend the line", b"n1 tench\n"),
        ({"synset_words.txt": MAPPING + MAPPING}, "names n01440764 twice: keep one of the lines", MAPPING),
        ({f"{DEVKIT}/meta.mat": b"no table", **TRUTH}, r"meta\.mat is no table of synsets .*anew", meta()),
        ({"LOC_val_solution.csv": b"a,b\n"}, "has no columns ImageId and PredictionString", SOLUTION),
    ],
)
def test_lists_that_cannot_be_read_are_named(
    publish: Publish, read_source: Read, files: dict[str, bytes], message: str, mended: bytes
) -> None:
    rest = {"LOC_val_solution.csv": SOLUTION, f"val/{FIRST}.JPEG": b"x"}
    rest |= {} if TRUTH.keys() & files.keys() else {"synset_words.txt": MAPPING}
    with pytest.raises(InputError, match=message):
        read_source("imagenet", publish(rest | files))
    assert len(read_source("imagenet", publish({next(iter(files)): mended}))) == 1


def test_a_picture_of_an_unknown_class_or_of_two_is_a_bad_row(publish: Publish, read_source: Read) -> None:
    solution = b"ImageId,PredictionString\nA,n9 1\nB,n01440764 1\nB,n01443537 1\nC,\n"
    files = {"synset_words.txt": MAPPING, "LOC_val_solution.csv": solution} | {f"val/{x}.JPEG": b"x" for x in "ABC"}
    assert read_source("imagenet", publish(files)) == [
        BadRow("A", "its class is n9, which is none of them", "test"),
        BadRow("B", "its class is n01440764 and n01443537, which is none of them", "test"),
        BadRow("C", "nothing says which class val/C.JPEG shows", "test"),
    ]


@pytest.mark.parametrize("line", [b"0", b"7", b"-1", b"nan"])
def test_a_number_of_no_class_is_a_bad_row(publish: Publish, read_source: Read, line: bytes) -> None:
    """0 would be the last class of a list."""
    files = {f"{DEVKIT}/meta.mat": meta(), f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt": line + b"\n"}
    (bad,) = read_source("imagenet", publish({f"val/{FIRST}.JPEG": b"x"} | files))
    assert bad == BadRow(FIRST, f"its class is {line.decode()}, which is none of them", "test")
