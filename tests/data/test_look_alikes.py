"""The second comparison: copies stay the same picture, look-alikes do not; what is read for it, and the page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageEnhance

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data import look_alikes
from cmapkd_core.data.inspection import perceptual_hash
from cmapkd_core.data.leakage import BOUND, LeakageError, gate
from cmapkd_core.data.look_alikes import DIFFERENT, difference, thumbnail
from cmapkd_core.data.rows import Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.writer import write_shards

CONFIG = DataConfig(source="folder", quarantine_bound=0.5)


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def fish(colour: str, eye: str = "white") -> Image.Image:
    """On plain ground: in every colour it has nearly the same hash."""
    image = Image.new("RGB", (128, 96), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 24, 90, 72), fill=colour)
    draw.polygon([(84, 48), (112, 24), (112, 72)], fill=colour)
    draw.ellipse((32, 38, 44, 50), fill=eye)
    return image


def cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((x, y, image.width - x, image.height - y))


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG of quality 30": lambda image: encoded(image, "JPEG", quality=30),
    "half the size": lambda image: encoded(image.resize((64, 48), Image.Resampling.BICUBIC)),
    "twice the size": lambda image: encoded(image.resize((256, 192), Image.Resampling.BICUBIC)),
    "cropped by 2 %": lambda image: encoded(cropped(image, 0.02)),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.1)),
    "more colour": lambda image: encoded(ImageEnhance.Color(image).enhance(1.3)),
    "grey": lambda image: encoded(image.convert("L")),
}


def found(out: Path, rows: dict[str, bytes], action: str = "refuse", **against: ShardSet) -> ShardSet:
    """The data set of pictures by SPLIT-NAME, through the gate."""
    items = [Row(key, image, (key,), split=key.partition("-")[0]) for key, image in rows.items()]
    config = DataConfig(source="folder", leakage_action=action, against=tuple(against))
    counts = write_shards(items, out, config, lambda seen: None)
    gate(out, config, against, counts)
    return ShardSet.open(str(out), out / "cache")


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_the_same_picture(tmp_path: Path, change: str) -> None:
    others = {} if change == "grey" else {"train-b": encoded(fish("teal")), "train-c": encoded(fish("black"))}
    pictures = {"train-a": encoded(fish("purple")), **others, "test-x": COPIES[change](fish("purple"))}
    with pytest.raises(LeakageError, match="1 training pictures are also held out") as caught:
        found(tmp_path / "out", pictures)
    said = str(caught.value)
    assert "train train-a looks like test test-x (perceptual: " in said
    assert "--set data.leakage=ids,exact" in said
    assert "--set data.leakage_action=drop" in said


def test_drawings_in_other_colours_and_details_are_not(tmp_path: Path) -> None:
    pictures = {f"train-{colour}": encoded(fish(colour)) for colour in ("red", "royalblue", "seagreen", "orange")}
    pictures |= {"test-purple": encoded(fish("purple")), "val-black": encoded(fish("black"))}
    shards = found(tmp_path / "out", pictures)
    hashes = {key: perceptual_hash(Image.open(io.BytesIO(data))) for key, data in pictures.items()}
    alike = {
        (ours, theirs)
        for ours in pictures
        for theirs in pictures
        if ours[:5] == "train" != theirs[:5] and (hashes[ours] ^ hashes[theirs]).bit_count() <= BOUND
    }
    assert len(alike) > 4  # the hash alone would have refused them
    listed = [json.loads(line) for line in (tmp_path / "out" / "look_alikes.jsonl").read_text().splitlines()]
    assert {(pair["train"], pair["held_out"]) for pair in listed} == alike
    assert all("finer: up to " in pair["reasons"][1] for pair in listed)
    note = shards.manifest["leakage"]
    assert (note["pairs"], note["look_alikes"], note["leaks"]) == (0, len(alike), 0)
    assert shards.count("train") == 4


def test_drop_takes_out_the_same_and_leaves_look_alikes(tmp_path: Path) -> None:
    pictures = {f"train-{colour}": encoded(fish(colour)) for colour in ("red", "royalblue", "purple")}
    pictures["test-copy"] = COPIES["half the size"](fish("purple"))
    assert found(tmp_path / "out", pictures, "drop").keys("train") == ["train-red", "train-royalblue"]


def test_pictures_of_another_data_set_are_read_where_they_lie(tmp_path: Path, s3_root: str) -> None:
    found(tmp_path / "other", {"train-z": encoded(fish("black")), "test-p": encoded(fish("purple"))}, "allow")
    for path in (tmp_path / "other").glob("*.*"):
        storage.put(path, storage.join(s3_root, path.name))
    other = ShardSet.open(s3_root, tmp_path / "cache")
    mine = {"train-r": encoded(fish("red")), "train-p": COPIES["JPEG of quality 30"](fish("purple"))}
    items = [Row(key, image, (key,), split="train") for key, image in mine.items()]
    config = DataConfig(source="folder", leakage_action="drop", against=(s3_root,))
    counts = write_shards(items, tmp_path / "out", config, lambda seen: None)
    counts = gate(tmp_path / "out", config, {s3_root: other}, counts)
    assert (counts["leaks"], counts["look_alikes"]) == (1, 1)
    assert not list((tmp_path / "cache").rglob("*.tar"))  # one range of a shard, not the shard


def test_pairs_behind_the_most_that_are_looked_at_count_as_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_alikes, "MOST", 1)
    pictures = {f"train-{colour}": encoded(fish(colour)) for colour in ("red", "royalblue", "seagreen")}
    with pytest.raises(LeakageError, match="2 training pictures are also held out"):
        found(tmp_path / "out", {**pictures, "test-black": encoded(fish("purple"))})


def test_a_picture_whose_shard_is_gone_counts_as_the_same(tmp_path: Path) -> None:
    other = found(tmp_path / "other", {"train-z": encoded(fish("black")), "test-p": encoded(fish("purple"))}, "allow")
    (tmp_path / "other" / "test-00000.tar").unlink()
    with pytest.raises(LeakageError, match="finer: a picture is gone"):
        found(tmp_path / "out", {"train-r": encoded(fish("red"))}, other=other)
    assert "gone" in (tmp_path / "out" / "leakage.html").read_text()


def test_the_difference_is_the_same_in_both_orders_and_none_with_itself() -> None:
    one, other = (thumbnail(fish(colour)) for colour in ("purple", "teal"))
    assert difference(one, one) == 0
    assert difference(one, other) == difference(other, one) > DIFFERENT
    grey = thumbnail(fish("purple").convert("L").convert("RGB"))
    assert difference(one, grey) < 5
    spot = one.copy()
    spot[8:12, 8:12] = 255 - spot[8:12, 8:12]  # one block in 64
    assert difference(one, spot) > DIFFERENT


def test_the_page_has_both_kinds_side_by_side(tmp_path: Path) -> None:
    pictures = {"train-red<b>": encoded(fish("red")), "train-purple": encoded(fish("purple"))}
    pictures["test-copy"] = COPIES["half the size"](fish("purple"))
    found(tmp_path / "out", pictures, "allow")
    page = (tmp_path / "out" / "leakage.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 4
    assert "The same picture: a pair" in page
    assert "Alike by the hash, different in colour or detail: a pair" in page
    assert "train: train-red&lt;b&gt;" in page
    assert "http" not in page
