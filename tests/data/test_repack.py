"""Training pictures that prepare makes smaller; those that a student is evaluated on stay as they are."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pictures import NOISE, jpeg, smooth, turned
from PIL import Image

from cmapkd_core.config import DataConfig
from cmapkd_core.data.augment import View
from cmapkd_core.data.images import decode
from cmapkd_core.data.inspection import perceptual_hash
from cmapkd_core.data.loader import Side, TrainLoader
from cmapkd_core.data.repack import repacked
from cmapkd_core.data.rows import Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.writer import write_shards
from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import reads
from cmapkd_core.recipes import resolve

LIMIT = 1_000_000
PHOTO = smooth(200, 150)


def encoded(kind: str, picture: np.ndarray = PHOTO, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


PICTURES = {
    "photo": jpeg(PHOTO, quality=95),
    "small": jpeg(NOISE[:40]),
    "drawing": encoded("PNG"),
    "small-drawing": encoded("PNG", NOISE[:40]),
    "web": encoded("WEBP", lossless=True),
    "sideways": jpeg(PHOTO, exif=turned(6), quality=95),
    "progressive": jpeg(PHOTO, progressive=True, quality=95),
}


@pytest.fixture
def both(prepare: Callable[..., ShardSet]) -> ShardSet:
    """Every picture once for training and once held out, which the leakage gate would not let pass."""
    rows = [
        Row(f"{split}-{name}", data, (name,), split=split, group=f"{split}-{name}")
        for split in ("train", "test")
        for name, data in PICTURES.items()
    ]
    return prepare(rows, repack=64)


def stored(shards: ShardSet, split: str) -> dict[str, bytes]:
    return {key.partition("-")[2]: shards.read_image(split, i) for i, key in enumerate(shards.keys(split))}


def test_training_pictures_are_small_jpegs_and_others_as_they_came(both: ShardSet) -> None:
    assert both.manifest["repack"] == 64
    assert stored(both, "test") == PICTURES
    for name, data in stored(both, "train").items():
        assert data.startswith(b"\xff\xd8\xff")
        before, after = (decode(x, LIMIT) for x in (PICTURES[name], data))
        share = min(64 / min(before.size), 1)
        assert after.size == tuple(round(side * share) for side in before.size)
        assert (data == PICTURES[name]) == (name == "small")  # a JPEG that needs no change


def test_the_index_says_what_is_stored_and_what_it_was(both: ShardSet) -> None:
    train, test = ({row["captions"][0]: row for row in both.table(split).to_pylist()} for split in ("train", "test"))
    for name, data in stored(both, "train").items():
        assert (train[name]["width"], train[name]["height"]) == decode(data, LIMIT).size
        assert train[name]["ext"] == "jpg"
        assert (train[name]["sha256"], train[name]["phash"]) == (test[name]["sha256"], test[name]["phash"])
        assert train[name]["phash"] == perceptual_hash(decode(PICTURES[name], LIMIT))  # the leakage gate finds copies
    assert not list(both.verify())


@pytest.mark.parametrize("picture", [PHOTO, smooth(90, 200), smooth(40, 30)])
def test_a_smaller_picture_is_the_picture(picture: np.ndarray) -> None:
    data, (width, height) = repacked(picture, 64)
    theirs = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    apart = np.abs(np.subtract(*(np.asarray(x.convert("L"), dtype=int) for x in (decode(data, LIMIT), theirs))))
    assert min(width, height) == min(64, *picture.shape[:2])
    assert apart.mean() < 5  # of 255: what JPEG takes at that quality
    assert repacked(np.dstack([picture, picture[..., :1]]), 64)[0] == data


def test_threads_and_groups_decide_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no row names its split, and the file's own hash does."""
    rows = [Row(f"k{i}", jpeg(smooth(100 + i, 90)), ("a",)) for i in range(24)]
    config = DataConfig(source="folder", val_share=0.3, test_share=0.3, repack=32)
    for workers in (0, 3):
        write_shards(rows, tmp_path / str(workers), config, lambda seen: None, workers=workers)
    first, second = (ShardSet.open(str(tmp_path / name), tmp_path / "cache") for name in ("0", "3"))
    assert first.manifest == second.manifest
    sides = {split: {min(decode(d, LIMIT).size) for d in map_of(first, split)} for split in ("train", "val", "test")}
    assert (sides["train"], sides["val"] | sides["test"]) == ({32}, {90})


def map_of(shards: ShardSet, split: str) -> list[bytes]:
    return [shards.read_image(split, i) for i in range(shards.count(split))]


def test_a_model_that_wants_larger_pictures_is_refused_and_the_way_out_leads_out(both: ShardSet) -> None:
    def loader(size: int) -> TrainLoader:
        side = Side(View(size, (0.5,) * 3, (0.5,) * 3), lambda texts: torch.zeros(len(texts), 1))
        shared = {"rank": 0, "world": 1, "seed": 0, "fraction": 1.0, "crop_scale": (0.9, 1.0), "workers": 0}
        return TrainLoader(both, {"student": side}, batch=2, max_pixels=LIMIT, quarantine_bound=0.0, **shared)

    with pytest.raises(InputError, match=r"student wants 65 pixels .* data\.repack=64.* --set data\.repack=0"):
        loader(65)
    assert next(loader(64).batches(0, 1)).images["student"].shape == (2, 3, 64, 64)


def test_the_field_is_part_of_what_prepare_makes() -> None:
    plain, small = (reads(resolve("tiny", overrides=given), "prepare") for given in ("", "data.repack=256"))
    assert "data.repack" not in plain  # artifacts made before the field existed keep their places
    assert small == plain | {"data.repack": 256}
    with pytest.raises(InputError, match="32 pixels or more, such as 256, or 0"):
        resolve("tiny", overrides="data.repack=31")
