"""Pairs with another's caption: as many as were asked for, none of them right by chance, the same for everybody."""

import numpy as np
import pytest
import torch

from cmapkd_core.data.augment import View
from cmapkd_core.data.loader import Captions, Side, TrainLoader
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.wrong_captions import _passed_on, caption_owners
from cmapkd_core.errors import InputError


def tokenize(texts: list[str]) -> torch.Tensor:
    """Bytes of each text, 60 of them."""
    return torch.tensor([list(text.encode().ljust(60))[:60] for text in texts])


def loader(shards: ShardSet, noise: float, **changes: object) -> TrainLoader:
    settings: dict[str, object] = {"batch": 8, "rank": 0, "world": 1, "seed": 5, "fraction": 0.5, "workers": 0}
    settings |= {"crop_scale": (0.5, 1.0), "max_pixels": 1_000_000, "quarantine_bound": 0.0}
    side = Side(View(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), tokenize)
    return TrainLoader(shards, {"student": side}, captions=Captions(noise=noise), **{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.06, 0.1, 0.3, 1.0])
def test_the_share_is_wrong_and_the_others_are_their_own(scenes: ShardSet, share: float) -> None:
    ids = np.arange(0, scenes.count("train"), 2)
    owners = caption_owners(scenes, "train", ids, share)
    assert owners is not None
    wrong = np.flatnonzero(owners != np.arange(len(owners)))
    assert len(wrong) == round(share * len(ids))
    assert set(wrong) <= set(ids)
    assert sorted(owners[wrong]) == sorted(wrong)  # each caption is given once
    groups = scenes.table("train")["group"].to_pylist()
    assert all(groups[i] != groups[owners[i]] for i in wrong)


def test_none_are_wrong_where_none_are_asked_for(scenes: ShardSet) -> None:
    assert caption_owners(scenes, "train", np.arange(scenes.count("train")), 0.0) is None


@pytest.mark.parametrize(("share", "count"), [(0.005, "no pair"), (0.012, "1")])
def test_a_share_of_fewer_than_two_pairs_is_refused(scenes: ShardSet, share: float, count: str) -> None:
    ids = np.arange(scenes.count("train"))
    assert round(len(ids) * share) == (0 if count == "no pair" else 1)
    with pytest.raises(InputError, match=rf"data.noise={share} of {len(ids)} pairs is {count}, and two at least"):
        caption_owners(scenes, "train", ids, share)


@pytest.mark.parametrize("seed", range(5))
def test_captions_of_few_groups_are_exchanged_until_none_is_of_its_own(seed: int) -> None:
    groups = np.random.default_rng(seed).permutation([0] * 10 + [1] * 6 + [2] * 4)
    givers = _passed_on(groups, 0.5)
    assert sorted(givers) == list(range(20))
    assert (groups[givers] != groups).all()


@pytest.mark.parametrize("groups", [[0], [0, 0, 0, 1]])
def test_captions_that_cannot_be_exchanged_are_refused(groups: list[int]) -> None:
    with pytest.raises(InputError, match=r"data.noise=0.5: . pictures cannot exchange their captions"):
        _passed_on(np.array(groups), 0.5)


def test_a_wrong_pair_has_its_picture_and_a_caption_of_the_other(scenes: ShardSet) -> None:
    noisy, clean = loader(scenes, 0.4), loader(scenes, 0.0)
    seen = 0
    for one, other in zip(noisy.batches(0, 4), clean.batches(0, 4), strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images["student"], other.images["student"])
        flags = noisy.wrong(one.index)
        assert flags is not None
        for row, (index, wrong) in enumerate(zip(one.index.tolist(), flags, strict=True)):
            owner = int(noisy.owners[index])
            said = bytes(one.tokens["student"][row].tolist()).decode().strip()
            assert said in [text[:60] for text in scenes.captions("train", owner)]
            assert wrong == (owner != index)
            assert wrong or torch.equal(one.tokens["student"][row], other.tokens["student"][row])
            seen += wrong
    assert seen > 5
    assert clean.wrong(one.index) is None


def test_all_seeds_meet_the_same_wrong_pairs(scenes: ShardSet) -> None:
    first, second = loader(scenes, 0.4), loader(scenes, 0.4, seed=6, rank=1, world=2)
    assert np.array_equal(first.owners, second.owners)
