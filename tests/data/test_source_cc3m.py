"""CC3M's TSV files with the pictures of two download tools, and the shards of img2dataset."""

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import BadRow, Row
from cmapkd_core.data.sources import open_rows
from cmapkd_core.errors import InputError

Publish = Callable[[dict[str, Any]], str]
Read = Callable[..., list[Row | BadRow]]
Make = Callable[..., bytes]
ADDRESS = "http://example.org/{}.jpg?size=large"
TRAIN, VAL = "Train_GCC-training.tsv", "Validation_GCC-1.1.0-Validation.tsv"


def tsv(part: str, count: int) -> bytes:
    return "".join(f'a "{part}" thing {at}\t{ADDRESS.format(part + str(at))}\n' for at in range(count)).encode()


def crc(part: str, at: int) -> str:
    return str(zlib.crc32(ADDRESS.format(part + str(at)).encode()) & 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("first", "third", "val"),
    [
        ("images/0.jpg", "images/2.png", "val/0.jpg"),
        ("images/000000000.jpg", "images/000000002.jpeg", "validation/000000000.jpg"),
        ("train/00000000.JPG", "train/00000002.jpg", "val/00000000.jpg"),
        (f"training/{crc('train', 0)}", f"training/{crc('train', 2)}", f"validation/{crc('val', 0)}"),
    ],
)
def test_the_tsv_with_downloaded_pictures(
    publish: Publish, read_source: Read, picture: Make, first: str, third: str, val: str
) -> None:
    image = picture(kind="JPEG")
    url = publish({TRAIN: tsv("train", 3), VAL: tsv("val", 1), first: image, third: image, val: image})
    rows = read_source("cc3m", url)
    assert [(row.key, row.split, row.captions, row.image) for row in rows if isinstance(row, Row)] == [
        ("cc3m-train-0", "train", ('a "train" thing 0',), image),
        ("cc3m-train-2", "train", ('a "train" thing 2',), image),
        ("cc3m-val-0", "val", ('a "val" thing 0',), image),
    ]
    assert [row for row in rows if isinstance(row, BadRow)] == [
        BadRow("cc3m-train-1", f"no picture of line 2 was downloaded: {ADDRESS.format('train1')}", "train")
    ]


def test_a_line_without_url_is_a_bad_row(publish: Publish, read_source: Read, picture: Make) -> None:
    url = publish({TRAIN: b"only a caption\n" + tsv("train", 1), "images/1.jpg": picture()})
    bad, good = read_source("cc3m", url)
    assert bad == BadRow("cc3m-train-0", f"line 1 of {TRAIN} is not caption TAB url", "train")
    assert good.key == "cc3m-train-1"


def test_lines_with_odd_captions_are_bad_rows_or_read(publish: Publish, read_source: Read, picture: Make) -> None:
    captions = [b"\xef\xbb\xbfa dog", b"caf\xe9", str(["a dog", "it"]).encode(), b"nan", b"a \0 b", b"a\rdog"]
    lines = b"".join(caption + f"\t{ADDRESS.format(at)}\r\n".encode() for at, caption in enumerate(captions))
    files = {f"images/{at}.jpg": picture() for at in range(len(captions))}
    first, latin, several, nan, nul, carriage = read_source("cc3m", publish({TRAIN: lines, **files}))
    assert [row.captions for row in (first, several, carriage) if isinstance(row, Row)] == [
        *(("a dog",), ("a dog", "it"), ("a\rdog",))
    ]
    assert latin.reason.startswith(f"line 2 of {TRAIN} is not UTF-8 (")
    assert nan.reason == "caption is missing or empty: it is the word nan"
    assert nul.reason.startswith("caption has the control character U+0000")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_tsv_with_a_byte_order_mark_is_read(
    publish: Publish, read_source: Read, picture: Make, encoding: str
) -> None:
    url = publish({TRAIN: f"café\t{ADDRESS}\n".encode(encoding), "images/0.jpg": picture()})
    assert [row.captions for row in read_source("cc3m", url) if isinstance(row, Row)] == [("café",)]


def test_urls_alone_get_the_command_that_downloads_them(publish: Publish, read_source: Read) -> None:
    with pytest.raises(InputError, match=r"has the URLs and no picture .*images/, training/") as caught:
        read_source("cc3m", publish({TRAIN: tsv("train", 2)}))
    for words in ("cat Train_GCC-training.tsv) > cc3m.tsv", "img2dataset --url_list cc3m.tsv --input_format tsv"):
        assert words in str(caught.value)


def test_neither_shards_nor_a_tsv_is_refused(publish: Publish, read_source: Read) -> None:
    with pytest.raises(InputError, match=r"has neither \.tar shards nor Train_GCC-training\.tsv"):
        read_source("cc3m", publish({"notes.txt": b""}))


# ---- shards ---------------------------------------------------------------------------------------


def shard(samples: dict[str, dict[str, bytes]]) -> bytes:
    """A tar of img2dataset: members of a sample stand together."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for stem, parts in samples.items():
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{stem}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def sample(key: str, image: bytes) -> dict[str, bytes]:
    said = {
        "caption": f"caption of {key}",
        "url": ADDRESS.format(key),
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 20,
        "height": 16,
        "original_width": 40,
        "original_height": 32,
        "exif": "{}",
        "sha256": "0" * 64,
    }
    return {"jpg": image, "json": json.dumps(said, indent=4).encode(), "txt": f"caption of {key}".encode()}


@pytest.mark.parametrize("source", ["img2dataset", "cc3m"])
def test_shards_of_img2dataset(publish: Publish, read_source: Read, picture: Make, source: str) -> None:
    image = {
        key: picture(colour=(at, 9, 9), kind="JPEG") for at, key in enumerate(("000000003", "000000001", "000010000"))
    }
    files = {
        "00000.tar": shard({key: sample(key, image[key]) for key in ("000000003", "000000001")}),
        "00000_stats.json": {"count": 3, "successes": 2, "failed_to_download": 1},
        "00000.parquet": b"",
        "00001.tar": shard({"000010000": sample("000010000", image["000010000"])}),
        "00001_stats.json": {"count": 1, "successes": 1},
    }
    url = publish(files)
    assert [(row.key, row.captions, row.image, row.origins, row.split) for row in read_source(source, url)] == [
        (key, (f"caption of {key}",), image[key], (f"url:{ADDRESS.format(key)}",), "") for key in image
    ]
    assert len(open_rows(DataConfig(source=source, url=url))) == 3


def test_folders_of_shards_are_splits_and_keep_their_keys_apart(
    publish: Publish, read_source: Read, picture: Make
) -> None:
    one = shard({"000000000": sample("000000000", picture())})
    rows = read_source("cc3m", publish({"train/00000.tar": one, "validation/00000.tar": one}))
    assert [(row.key, row.split) for row in rows if isinstance(row, Row)] == [
        ("train/000000000", "train"),
        ("validation/000000000", "val"),
    ]


def test_a_shard_that_is_cut_off_and_samples_without_parts_are_bad_rows(
    publish: Publish, read_source: Read, picture: Make
) -> None:
    good = picture(kind="JPEG")
    whole = shard({f"00000000{at}": sample(f"00000000{at}", good) for at in range(3)})
    cut = whole[: whole.rindex(good) + 100]
    lone = shard({"000010000": {"txt": b"no picture"}, "000010001": {"png": good, "json": b"no JSON"}})
    rows = read_source("img2dataset", publish({"00000.tar": cut, "00001.tar": lone}))
    assert [row.key for row in rows] == ["000000000", "000000001", "00000.tar", "000010000", "000010001"]
    assert rows[2].reason.startswith("the shard is cut off or broken after 2 samples")
    assert rows[3] == BadRow("000010000", "00001.tar has no picture of it")
    assert rows[4].reason.startswith("its json cannot be read: no JSON: ")


def packed(*members: tuple[str, bytes]) -> bytes:
    """A tar of these members in this order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def test_captions_are_the_jsons_then_the_txts_and_lists_are_read(
    publish: Publish, read_source: Read, picture: Make
) -> None:
    """img2dataset writes a list into the JSON and what `str` makes of it into the txt."""
    said = ["a dog", "it's one"]
    samples: list[tuple[dict[str, object] | None, bytes | None]] = [
        ({"caption": said}, b"spelled anyhow"),
        ({"caption": str(said)}, b"else"),
        ({"caption": None, "url": None}, str(said).encode()),
        ({"url": "None"}, '["a dog", "it\'s one"]'.encode("utf-16")),
        (None, b"\xef\xbb\xbf('a dog', \"it's one\")"),
        ({"caption": None}, b"None"),
        ({"caption": ["a dog", None]}, b"a dog"),
        ({"caption": 7}, b"a dog"),
        ({}, b"caf\xe9"),
        ({}, b"['a dog', 'one"),
        ({"caption": "a dog", "url": ["http://x"]}, None),
        ({"caption": "a \0 dog"}, None),
    ]
    parts = [{"jpg": picture()} | ({} if txt is None else {"txt": txt}) for _, txt in samples]
    for part, (given, _) in zip(parts, samples, strict=True):
        part |= {} if given is None else {"json": json.dumps(given).encode()}
    tar = shard({f"0000000{at:02d}": part for at, part in enumerate(parts)})
    rows = read_source("img2dataset", publish({"00000.tar": tar}))
    assert [(row.captions, row.origins) for row in rows if isinstance(row, Row)] == [(tuple(said), ())] * 5
    assert [row.reason for row in rows[5:] if isinstance(row, BadRow)] == [
        "caption is missing or empty: it is the word None",
        "caption 2 of 2 is missing or empty",
        "caption is no text: 7",
        "its txt is not UTF-8 (unexpected end of data at byte 3, line 1)",
        "caption begins like a list of texts and cannot be read as one: ['a dog', 'one",
        "url is no text: ['http://x']",
        r"caption has the control character U+0000: a \x00 dog",
    ]


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        # each time whole: the first is a sample
        (["a.jpg 1", "a.txt 1", "b.jpg 2", "b.txt 2", "a.jpg 3", "a.txt 3"], ["a: 1", "b: 2", "a: 2 times"]),
        (["a.jpg 1", "a.txt 1", "a.jpg 3", "a.txt 3"], ["a: 1", "a: 2 times"]),
        # apart, but none twice
        (["a.jpg 1", "b.jpg 2", "a.txt 1", "b.txt 2"], ["a: 1", "b: 2"]),
        # which text is of which picture?
        (["a.jpg 1", "a.jpg 3", "a.txt 3", "b.jpg 2", "b.txt 2"], ["a: 2 times", "a: 2 times", "b: 2"]),
        (["a.jpg 1", "b.jpg 2", "a.jpg 3", "a.txt 1", "b.txt 2", "a.txt 3"], ["a: 2 times", "b: 2", "a: 2 times"]),
        (["a.jpg 1", "a.png 3", "a.txt 1"], ["a: several pictures of it: jpg, png"]),
    ],
)
def test_a_member_that_stands_twice_is_counted_and_gives_no_picture_anothers_caption(
    publish: Publish, read_source: Read, picture: Make, order: list[str], wanted: list[str]
) -> None:
    members = []
    for name, number in (one.split() for one in order):
        image = picture(colour=(int(number), 0, 0), kind="JPEG")
        members.append((name, number.encode() if name.endswith("txt") else image))
    rows = read_source("img2dataset", publish({"x.tar": packed(*members)}))
    for row, said in zip(rows, wanted, strict=True):
        stem, _, expected = said.partition(": ")
        assert row.key == f"x/{stem}"
        if isinstance(row, Row):
            assert (row.captions, row.image) == ((expected,), picture(colour=(int(expected), 0, 0), kind="JPEG"))
        else:
            assert expected in row.reason


def test_a_link_in_a_shard_is_a_bad_row(publish: Publish, read_source: Read) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("000.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "other.jpg"
            tar.addfile(member)
    (bad,) = read_source("img2dataset", publish({"00000.tar": file.getvalue()}))
    assert bad == BadRow("00000/000", "member 000.jpg is a link and no file")


def test_names_that_begin_anew_in_every_shard_stay_apart(publish: Publish, read_source: Read, picture: Make) -> None:
    """The stems of img2dataset begin with their shard's number; of other tools they repeat."""
    image = picture(kind="JPEG")

    def tar(*stems: str) -> bytes:
        return packed(
            *((f"{stem}.{kind}", image if kind == "jpg" else b"c") for stem in stems for kind in ("jpg", "txt"))
        )

    files = {
        **{f"{at:05d}.tar": tar("000000000", "000000001") for at in range(2)},
        **{f"more/{at}.tar": tar("0", "1", "10") for at in (1, 10)},
        "train/part.tar": tar("part1"),
        "train/00002.tar": tar("000020007"),
    }
    keys = [row.key for row in read_source("img2dataset", publish(files))]
    assert keys == [
        *("000000000", "000000001", "00001/000000000", "00001/000000001"),
        *("more/1/0", "more/1", "more/10", "more/10/0", "more/10/1", "more/10/10"),
        *("train/000020007", "train/part/part1"),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("broken", ["a cut between two samples", "a damaged header"])
def test_a_shard_that_only_seems_to_end_counts_its_lost_samples(
    publish: Publish, read_source: Read, picture: Make, broken: str
) -> None:
    """tarfile takes both for the end of the archive."""
    whole = bytearray(shard({f"00000000{at}": sample(f"00000000{at}", picture(kind="JPEG")) for at in range(5)}))
    third = whole.index(b"000000002.jpg")
    if broken == "a damaged header":
        whole[third] ^= 1
    files = {"00000.tar": bytes(whole if broken == "a damaged header" else whole[:third])}
    rows = read_source("img2dataset", publish(files | {"00000_stats.json": {"successes": 5}}))
    assert [row.key for row in rows] == ["000000000", "000000001", *["00000.tar"] * 3]
    assert "cut off or broken after 2 samples" in rows[-1].reason


@pytest.mark.parametrize("source", ["img2dataset", "cc3m"])
def test_a_shard_that_only_its_stats_file_tells_of_is_as_many_bad_rows(
    publish: Publish, read_source: Read, picture: Make, source: str
) -> None:
    files = {
        "train/00000.tar": shard({"000000000": sample("000000000", picture())}),
        "train/00000_stats.json": {"successes": 1},
        "train/00001_stats.json": {"count": 5, "successes": 3},
        "train/00002.tar": shard({"000020000": sample("000020000", picture())}),
        "train/00002_stats.json": {"successes": 1},
        "train/00003_stats.json": {"count": 5, "successes": 0},
    }
    url = publish(files)
    rows = read_source(source, url)
    lost = BadRow("train/00001.tar", "the shard is not there and its stats file counts 3 pictures: download it again")
    assert rows[1:4] == [lost] * 3
    assert [row.key for row in rows[:1] + rows[4:]] == ["train/000000000", "train/000020000"]
    assert len(open_rows(DataConfig(source=source, url=url))) == len(rows) == 5


def test_a_lost_shard_whose_stats_cannot_be_read_is_a_bad_row(
    publish: Publish, read_source: Read, picture: Make
) -> None:
    files = {"00000.tar": shard({"000000000": sample("000000000", picture())}), "00001_stats.json": b"{"}
    rows = read_source("img2dataset", publish(files))
    assert rows[1:] == [BadRow("00001.tar", "the shard is not there and its stats file is: download it again")]


def test_stats_of_pictures_that_lie_open_are_no_lost_shards(publish: Publish, read_source: Read, picture: Make) -> None:
    """img2dataset's output_format files, beside the TSV."""
    files = {
        TRAIN: tsv("train", 1),
        "images/00000/000000000.jpg": picture(),
        "images/00000_stats.json": {"successes": 9},
    }
    assert [row.key for row in read_source("cc3m", publish(files))] == ["cc3m-train-0"]


@pytest.mark.parametrize(("name", "verb"), [("00000.tar", "opened"), ("00001_stats.json", "read_bytes")])
def test_a_fault_of_the_place_is_no_lost_shard(
    name: str, verb: str, tmp_path: Path, picture: Make, fail_once: Callable[..., None]
) -> None:
    for number in range(2):
        stem = f"0000{number}0000"
        (tmp_path / f"0000{number}.tar").write_bytes(shard({stem: sample(stem, picture())}))
    config = DataConfig(source="img2dataset", url=str(tmp_path))
    fail_once(verb, name)
    with pytest.raises(storage.StorageError, match=f"cannot read .*{name}"):
        list(open_rows(config))
    assert len(list(open_rows(config))) == 2


def test_a_link_within_the_data_is_passed_over_where_no_shard_is_behind_it(
    tmp_path: Path, read_source: Read, picture: Make
) -> None:
    (tmp_path / TRAIN).write_bytes(tsv("train", 1))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").write_bytes(picture())
    (tmp_path / "train").symlink_to("images")
    assert [row.key for row in read_source("cc3m", str(tmp_path))] == ["cc3m-train-0"]
    (tmp_path / "images/0.tar").write_bytes(b"")  # which would be of split train by one name and of none by the other
    with pytest.raises(InputError, match=r"train is a link, which is not followed: copy or mount"):
        read_source("cc3m", str(tmp_path))
    (tmp_path / "images/0.tar").unlink()
    (tmp_path / "out").symlink_to(tmp_path.parent)
    with pytest.raises(InputError, match=r"file out is, or is below, a link that leads out"):
        read_source("cc3m", str(tmp_path))


def test_a_folder_without_shards_is_refused(publish: Publish, read_source: Read) -> None:
    with pytest.raises(InputError, match=r"has no \.tar: give the output folder of img2dataset"):
        read_source("img2dataset", publish({"x.txt": b""}))


@pytest.mark.parametrize(("told", "lost"), [(2, 0), (5, 3), (1, 0)])
def test_a_shard_that_holds_less_than_its_stats_file_counts(tmp_path, told, lost):
    """A whole archive from which samples were taken out, as far as the stats file can tell."""
    files = {"000000000.jpg": b"one", "000000000.txt": b"a dog", "000000001.jpg": b"two", "000000001.txt": b"a cat"}
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "00000_stats.json").write_text(json.dumps({"successes": told}))
    rows = list(open_rows(DataConfig(source="img2dataset", url=str(tmp_path))))
    assert [row.key for row in rows] == ["000000000", "000000001", *["00000.tar"] * lost]
    assert all(f"holds 2 samples and its stats file counts {told}" in row.reason for row in rows[2:])
