import hashlib
import io
import json
import pickle
import random
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image
from refused_user import refused as refused_user
from webdataset.writer import TarWriter

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import BadRow, Row
from cmapkd_core.data.shards import CorruptSampleError, ShardSet
from cmapkd_core.data.tar import Shard
from cmapkd_core.data.verdict import TooManyBadError
from cmapkd_core.data.writer import write_shards
from cmapkd_core.errors import InputError
from cmapkd_core.fields import override
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.storage import StorageError

Make = Callable[..., bytes]
Prepare = Callable[..., ShardSet]
SPLITS = ("train", "val", "test")
MEMBERS = (("jpg", 0), ("jpg", 1), ("png", 511), ("webp", 512), ("jpg", 513), ("png", 70_000), ("webp", 9_999))


def rows(picture: Make, count: int, **fields: str) -> list[Row]:
    return [Row(f"k{i}", picture(colour=(i % 256, i // 256, 9)), (f"caption {i}",), **fields) for i in range(count)]


# ---- what is written ------------------------------------------------------------------------------


def test_offsets_sizes_and_checksums_are_those_of_the_tar(scenes: ShardSet, scenes_url: str) -> None:
    for split in SPLITS:
        for row in scenes.table(split).to_pylist():
            raw = (Path(scenes_url) / row["shard"]).read_bytes()
            with tarfile.open(Path(scenes_url) / row["shard"]) as tar:
                for part, ext in (("image", row["ext"]), ("json", "json")):
                    member = tar.getmember(f"{row['key']}.{ext}")
                    first, size = row[f"{part}_offset"], row[f"{part}_size"]
                    assert (first, size) == (member.offset_data, member.size)
                    assert zlib.crc32(raw[first : first + size]) == row[f"{part}_crc32"]


def test_webdataset_reads_the_same_samples(scenes: ShardSet, scenes_url: str) -> None:
    for split in SPLITS:
        shards = [str(Path(scenes_url) / entry["file"]) for entry in scenes.manifest["splits"][split]["shards"]]
        samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
        assert [sample["__key__"] for sample in samples] == scenes.keys(split)
        for i, sample in enumerate(samples):
            assert sample["png"] == scenes.read_image(split, i)
            assert json.loads(sample["json"])["captions"] == scenes.captions(split, i)


def test_a_loop_of_one_s_own_reads_pairs_as_the_docs_say(tiny_shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines of docs/shards.md as they stand there, on an artifact of stage prepare."""
    text = (Path(__file__).parents[2] / "docs" / "shards.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    *lines, loop, printed = code.splitlines()
    known: dict[str, Any] = {"artifact": tiny_shards}
    exec("\n".join(lines), known)
    shards = open_shards(Artifact.open(tiny_shards))
    pairs = list(known["pairs"])
    assert len(pairs) == shards.count("train") > 1
    for i, (image, sample) in enumerate(pairs):
        with Image.open(io.BytesIO(shards.read_image("train", i))) as stored:
            assert image.tobytes() == stored.convert("RGB").tobytes()
        assert sample["captions"] == shards.captions("train", i)
    exec(f"{loop}\n{printed}", known)
    assert len(capsys.readouterr().out.splitlines()) == len(pairs)


def test_the_manifest_counts_what_is_there(scenes: ShardSet, scenes_url: str) -> None:
    manifest = scenes.manifest
    assert sum(scenes.count(split) for split in SPLITS) == manifest["seen"] == 96
    for split in SPLITS:
        entry = manifest["splits"][split]
        assert sum(shard["count"] for shard in entry["shards"]) == entry["count"] == scenes.count(split)
        assert sum(entry["classes"].values()) == scenes.count(split)
        for shard in entry["shards"]:
            data = (Path(scenes_url) / shard["file"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
            assert shard["count"] <= 16


def test_the_same_rows_give_the_same_bytes(picture: Make, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(rows(picture, 20), tmp_path / name, DataConfig(), lambda seen: None)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_keys_that_a_tar_reader_would_misread_come_back_whole(picture: Make, prepare: Prepare) -> None:
    keys = ["a.b.c", "a/b", "../up", "ключ", "with blank", "k" * 300, "a.b.d"]
    shards = prepare([Row(k, picture(colour=(i, 0, 0)), ("c",), split="train") for i, k in enumerate(keys)])
    assert shards.keys("train") == keys
    assert [shards.read_image("train", i) for i in range(len(keys))] == [
        picture(colour=(i, 0, 0)) for i in range(len(keys))
    ]
    files = [str(Path(shards.url) / entry["file"]) for entry in shards.manifest["splits"]["train"]["shards"]]
    assert len(list(webdataset.WebDataset(files, shardshuffle=False))) == len(keys)


def test_captions_are_cleaned_and_kept_once(picture: Make, prepare: Prepare) -> None:
    shards = prepare([Row("k", picture(), ("a  red\nthing", "a red thing", "red"), split="train")])
    assert shards.captions("train", 0) == ["a red thing", "red"]


# ---- splits ---------------------------------------------------------------------------------------


def test_a_group_never_lies_on_two_sides(picture: Make, prepare: Prepare) -> None:
    many = [Row(f"k{i}", picture(colour=(i, 1, 2)), ("c",), group=f"g{i % 40}") for i in range(200)]
    shards = prepare(many, val_share=0.2, test_share=0.2)
    sides = [set(shards.table(split)["group"].to_pylist()) for split in SPLITS]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides)) == 40


def test_copies_of_a_file_stay_on_one_side(picture: Make, prepare: Prepare) -> None:
    shards = prepare([Row(f"k{i}", picture(colour=(i // 2, 0, 0)), (f"c{i}",)) for i in range(100)], test_share=0.4)
    assert all(count % 2 == 0 for count in (shards.count(split) for split in SPLITS))
    assert min(shards.count("train"), shards.count("test")) > 10


def test_named_splits_are_kept(picture: Make, prepare: Prepare) -> None:
    named = [Row(f"k{i}", picture(colour=(i, 0, 0)), ("c",), split=SPLITS[i % 3]) for i in range(9)]
    shards = prepare(named)
    assert {split: shards.keys(split) for split in SPLITS} == {
        split: [f"k{i}" for i in range(n, 9, 3)] for n, split in enumerate(SPLITS)
    }


def test_classes_without_a_picture_in_a_split_are_counted_zero(picture: Make, prepare: Prepare) -> None:
    shards = prepare(
        [
            Row("a", picture(), ("c",), class_name="cat", split="train"),
            Row("b", picture(colour=(1, 1, 1)), ("c",), class_name="dog", split="train"),
            Row("c", picture(colour=(2, 2, 2)), ("c",), class_name="dog", split="test"),
            Row("d", picture(colour=(3, 3, 3)), ("c",), split="test"),
        ]
    )
    assert shards.classes == ["cat", "dog"]
    assert shards.class_counts("test") == {"cat": 0, "dog": 1}
    assert shards.class_counts("val") == {"cat": 0, "dog": 0}


# ---- bad rows -------------------------------------------------------------------------------------


def bad_rows(picture: Make) -> list[tuple[Row | BadRow, str]]:
    good = picture()
    return [
        (Row("no captions", good, ()), "caption is missing"),
        (Row("blank", good, (" \n",)), "caption is missing or empty"),
        (Row("one blank", good, ("fine", "")), "caption 2 of 2 is missing or empty"),
        (Row("nul", picture(colour=(6, 6, 6)), ("a\0b",)), "caption has the control character U+0000"),
        (Row("class", picture(colour=(5, 5, 5)), (), "caf\ufffd"), "class has U+FFFD"),
        (Row("none", picture(colour=(4, 4, 4)), ("None",)), "caption is missing or empty: it is the word None"),
        (Row("list", picture(colour=(3, 3, 3)), ("['a', 'b']",)), "caption is no text but spells a list"),
        (Row("k\ufeff", picture(colour=(2, 2, 2)), ("c",)), "key has the byte order mark U+FEFF"),
        (Row("", good, ("c",)), "key is missing"),
        (Row("no picture", b"", ("c",)), "image file is empty"),
        (Row("text", b"hello there", ("c",)), "no PNG, JPEG or WebP"),
        (Row("cut", good[:50], ("c",)), "cannot be read"),
        (Row("huge", picture(200, 200), ("c",)), "200x200 pixels are more than data.max_pixels=10000"),
        (Row("tiny", picture(2, 2), ("c",)), "2x2 pixels"),
        (Row("k0", picture(colour=(9, 9, 9)), ("c",)), "duplicate key"),
        (Row("split", picture(colour=(8, 8, 8)), ("c",), split="dev"), "split 'dev' is none of train, val, test"),
        (Row("unicode", picture(colour=(7, 7, 7)), ("half \ud800 pair",)), "no valid Unicode"),
        (BadRow("source", "file x is not there"), "file x is not there"),
    ]


def test_every_bad_row_is_counted_and_listed_with_its_reason(picture: Make, prepare: Prepare) -> None:
    bad = bad_rows(picture)
    good = rows(picture, 30)
    shards = prepare([*good, *(row for row, _ in bad)], quarantine_bound=0.5, max_pixels=10_000)
    listed = [json.loads(line) for line in (Path(shards.url) / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in listed] == [row.key for row, _ in bad]
    for entry, (_, reason) in zip(listed, bad, strict=True):
        assert reason in entry["reason"]
    assert sum(shards.count(split) for split in SPLITS) == 30
    assert (shards.manifest["seen"], shards.manifest["quarantined"]) == (30 + len(bad), len(bad))


def refused(there: list[Row | BadRow], out: Path, **settings: object) -> str:
    """What is said of rows that make no data set."""
    with pytest.raises(TooManyBadError) as caught:
        write_shards(there, out, override(DataConfig(), settings), lambda seen: None)
    assert not (out / "shards.json").exists()
    return str(caught.value)


def test_a_single_bad_row_ends_nothing_unless_none_is_allowed(picture: Make, prepare: Prepare, tmp_path: Path) -> None:
    mixed = [*rows(picture, 40), BadRow("gone", "file x.png is not there")]
    shards = prepare(mixed)
    assert sum(shards.count(split) for split in SPLITS) == 40
    assert shards.manifest["quarantined"] == 1
    said = refused(mixed, tmp_path / "strict", quarantine_bound=0.0)
    assert "1 of 41 rows cannot be used (2.44%), data.quarantine_bound=0.0 allows 0.00%:" in said


def test_a_few_bad_rows_are_refused_with_a_bound_that_is_enough(
    picture: Make, prepare: Prepare, tmp_path: Path
) -> None:
    mixed = [*rows(picture, 40), Row("empty", picture(), ("",)), BadRow("gone", "file x.png is not there")]
    said = refused(mixed, tmp_path / "refused")
    for words in ("2 of 42 rows", "1 x empty: caption is missing", "1 x gone: file x.png is not there"):
        assert words in said
    assert "empty" in (tmp_path / "refused" / "quarantine.jsonl").read_text()
    name, _, bound = said.rpartition("--set data.")[2].partition("=")
    shards = prepare(mixed, **{name: float(bound)})
    assert sum(shards.count(split) for split in SPLITS) == 40


def test_of_many_bad_rows_the_kinds_are_counted_and_no_bound_is_proposed(picture: Make, tmp_path: Path) -> None:
    gone = [BadRow(f"g{i}", f"file {i}.png is not there") for i in range(20)]
    again = [Row(f"k{i}", picture(), ("c",)) for i in range(9)]
    said = refused([*rows(picture, 30), *again, *gone, BadRow("x\x1b[2J", "odd")], tmp_path)
    kinds = ("20 x g0: file 0.png is not there", "9 x k0: duplicate key: an earlier row has it", r"1 x x\x1b[2J: odd")
    assert said.splitlines()[1:4] == [f"  {kind}" for kind in kinds]
    assert "More than 5% are a fault to be mended" in said
    assert "data.quarantine_bound=0.001" in said
    assert "--set" not in said


def test_rare_kinds_are_one_line(tmp_path: Path, picture: Make) -> None:
    odd = [BadRow(f"k{i}", f"{'abcdefgh'[i]} is odd") for i in range(8)]
    assert "  3 x for other reasons" in refused([*rows(picture, 4), *odd], tmp_path)


@pytest.mark.parametrize("splits", ["", "test", "train,val"])
def test_a_data_set_of_bad_rows_alone_is_refused_whatever_the_bound(tmp_path: Path, splits: str) -> None:
    gone = [BadRow(f"k{i}", "gone") for i in range(50)]
    said = refused(gone, tmp_path, quarantine_bound=1.0, splits=splits)
    assert "can be used, whatever bound is set: 50 of 50 are bad\n  50 x k0: gone" in said


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (lambda picture: [], {}, "has no rows"),
        (lambda picture: [], {"splits": "val"}, r"has no rows of data\.splits=val"),
        (lambda picture: rows(picture, 3, split="test"), {}, "no row is in the training split"),
        (lambda picture: rows(picture, 3, split="test"), {"splits": "train,test"}, "no row is in the training split"),
        (lambda picture: rows(picture, 3, split="train"), {"splits": "val"}, r"data\.splits=val leaves none of the 3"),
        (lambda picture: rows(picture, 3), {"val_share": 0.5, "test_share": 0.5}, "leave nothing to train on"),
        (lambda picture: rows(picture, 3), {"val_share": -0.1}, "leave nothing to train on"),
    ],
)
def test_data_that_cannot_train_is_refused(
    picture: Make, prepare: Prepare, make: Callable[[Make], list[Row]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(make(picture), **settings)


def test_what_is_said_of_rows_without_training_leads_out(picture: Make, prepare: Prepare) -> None:
    held_out = rows(picture, 3, split="test")
    with pytest.raises(TooManyBadError, match=r"--set data\.splits=test$") as caught:
        prepare(held_out)
    shards = prepare(held_out, splits=str(caught.value).rpartition("data.splits=")[2])
    assert shards.count("test") == 3


# ---- damage ---------------------------------------------------------------------------------------


def copy_of(url: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(url, tmp_path / "copy"))


def test_every_flipped_bit_is_harmless_or_noticed(scenes_url: str, tmp_path: Path) -> None:
    folder = copy_of(scenes_url, tmp_path)
    shards = ShardSet.open(str(folder), tmp_path / "cache")
    whole = [shards.read_image("train", i) for i in range(shards.count("train"))]
    table = shards.table("train").to_pylist()
    draw = random.Random(0)
    hit = 0
    for _ in range(400):
        name = draw.choice(shards.manifest["splits"]["train"]["shards"])["file"]
        path = folder / name
        at, bit = draw.randrange(path.stat().st_size), 1 << draw.randrange(8)
        flip(path, at, bit)
        for i, row in enumerate(table):
            if row["shard"] != name:
                continue
            damaged = row["image_offset"] <= at < row["image_offset"] + row["image_size"]
            if damaged:
                with pytest.raises(CorruptSampleError) as caught:
                    shards.read_image("train", i)
                assert (caught.value.shard, caught.value.key) == (name, row["key"])
                hit += 1
            else:
                assert shards.read_image("train", i) == whole[i]
        flip(path, at, bit)
    assert hit > 20
    assert list(shards.verify()) == []


def flip(path: Path, at: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bit]))


def test_every_truncation_is_noticed(scenes_url: str, tmp_path: Path) -> None:
    folder = copy_of(scenes_url, tmp_path)
    shards = ShardSet.open(str(folder), tmp_path / "cache")
    name = shards.manifest["splits"]["train"]["shards"][0]["file"]
    whole = (folder / name).read_bytes()
    table = [row for row in shards.table("train").to_pylist() if row["shard"] == name]
    draw = random.Random(1)
    boundaries = [row["json_offset"] - 512 for row in table]
    for length in [*boundaries, *(draw.randrange(len(whole)) for _ in range(200))]:
        (folder / name).write_bytes(whole[:length])
        lost = {row["key"] for row in table if row["json_offset"] + row["json_size"] > length}
        lost |= {row["key"] for row in table if row["image_offset"] + row["image_size"] > length}
        assert {error.key for error in ShardSet.open(str(folder), tmp_path / "cache").verify()} == lost


def test_a_missing_shard_and_a_missing_data_set_say_so(scenes_url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shards.json is missing.: run stage prepare first"):
        ShardSet.open(str(tmp_path / "nothing"), tmp_path / "cache")
    folder = copy_of(scenes_url, tmp_path)
    shards = ShardSet.open(str(folder), tmp_path / "cache")
    (folder / "train-00000.tar").unlink()
    with pytest.raises(InputError, match=r"train-00000\.tar .* is missing"):
        shards.read_image("train", 0)


def test_a_shard_that_may_not_be_read_is_no_traceback(
    scenes_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(scenes_url, tmp_path)
    folder.chmod(0o755)
    monkeypatch.chdir(folder)  # the folders above are the tests' own, and here the file itself is refused
    shards = ShardSet.open(".", tmp_path / "cache")
    said = (
        r"cannot read .*train-00000\.tar: Permission denied; give this user the right to read it, and to enter the fold"
    )
    with refused_user(folder / "train-00000.tar"), pytest.raises(StorageError, match=said):
        shards.read_image("train", 0)
    assert shards.read_image("train", 0)


def test_a_changed_index_is_refused(scenes_url: str, tmp_path: Path) -> None:
    folder = copy_of(scenes_url, tmp_path)
    flip(folder / "index.parquet", 300, 1)
    with pytest.raises(InputError, match=r"does not match shards\.json"):
        ShardSet.open(str(folder), tmp_path / "cache")


def test_shards_outside_the_folder_are_refused(scenes_url: str, tmp_path: Path) -> None:
    folder = copy_of(scenes_url, tmp_path)
    manifest = json.loads((folder / "shards.json").read_text())
    manifest["splits"]["train"]["shards"][0]["file"] = "../../etc/passwd"
    (folder / "shards.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="no file name"):
        ShardSet.open(str(folder), tmp_path / "cache")


def test_an_unknown_split_names_the_nearest(scenes: ShardSet) -> None:
    with pytest.raises(InputError, match="did you mean 'test'"):
        scenes.count("tset")


def test_an_empty_split_has_no_samples(picture: Make, prepare: Prepare) -> None:
    shards = prepare([Row("a", picture(), ("c",), split="train")])
    assert shards.count("val") == 0
    assert shards.keys("val") == []


def test_a_pickled_set_reads_the_same(scenes: ShardSet) -> None:
    image = scenes.read_image("train", 0)
    assert pickle.loads(pickle.dumps(scenes)).read_image("train", 0) == image


# ---- S3 -------------------------------------------------------------------------------------------


def upload(folder: str, url: str) -> str:
    for path in Path(folder).iterdir():
        storage.put(path, storage.join(url, path.name))
    return url


def test_shards_on_s3_are_fetched_once_and_read_the_same(
    scenes: ShardSet, scenes_url: str, s3_root: str, tmp_path: Path
) -> None:
    url = upload(scenes_url, storage.join(s3_root, "shards"))
    for _ in range(2):  # the second reader finds the cache and needs no server
        there = ShardSet.open(url, tmp_path / "s3cache")
        for split in SPLITS:
            assert [there.read_image(split, i) for i in range(there.count(split))] == [
                scenes.read_image(split, i) for i in range(scenes.count(split))
            ]
        for shard in there.manifest["splits"]["train"]["shards"]:
            storage.delete(storage.join(url, shard["file"]))
    assert not list((tmp_path / "s3cache").rglob("*.part"))


def test_a_shard_damaged_on_s3_is_refused(scenes_url: str, s3_root: str, tmp_path: Path) -> None:
    url = upload(scenes_url, storage.join(s3_root, "shards"))
    name = storage.join(url, "train-00000.tar")
    data = bytearray(storage.read_bytes(name))
    data[700] ^= 4
    storage.write_bytes(name, bytes(data))
    with pytest.raises(InputError, match=r"train-00000\.tar does not have the sha256"):
        ShardSet.open(url, tmp_path / "s3cache").read_image("train", 0)


def test_a_shard_is_what_webdatasets_own_writer_makes(tmp_path: Path) -> None:
    """Byte for byte, whatever the lengths; and what lies where the index says is checked before it counts."""
    samples = [(f"key-{i}", ext, bytes([i % 256]) * size) for i, (ext, size) in enumerate(MEMBERS)]
    shard = Shard(tmp_path / "ours.tar")
    for number, (key, ext, data) in enumerate(samples):
        shard.add(number, {"key": key, "ext": ext}, data, {"key": key})
    shard.seal()
    with open(tmp_path / "theirs.tar", "wb") as file:
        writer = TarWriter(file, encoder=False, mtime=0)
        for key, ext, data in samples:
            writer.write({"__key__": key, ext: data, "json": json.dumps({"key": key}).encode()})
        writer.close()
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()
    assert shard.digest == hashlib.sha256((tmp_path / "theirs.tar").read_bytes()).hexdigest()


def test_a_disk_that_gives_back_other_bytes_is_noticed(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "a.tar")
    shard.add(1, {"key": "k", "ext": "png"}, b"pixels" * 1000, {})
    shard.samples[0]["image_crc32"] ^= 1
    with pytest.raises(OSError, match=r"a\.tar: the image of k reads back changed; the disk is not to be trusted"):
        shard.seal()
