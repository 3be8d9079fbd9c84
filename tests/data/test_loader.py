import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cmapkd_core import storage
from cmapkd_core.data.augment import View
from cmapkd_core.data.loader import Batch, Captions, Side, TableLoader, TrainLoader, eval_batches
from cmapkd_core.data.rows import Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError


def tokenize(texts: list[str]) -> Tensor:
    """Bytes of each text, 40 of them."""
    return torch.tensor([list(text.encode().ljust(40))[:40] for text in texts])


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SIDES = {"student": Side(View(16, MEAN, STD), tokenize), "teacher": Side(View(32, MEAN, STD), tokenize)}


def loader(shards: ShardSet, **changes: object) -> TrainLoader:
    settings: dict[str, object] = {
        "batch": 8,
        "rank": 0,
        "world": 1,
        "seed": 5,
        "fraction": 1.0,
        "crop_scale": (0.5, 1.0),
        "workers": 0,
        "max_pixels": 1_000_000,
        "quarantine_bound": 0.0,
    }
    sides = changes.pop("sides", SIDES)
    return TrainLoader(shards, sides, **{**settings, **changes})  # type: ignore[arg-type]


def same(a: Batch, b: Batch) -> bool:
    tensors = [(getattr(a, part)[side], getattr(b, part)[side]) for part in ("images", "tokens") for side in SIDES]
    return a.keys == b.keys and torch.equal(a.index, b.index) and all(torch.equal(x, y) for x, y in tensors)


def joined(parts: list[Batch]) -> Batch:
    return Batch(
        keys=[key for part in parts for key in part.keys],
        index=torch.cat([part.index for part in parts]),
        images={side: torch.cat([part.images[side] for part in parts]) for side in SIDES},
        tokens={side: torch.cat([part.tokens[side] for part in parts]) for side in SIDES},
        replaced=[],
    )


def test_a_batch_has_what_its_index_says(scenes: ShardSet) -> None:
    batch = next(loader(scenes).batches(0, 1))
    keys = scenes.keys("train")
    assert batch.keys == [keys[i] for i in batch.index.tolist()]
    assert batch.images["student"].shape == (8, 3, 16, 16)
    assert batch.images["teacher"].shape == (8, 3, 32, 32)
    assert batch.images["student"].dtype == torch.float32
    for row, i in enumerate(batch.index.tolist()):
        drawn = [bytes(batch.tokens[side][row].tolist()).decode().strip() for side in SIDES]
        assert drawn[0] == drawn[1]
        assert drawn[0] in [caption[:40].strip() for caption in scenes.captions("train", i)]


@pytest.mark.parametrize("crops", [0, 2])
def test_each_side_is_resampled_as_its_model_wants(scenes: ShardSet, crops: int) -> None:
    """Also where both want the same size: a frozen teacher sees what it was trained on."""
    plain, other = View(16, MEAN, STD), View(16, MEAN, STD, interpolation="bilinear")
    sides = {"student": Side(plain, tokenize), "teacher": Side(other, tokenize)}
    batch = next(loader(scenes, sides=sides, crops=crops).batches(0, 1))
    alone = {
        name: next(loader(scenes, sides={name: side}, crops=crops).batches(0, 1)).images[name]
        for name, side in sides.items()
    }
    assert all(torch.equal(batch.images[name], alone[name]) for name in sides)
    assert 0.001 < (batch.images["student"] - batch.images["teacher"]).abs().mean() < 0.2


def test_both_sides_show_the_same_crop(scenes: ShardSet) -> None:
    for batch in loader(scenes).batches(0, 4):
        shrunk = torch.nn.functional.avg_pool2d(batch.images["teacher"], 2)
        assert (shrunk - batch.images["student"]).abs().mean() < 0.1
        moved = shrunk.roll(1, 0)
        assert (moved - batch.images["student"]).abs().mean() > 0.3


def test_resuming_at_step_n_gives_the_batches_of_an_uninterrupted_run(scenes: ShardSet) -> None:
    steps = 3 * loader(scenes).steps_per_epoch
    whole = list(loader(scenes).batches(0, steps))
    for start in (1, 7, steps // 3, steps - 1):
        rest = list(loader(scenes).batches(start, steps))
        assert len(rest) == steps - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_the_global_batch_does_not_depend_on_the_world(scenes: ShardSet, world: int) -> None:
    ranks = [loader(scenes, rank=rank, world=world).batches(0, 10) for rank in range(world)]
    for whole, *parts in zip(loader(scenes).batches(0, 10), *ranks, strict=True):
        assert same(whole, joined(parts))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(scenes: ShardSet, workers: int) -> None:
    before = torch.get_rng_state()
    many = loader(scenes, workers=workers)
    for start, stop in ((0, 5), (3, 9)):  # the same workers serve two passes
        alone = loader(scenes).batches(start, stop)
        assert all(same(a, b) for a, b in zip(many.batches(start, stop), alone, strict=True))
    assert torch.equal(torch.get_rng_state(), before)  # or resuming would show in the model's own randomness


def test_epochs_draw_new_crops_and_captions_and_seeds_too(scenes: ShardSet) -> None:
    steps = loader(scenes).steps_per_epoch
    first, second = (
        {k: (im, tok) for b in loader(scenes, seed=seed).batches(0, steps) for k, im, tok in zip_batch(b)}
        for seed in (5, 6)
    )
    later = {k: (im, tok) for b in loader(scenes).batches(steps, 2 * steps) for k, im, tok in zip_batch(b)}
    for other in (second, later):
        both = first.keys() & other.keys()
        assert len(both) > 30
        assert sum(torch.equal(first[k][0], other[k][0]) for k in both) < 3
        assert 0.2 < sum(torch.equal(first[k][1], other[k][1]) for k in both) / len(both) < 0.8


def zip_batch(batch: Batch) -> list[tuple[str, Tensor, Tensor]]:
    return list(zip(batch.keys, batch.images["student"], batch.tokens["student"], strict=True))


def test_a_fraction_is_a_stable_choice(scenes: ShardSet) -> None:
    def seen(fraction: float, seed: int) -> set[str]:
        some = loader(scenes, fraction=fraction, seed=seed, batch=2)
        return {key for batch in some.batches(0, 2 * some.steps_per_epoch) for key in batch.keys}

    count = scenes.count("train")
    small = loader(scenes, fraction=0.25, batch=2).count
    assert small == round(count * 0.25)
    assert seen(0.25, 1) == seen(0.25, 2)
    assert seen(0.25, 1) < seen(0.5, 1)


def test_batches_go_to_a_device_whole(scenes: ShardSet) -> None:
    batch = next(loader(scenes).batches(0, 1))
    moved = batch.to("meta")
    assert moved.keys == batch.keys
    assert {t.device.type for t in (moved.index, *moved.images.values(), *moved.tokens.values())} == {"meta"}


# ---- corrupt samples ------------------------------------------------------------------------------


@pytest.fixture
def damaged(scenes_url: str, tmp_path: Path) -> tuple[ShardSet, str]:
    """A data set whose third training picture is broken, and that picture's key."""
    folder = Path(shutil.copytree(scenes_url, tmp_path / "damaged"))
    shards = ShardSet.open(str(folder), tmp_path / "cache")
    row = shards.table("train").slice(2, 1).to_pylist()[0]
    data = bytearray((folder / row["shard"]).read_bytes())
    data[row["image_offset"] + 60] ^= 1
    (folder / row["shard"]).write_bytes(data)
    return shards, row["key"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_sample_is_replaced_and_named(damaged: tuple[ShardSet, str], scenes: ShardSet, workers: int) -> None:
    shards, key = damaged
    some = loader(shards, quarantine_bound=0.1, workers=workers)
    found = 0
    for batch, whole in zip(some.batches(0, 20), loader(scenes).batches(0, 20), strict=True):
        changed = [i for i in range(8) if batch.keys[i] != whole.keys[i]]
        assert [whole.keys[i] for i in changed] == [name for name, _ in batch.replaced]
        assert len(set(batch.keys)) == 8
        for name, reason in batch.replaced:
            assert name == key
            assert "checksum" in reason
            found += 1
    assert found >= 1


def test_replacements_do_not_depend_on_the_world(damaged: tuple[ShardSet, str]) -> None:
    ranks = [loader(damaged[0], quarantine_bound=0.1, rank=rank, world=2).batches(0, 20) for rank in (0, 1)]
    replaced = 0
    for whole, *parts in zip(loader(damaged[0], quarantine_bound=0.1).batches(0, 20), *ranks, strict=True):
        assert same(whole, joined(parts))
        replaced += len(whole.replaced)
    assert replaced


def test_above_the_bound_training_is_refused_and_the_sample_named(damaged: tuple[ShardSet, str]) -> None:
    shards, key = damaged
    some = loader(shards, quarantine_bound=1.5 / loader(shards).count)
    met = dict(pair for batch in some.batches(0, some.steps_per_epoch * 2) for pair in batch.replaced)
    some.require_few_corrupt(met)
    with pytest.raises(
        InputError, match=f"2 of {some.count} training samples are corrupt(.|\n)*{key}(.|\n)*other: why"
    ):
        some.require_few_corrupt(met | {"other": "why"})


def test_a_picture_above_the_limit_counts_as_corrupt(scenes: ShardSet) -> None:
    with pytest.raises(InputError, match=r"64x64 pixels are more than data\.max_pixels=100"):
        list(loader(scenes, max_pixels=100, quarantine_bound=1.0).batches(0, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_stops_with_a_message(scenes_url: str, tmp_path: Path, workers: int) -> None:
    folder = Path(shutil.copytree(scenes_url, tmp_path / "copy"))
    shards = ShardSet.open(str(folder), tmp_path / "cache")
    (folder / "train-00001.tar").unlink()
    with pytest.raises(InputError, match=r"shard train-00001\.tar .* is missing"):
        list(loader(shards, workers=workers, quarantine_bound=1.0).batches(0, 10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 1000}, "fewer than one batch"),
        ({"fraction": 0.05}, "raise data.fraction"),
        ({"batch": 6, "world": 4}, "does not divide"),
        ({"batch": 2, "world": 4}, "smaller than the 4 processes"),
        ({"split": "trian"}, "did you mean 'train'"),
        (
            {"captions": Captions(0.95)},
            r"training pairs that keep their captions \(data.unpaired=0.95\) .*lower data",
        ),
        (
            {"captions": Captions(0.05, alone=True)},
            r"pictures without captions \(data.unpaired=0.05\) .*larger data",
        ),
    ],
)
def test_settings_that_cannot_train_are_refused(scenes: ShardSet, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loader(scenes, **changes)


# ---- tables and evaluation ------------------------------------------------------------------------


def columns(count: int = 50) -> dict[str, Tensor]:
    return {"index": torch.arange(count), "square": torch.arange(count).float()[:, None] ** 2}


def test_a_table_is_shuffled_by_whole_rows_and_resumes() -> None:
    table = TableLoader(columns(), batch=8, rank=0, world=1, seed=0)
    whole = list(table.batches(0, 18))
    assert (table.count, table.steps_per_epoch) == (50, 6)
    assert all(torch.equal(b["square"][:, 0], b["index"].float() ** 2) for b in whole)
    seen = torch.cat([b["index"] for b in whole[:6]])
    assert len(seen.unique()) == 48
    assert not torch.equal(seen, torch.cat([b["index"] for b in whole[6:12]]))
    assert list(whole[0].names) == [f"row {row}" for row in whole[0]["index"].tolist()]
    late = next(TableLoader(columns(), batch=8, rank=0, world=1, seed=0).batches(13, 14))
    assert torch.equal(late["index"], whole[13]["index"])


def test_ranks_share_a_tables_batch() -> None:
    whole = next(TableLoader(columns(), batch=8, rank=0, world=1, seed=0).batches(3, 4))
    halves = [next(TableLoader(columns(), batch=8, rank=r, world=2, seed=0).batches(3, 4)) for r in (0, 1)]
    assert torch.equal(whole["index"], torch.cat([half["index"] for half in halves]))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_every_picture_once_in_table_order(scenes: ShardSet, workers: int) -> None:
    batches = list(eval_batches(scenes, "test", SIDES["student"], 5, workers))
    assert torch.equal(torch.cat([index for index, _ in batches]), torch.arange(scenes.count("test")))
    assert all(images.shape == (len(index), 3, 16, 16) for index, images in batches)


def test_evaluation_of_an_empty_split_gives_nothing(
    picture: Callable[..., bytes], prepare: Callable[..., ShardSet]
) -> None:
    shards = prepare([Row("a", picture(), ("c",), split="train")])
    assert list(eval_batches(shards, "test", SIDES["student"], 4, 2)) == []


def test_evaluation_never_leaves_a_picture_out(damaged: tuple[ShardSet, str]) -> None:
    with pytest.raises(InputError, match=damaged[1]):
        list(eval_batches(damaged[0], "train", SIDES["student"], 8, 0))


# ---- S3 -------------------------------------------------------------------------------------------


def test_training_from_s3_equals_training_from_a_folder(
    scenes: ShardSet, scenes_url: str, s3_root: str, tmp_path: Path
) -> None:
    for path in Path(scenes_url).iterdir():
        storage.put(path, storage.join(s3_root, path.name))
    far = loader(ShardSet.open(s3_root, tmp_path / "s3cache"), workers=1)
    assert all(same(a, b) for a, b in zip(far.batches(0, 6), loader(scenes).batches(0, 6), strict=True))


def test_a_step_is_the_same_on_every_machine(scenes: ShardSet) -> None:
    """Order follows from hashes alone, so this digest may only change with the data or by intent."""
    digest = hashlib.sha256()
    for batch in loader(scenes).batches(3, 5):
        digest.update(repr((batch.keys, batch.index.tolist())).encode())
    assert digest.hexdigest()[:16] == "09ec90c19d4e498e"


def test_sides_that_want_the_same_share_it(scenes: ShardSet) -> None:
    """The same pixels, normalised the same, and the same tokenizer's tokens: made once. Other means are others'."""

    def other(texts: list[str]) -> Tensor:
        return tokenize(texts) + 1

    same_view, dark = View(16, MEAN, STD, "squash", fill=3), View(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    sides = {"a": Side(View(16, MEAN, STD), tokenize), "b": Side(same_view, tokenize), "c": Side(dark, other)}
    batch = next(loader(scenes, sides=sides).batches(0, 1))
    assert batch.images["a"] is batch.images["b"]
    assert batch.tokens["a"] is batch.tokens["b"]
    assert torch.equal(batch.tokens["c"], batch.tokens["a"] + 1)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    assert torch.allclose(batch.images["c"], batch.images["a"] * std + mean, atol=1e-6)


def test_pictures_are_normalised_where_they_are_wanted(scenes: ShardSet) -> None:
    batch = next(loader(scenes, device="meta").batches(0, 1))
    assert {x.device.type for x in batch.images.values()} == {"meta"}
    assert batch.images["teacher"].shape == (8, 3, 32, 32)
    index, images = next(eval_batches(scenes, "test", SIDES["student"], 5, 0, device="meta"))
    assert (index.device.type, images.device.type, images.dtype) == ("cpu", "meta", torch.float32)
