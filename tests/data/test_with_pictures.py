"""Pictures without captions beside pairs: none is both, and nothing of a caption comes with them."""

import numpy as np
import pytest
import torch

from cmapkd_core.data.augment import View
from cmapkd_core.data.loader import Batch, Captions, Side, TrainLoader
from cmapkd_core.data.order import chosen, hashes, withheld
from cmapkd_core.data.shards import CorruptSampleError, ShardSet
from cmapkd_core.data.with_pictures import WithPictures
from cmapkd_core.errors import InputError

UNPAIRED, FRACTION = 0.6, 0.8


def tokenize(texts: list[str]) -> torch.Tensor:
    """Bytes of each text, 40 of them."""
    return torch.tensor([list(text.encode().ljust(40))[:40] for text in texts])


def loader(shards: ShardSet, alone: bool = False, **changes: object) -> TrainLoader:
    settings: dict[str, object] = {"batch": 8, "rank": 0, "world": 1, "seed": 5, "fraction": FRACTION, "workers": 0}
    settings |= {"crop_scale": (0.5, 1.0), "max_pixels": 1_000_000, "quarantine_bound": 0.1}
    side, captions = Side(View(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), tokenize), Captions(UNPAIRED, alone, noise=0.0)
    return TrainLoader(shards, {"student": side}, captions=captions, **{**settings, **changes})  # type: ignore[arg-type]


def both(shards: ShardSet, **changes: object) -> WithPictures:
    return WithPictures(loader(shards, **changes), loader(shards, alone=True, **changes))


def test_captions_are_withheld_by_key_and_the_share_is_right() -> None:
    keys = hashes([f"k{i}" for i in range(100)])
    few, many = withheld(keys, 0.25), withheld(keys, 0.5)
    assert (few.sum(), many.sum()) == (25, 50)
    assert (many | ~few).all()  # who is without a caption stays so where more are
    turn = np.random.default_rng(0).permutation(100)
    assert np.array_equal(withheld(keys[turn], 0.25), few[turn])
    assert not withheld(keys, 0.0).any()
    third = chosen(keys, 0.3)
    assert 0.2 < withheld(keys, 0.5)[third].mean() < 0.8  # no relation to who takes part at all


def test_pairs_and_pictures_are_apart_and_together_all_that_take_part(scenes: ShardSet) -> None:
    pairs, pictures = set(), set()
    for batch in both(scenes).batches(0, 24):
        assert batch.pictures is not None
        assert len(batch.keys) == len(batch.pictures.keys) == len(batch.pictures.images["student"]) == 8
        assert batch.pictures.tokens == {}
        pairs |= set(batch.keys)
        pictures |= set(batch.pictures.keys)
    keys = scenes.keys("train")
    assert pairs.isdisjoint(pictures)
    assert pairs | pictures == {keys[i] for i in chosen(scenes.key_hashes("train"), FRACTION)}


def test_a_step_has_the_same_pictures_wherever_it_is_asked_for(scenes: ShardSet) -> None:
    whole, later = list(both(scenes).batches(0, 9)), both(scenes).batches(5, 9)
    for one, other in zip(later, whole[5:], strict=True):
        assert one.pictures.keys == other.pictures.keys
        assert torch.equal(one.pictures.images["student"], other.pictures.images["student"])
    turned = both(scenes)
    turned.reorder(1)
    assert next(turned.batches(0, 1)).pictures.keys != whole[0].pictures.keys


def test_a_part_of_a_batch_has_its_part_of_the_pictures(scenes: ShardSet) -> None:
    batch: Batch = next(both(scenes).batches(0, 1))
    assert batch.part(slice(2, 5)).pictures.keys == batch.pictures.keys[2:5]
    assert batch.to("cpu").pictures.keys == batch.pictures.keys


def test_corrupt_pictures_are_named_and_count(scenes: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = both(scenes)
    first = next(loaded.batches(0, 1))
    damaged, read = {int(first.index[0]), int(first.pictures.index[0])}, scenes.read_image

    def torn(split: str, i: int) -> bytes:
        if i in damaged:
            raise CorruptSampleError("train-00000.tar", str(i), "its checksum is wrong")
        return read(split, i)

    monkeypatch.setattr(scenes, "read_image", torn)
    again = next(loaded.batches(0, 1))
    assert {key for key, _ in again.replaced} == {first.keys[0], first.pictures.keys[0]}
    loaded.require_few_corrupt(dict(again.replaced))
    with pytest.raises(InputError, match="training samples are corrupt"):
        loaded.require_few_corrupt({str(i): "torn" for i in range(20)})
