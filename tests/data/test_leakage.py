"""The leakage gate: what it finds, what it leaves alone, and what refuse, drop and allow do."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from manifests import rewrite
from PIL import Image, ImageEnhance

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data import leakage, leakage_removal
from cmapkd_core.data.inspection import perceptual_hash
from cmapkd_core.data.layout import SCHEMA
from cmapkd_core.data.leakage import BOUND, HeldOut, LeakageError, checks_of, find_pairs
from cmapkd_core.data.look_alikes import DIFFERENT
from cmapkd_core.data.rows import Question, Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.writer import write_shards
from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import reads
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact

ALL = ("ids", "exact", "perceptual")


def photo(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """A picture with the spectrum of photographs, 1/f."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    waves = np.fft.ifft2(np.fft.fft2(draw.normal(size=(height, width))) / frequency**1.1).real
    grey = (waves - waves.mean()) / waves.std() * 50 + 128
    return Image.fromarray(np.stack([grey.clip(0, 255)] * 3, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def table(*rows: dict[str, Any]) -> pa.Table:
    empty = dict.fromkeys(SCHEMA.names)
    return pa.Table.from_pylist([empty | {"split": "train", "sha256": row["key"]} | row for row in rows], schema=SCHEMA)


# ---- what is found --------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((60, 45), Image.Resampling.BICUBIC),
    "twice the size": lambda image: image.resize((240, 180), Image.Resampling.BICUBIC),
    "another shape": lambda image: image.resize((64, 64), Image.Resampling.BILINEAR),
    "JPEG of quality 40": lambda image: Image.open(io.BytesIO(encoded(image, "JPEG", quality=40))),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_changed_copy_is_found_among_others(change: str) -> None:
    photos = [photo(seed) for seed in range(60)]
    train = table(*({"key": f"t{at}", "phash": perceptual_hash(image)} for at, image in enumerate(photos)))
    copies = [CHANGES[change](photos[at]) for at in (3, 41)]
    held = table(
        *({"key": f"h{at}", "split": "test", "phash": perceptual_hash(image)} for at, image in enumerate(copies))
    )
    pairs = find_pairs(train, [HeldOut(held)], ALL)
    assert [(pair.train, pair.held_out) for pair in pairs] == [("t3", "h0"), ("t41", "h1")]


def test_distances_are_counted_bit_by_bit() -> None:
    draw = np.random.default_rng(0)
    near = [0, 0b1, 0b1111, 0b11111, 0xFFFF, 2**64 - 1]
    bases = [int(value) for value in draw.integers(0, 2**63, 40)]
    train = table(*({"key": f"{at}", "phash": base} for at, base in enumerate(bases)), {"key": "flat", "phash": None})
    held = table(
        *({"key": f"{at} {flip}", "split": "val", "phash": bases[at] ^ flip} for at in (0, 7) for flip in near)
    )
    found = {(pair.train, pair.held_out) for pair in find_pairs(train, [HeldOut(held)], ("perceptual",))}
    expected = {
        (f"{i}", f"{at} {flip}")
        for i, base in enumerate(bases)
        for at in (0, 7)
        for flip in near
        if (base ^ bases[at] ^ flip).bit_count() <= BOUND
    }
    assert found == expected
    assert ("0", "0 15") in found
    assert ("0", "0 31") not in found


def hashed(hashes: np.ndarray, draw: np.random.Generator, split: str) -> pa.Table:
    """Pictures with these hashes, here and there one without."""
    rows = [{"key": f"{split}{at}", "split": split, "phash": int(value)} for at, value in enumerate(hashes)]
    for at in draw.choice(len(rows), len(rows) // 20, replace=False):
        rows[at]["phash"] = None
    return table(*rows)


def pair_by_pair(train: pa.Table, held: pa.Table) -> list[tuple[str, str, tuple[str, ...]]]:
    """What is to be found, by comparing each picture with each."""
    found = []
    for ours in train.to_pylist():
        for theirs in held.to_pylist():
            if ours["phash"] is not None and theirs["phash"] is not None:
                distance = (ours["phash"] ^ theirs["phash"]).bit_count()
                if distance <= BOUND:
                    found.append((ours["key"], theirs["key"], (f"perceptual: {distance} of 64 bits differ",)))
    return found


def flipped(hashes: np.ndarray, most: int, draw: np.random.Generator) -> np.ndarray:
    """Each with 0 to `most` bits changed, wherever they are."""
    masks = [
        sum(1 << int(bit) for bit in draw.choice(64, draw.integers(most + 1), replace=False))
        for _ in range(len(hashes))
    ]
    return hashes ^ np.array(masks, dtype=np.uint64)


def random_hashes(draw: np.random.Generator, count: int) -> np.ndarray:
    return draw.integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["near-duplicates", "many equal", "one bucket", "none held out"])
def test_the_perceptual_check_finds_what_comparing_each_with_each_does_in_its_order(kind: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    ours = random_hashes(draw, 300)
    theirs = flipped(draw.choice(ours, 150), BOUND + 3, draw)
    if kind == "many equal":  # a site's placeholder, and its near copies
        ours[draw.choice(300, 120, replace=False)] = ours[0]
        theirs[draw.choice(150, 40, replace=False)] = ours[0]
        theirs[draw.choice(150, 20, replace=False)] = flipped(ours[:1], BOUND, draw)
    if kind == "one bucket":  # all but sixteen bits are the same everywhere
        ours, theirs = ours >> np.uint64(48), theirs >> np.uint64(48)
    if kind == "none held out":
        theirs = theirs[:0]
    train, held = hashed(ours, draw, "train"), hashed(theirs, draw, "test")
    expected = pair_by_pair(train, held)
    pairs = find_pairs(train, [HeldOut(held)], ("perceptual",))
    assert [(pair.train, pair.held_out, pair.reasons) for pair in pairs] == expected
    assert len(expected) > 50 or kind == "none held out"


def looks(hashes: np.ndarray) -> pa.Table:
    """A table as large as those of the web's data sets, without what the perceptual check does not read."""
    keys = pa.array(np.arange(len(hashes))).cast(pa.string())
    return pa.table({"key": keys, "split": keys, "phash": hashes})


def test_the_perceptual_check_does_not_compare_each_with_each() -> None:
    draw = np.random.default_rng(0)
    ours = random_hashes(draw, 200_000)
    theirs = np.concatenate([random_hashes(draw, 50_000), flipped(ours[:5], BOUND, draw)])
    started = time.process_time()
    pairs = find_pairs(looks(ours), [HeldOut(looks(theirs))], ("perceptual",))
    assert time.process_time() - started < 10  # each with each took 35, this 0.2
    assert [(pair.train, pair.held_out) for pair in pairs] == [(str(at), str(50_000 + at)) for at in range(5)]


def test_pictures_that_all_share_most_bits_do_not_fill_the_memory() -> None:
    """3 of the 5 bands are equal everywhere: 4000 x 4000 pairs to compare, thrice."""
    draw = np.random.default_rng(0)
    codes = random_hashes(draw, 8000) << np.uint64(40)
    tracemalloc.start()
    try:
        find_pairs(looks(codes[:4000]), [HeldOut(looks(codes[4000:]))], ("perceptual",))
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


def test_the_hash_is_imagehashs() -> None:
    import imagehash

    for seed in range(40):
        image = photo(seed, 60 + 7 * seed, 300 - 5 * seed)
        small = image.convert("L").resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=3.0)
        assert perceptual_hash(image) == int(str(imagehash.phash(small)), 16)


@pytest.mark.parametrize("colour", [(0, 0, 0), (200, 30, 30), (255, 255, 255)])
def test_a_picture_without_structure_has_no_perceptual_hash(colour: tuple[int, int, int]) -> None:
    assert perceptual_hash(Image.new("RGB", (40, 30), colour)) is None


def test_ids_are_compared_over_all_names_of_a_picture() -> None:
    train = table({"key": "vg-1", "origins": ["vg:1", "coco:9", "flickr:77"]}, {"key": "vg-2", "origins": ["vg:2"]})
    coco = table(
        {"key": "coco-9", "split": "test", "origins": ["coco:9"]}, {"key": "none", "split": "test", "origins": None}
    )
    flickr = table({"key": "flickr-77", "split": "val", "origins": ["flickr:77"]})
    pairs = find_pairs(train, [HeldOut(coco, "s3://b/coco"), HeldOut(flickr, "s3://b/f")], ALL)
    assert [(pair.train, pair.held_out, pair.split, pair.data, pair.reasons) for pair in pairs] == [
        ("vg-1", "coco-9", "test", "s3://b/coco", ("ids: coco:9",)),
        ("vg-1", "flickr-77", "val", "s3://b/f", ("ids: flickr:77",)),
    ]


def test_drawings_are_not_compared_by_their_looks() -> None:
    assert checks_of(ALL, "emoji") == ("ids", "exact")
    assert checks_of(ALL, "coco") == ALL
    assert checks_of(("exact",), "coco") == ("exact",)
    assert checks_of(ALL, "coco", "cc3m", "emoji") == ("ids", "exact")


# ---- what the stage does --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures with two captions; test has a copy of t0, a smaller t1 as JPEG and one of its own."""
    there = tmp_path / "pictures"
    there.mkdir()
    files = {f"t{at}": encoded(photo(at)) for at in range(9)}
    files |= {"x0": files["t0"], "x1": encoded(CHANGES["half the size"](photo(1)), "JPEG"), "x2": encoded(photo(50))}
    lines = []
    for key, data in files.items():
        (there / key).write_bytes(data)
        split = "train" if key.startswith("t") else "test"
        lines.append(
            json.dumps({"key": key, "file": key, "captions": [key, f"it is {key}"], "split": split, "class": key[0]})
        )
    (there / "captions.jsonl").write_text("\n".join(lines))
    return there


def request(tmp_path: Path, folder: Path, overrides: str = "") -> Request:
    return Request("tiny", str(tmp_path / "root"), overrides=f"data.size=0 {overrides}", data=f"folder:{folder}")


def opened(url: str, tmp_path: Path) -> ShardSet:
    return ShardSet.open(storage.join(url, Artifact.open(url).manifest["folder"]), tmp_path / "cache")


def test_it_refuses_lists_the_pairs_and_says_the_ways_out(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(LeakageError) as caught:
        prepare.run(request(tmp_path, folder))
    said = str(caught.value)
    for words in (
        "2 training pictures are also held out",
        "train t0 = test x0 (exact: the same file; perceptual: 0 of 64 bits differ)",
        "data.leakage_action=drop",
        "data.leakage_action=allow",
    ):
        assert words in said
    listed = [json.loads(line) for line in storage.read_bytes(said.rsplit(" ", 1)[-1]).splitlines()]
    assert [(pair["train"], pair["held_out"], pair["split"]) for pair in listed] == [
        ("t0", "x0", "test"),
        ("t1", "x1", "test"),
    ]
    assert not list((tmp_path / "root").rglob("manifest.json"))


def test_allow_is_recorded_in_both_manifests(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = prepare.run(request(tmp_path, folder, "data.leakage_action=allow"))
    artifact, shards = Artifact.open(url), opened(url, tmp_path)
    assert shards.count("train") == 9
    assert shards.manifest["leakage"] == {
        "checks": list(ALL),
        "bound": BOUND,
        "finer_bound": DIFFERENT,
        "against": [],
        "action": "allow",
        "pairs": 2,
        "look_alikes": 0,
        "leaks": 2,
        "dropped": 0,
    }
    assert artifact.manifest["fields"]["data.leakage_action"] == "allow"
    assert artifact.manifest["metrics"]["leaks"] == 2
    assert len(artifact.fetch("leakage.jsonl").read_text().splitlines()) == 2
    assert "2 training pictures were also held out and are left in it" in capsys.readouterr().out


def test_drop_takes_them_out_of_shards_index_and_counts(tmp_path: Path, folder: Path) -> None:
    url = prepare.run(request(tmp_path, folder, "data.leakage_action=drop data.samples_per_shard=3"))
    artifact, shards = Artifact.open(url), opened(url, tmp_path)
    assert shards.keys("train") == [f"t{at}" for at in range(2, 9)]
    assert shards.keys("test") == ["x0", "x1", "x2"]
    assert list(shards.verify()) == []
    assert shards.class_counts("train") == {"t": 7, "x": 0}
    metrics = artifact.manifest["metrics"]
    assert (metrics["train"], metrics["used"], metrics["captions"], metrics["dropped"]) == (7, 10, 20, 2)
    tars = [str(Path(shards.url) / entry["file"]) for entry in shards.manifest["splits"]["train"]["shards"]]
    there = [sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False)]
    assert there == shards.keys("train")
    assert [entry["count"] for entry in shards.manifest["splits"]["train"]["shards"]] == [1, 3, 3]
    for i, key in enumerate(there):
        assert shards.read_image("train", i) == (folder / key).read_bytes()


def test_a_check_that_is_switched_off_finds_nothing(tmp_path: Path, folder: Path) -> None:
    url = prepare.run(request(tmp_path, folder, "data.leakage=ids"))
    assert opened(url, tmp_path).manifest["leakage"]["checks"] == ["ids"]


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_an_index_is_read_in_parts_of_any_size(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    def dropped(name: str) -> tuple[pa.Table, Any]:
        artifact = Artifact.open(
            prepare.run(request(tmp_path / name, folder, "data.leakage_action=drop data.samples_per_shard=3"))
        )
        manifest = storage.read_json(str(artifact.fetch("shards.json")))
        return pq.read_table(artifact.fetch("index.parquet")), manifest["splits"]

    expected = dropped("whole")
    monkeypatch.setattr(leakage, "_PART", rows)
    monkeypatch.setattr(leakage_removal, "_ROWS", rows)
    assert dropped("parts") == expected


def test_dropping_everything_is_refused(tmp_path: Path, folder: Path) -> None:
    lines = (folder / "captions.jsonl").read_text().splitlines()
    (folder / "captions.jsonl").write_text("\n".join(line for line in lines if '"t0"' in line or '"x' in line))
    with pytest.raises(InputError, match="leaves nothing to train on"):
        prepare.run(request(tmp_path, folder, "data.leakage_action=drop"))


# ---- other data sets ------------------------------------------------------------------------------


def other_set(tmp_path: Path, folder: Path) -> str:
    """URL of a data set whose test pictures are x0, x1 and x2 and whose training has none of them."""
    lines = (folder / "captions.jsonl").read_text().splitlines()
    there = folder.parent / "other"
    there.mkdir()
    kept = [line for line in lines if '"x' in line or '"t8"' in line]
    for name in ("x0", "x1", "x2", "t8"):
        (there / name).write_bytes((folder / name).read_bytes())
    (there / "captions.jsonl").write_text("\n".join(kept))
    (folder / "captions.jsonl").write_text("\n".join(line for line in lines if '"x' not in line))
    return prepare.run(request(tmp_path, there))


def test_test_pictures_of_another_data_set_are_refused_and_dropped(tmp_path: Path, folder: Path) -> None:
    other = other_set(tmp_path, folder)
    with pytest.raises(LeakageError, match=f"train t0 = test x0 of {other}"):
        prepare.run(request(tmp_path, folder, f"data.against={other}"))
    url = prepare.run(request(tmp_path, folder, f"data.against={other} data.leakage_action=drop"))
    assert opened(url, tmp_path).keys("train") == [f"t{at}" for at in range(2, 9)]
    inputs = Artifact.open(url).manifest["inputs"]
    assert inputs == {"against-0": {"url": other, "digest": Artifact.open(other).digest}}


def test_what_cannot_be_compared_is_refused(tmp_path: Path, folder: Path) -> None:
    url = prepare.run(request(tmp_path, folder, "data.splits=train"))
    with pytest.raises(InputError, match="holds no val or test picture"):
        prepare.run(request(tmp_path, folder, f"data.against={url} data.splits=train"))
    with pytest.raises(InputError, match="has no manifest.json"):
        prepare.run(request(tmp_path, folder, f"data.against={tmp_path}/nothing"))
    old = storage.read_json(Artifact.open(url).file_url("shards.json"))
    del old["leakage"]
    rewrite(url, "shards.json", json.dumps(old).encode())
    with pytest.raises(InputError, match=r"was prepared before pictures were compared: run .* --redo yes"):
        prepare.run(request(tmp_path, folder, f"data.against={url}"))


# ---- the rest -------------------------------------------------------------------------------------


def test_questions_of_dropped_pictures_go_too(tmp_path: Path) -> None:
    from cmapkd_core.data.leakage import gate

    config = DataConfig(leakage_action="drop")
    rows = [
        Row(
            f"k{at}",
            encoded(photo(at % 4)),
            (),
            split="train" if at < 4 else "test",
            questions=(Question(at, "?a", ("b",)),),
        )
        for at in range(5)
    ]
    counts = write_shards(rows, tmp_path / "out", config, lambda seen: None)
    counts = gate(tmp_path / "out", config, {}, counts)
    shards = ShardSet.open(str(tmp_path / "out"), tmp_path / "cache")
    assert (counts["questions"], shards.question_count("train"), shards.question_count("test")) == (4, 3, 1)
    assert shards.questions("train")["key"].to_pylist() == ["k1", "k2", "k3"]


def test_the_gates_fields_decide_the_artifact_where_they_are_not_as_usual() -> None:
    usual = resolve("tiny")
    changed = resolve("tiny", overrides="data.leakage_action=drop data.against=s3://b/x,s3://b/y data.splits=test")
    for stage in ("prepare", "teacher", "warmup", "joint"):
        assert not [
            name for name in reads(usual, stage) if name.startswith(("data.leak", "data.against", "data.splits"))
        ]
        assert reads(changed, stage)["data.against"] == ("s3://b/x", "s3://b/y")
        assert reads(changed, stage)["data.leakage_action"] == "drop"
        assert reads(changed, stage)["data.splits"] == ("test",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.leakage=ids,perceptul", "unknown leakage check 'perceptul': did you mean 'perceptual'"),
        ("data.leakage_action=alow", "unknown leakage action 'alow': did you mean 'allow'"),
        ("data.splits=tst", "unknown split 'tst': did you mean 'test'"),
    ],
)
def test_wrong_words_get_the_nearest_right_one(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve("tiny", overrides=override)
