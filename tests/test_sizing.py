"""Recipe own: shares, batch and epochs from the number of pairs, by values that were worked out by hand."""

from __future__ import annotations

import pytest

from cmapkd_core.config import phases_of
from cmapkd_core.errors import InputError
from cmapkd_core.fields import override
from cmapkd_core.recipes import RECIPES
from cmapkd_core.sizing import SIZES, PairCount, sizes, updates

OWN = RECIPES["own"]

# pairs -> val and test share, batch, epochs of space, pyramid, coarse, medium, alsn and fine, workers
BY_HAND = {
    60: (0.1, 0.4, 8, 60, 12, 10, 10, 20, 20, 0),  # 24 to test on, 30 to train on: 3 steps, bounds of all epochs
    100: (0.1, 0.26, 16, 60, 12, 10, 10, 20, 20, 0),  # 26 to test on, 64 to train on: 4 steps
    500: (0.1, 0.1, 32, 60, 12, 8, 8, 12, 16, 0),  # 400: 12 steps; 400 / 12 = 33 -> 32 epochs; 150 / 12 = 12.5
    5_000: (0.1, 0.1, 128, 32, 6, 3, 3, 5, 6, 0),  # 4,000: 31 steps; 1000 / 31 = 32, 200 / 31 = 6, 400 / 31 -> 12
    1_000_000: (0.005, 0.005, 128, 2, 1, 1, 1, 1, 2, 4),  # 5,000 in val and test; 7,734 steps: bounds
}


@pytest.mark.parametrize("pairs", BY_HAND)
def test_sizes_are_those_worked_out_by_hand(pairs: int) -> None:
    made = sizes(PairCount(pairs, 0, {}), OWN)
    assert tuple(made) == SIZES
    assert made.pop("teacher_fit.batch") == made["optim.batch"]
    assert tuple(made.values()) == BY_HAND[pairs]


def test_updates_are_those_of_whole_batches() -> None:
    def of(pairs: int) -> int:
        count = PairCount(pairs, 0, {})
        recipe = override(OWN, sizes(count, OWN))
        return updates(count.within(recipe.data.val_share, recipe.data.test_share)["train"], recipe)

    assert [of(pairs) for pairs in (60, 500, 5_000, 1_000_000)] == [40 * 3, 32 * 12, 12 * 31, 4 * 7734]


@pytest.mark.parametrize("pairs", [10, 11, 19, 33, 64, 130, 200, 249, 1500, 9_999, 10_000, 123_456, 3_000_000])
def test_every_size_has_pictures_to_test_on_and_batches_to_train_on(pairs: int) -> None:
    count = PairCount(pairs, 0, {})
    recipe = override(OWN, sizes(count, OWN))
    split = count.within(recipe.data.val_share, recipe.data.test_share)
    assert min(50, pairs // 5) <= split["test"] <= 5001
    assert 1 <= split["val"] <= 5001
    assert recipe.optim.batch <= split["train"] / 1.5  # the hash gives a split some more or less
    assert all(1 <= phase.epochs <= 20 for phase in phases_of(recipe.schedule).values())


def test_the_recipe_as_it_stands_is_that_of_a_thousand_pairs() -> None:
    assert override(OWN, sizes(PairCount(1000, 0, {}), OWN)) == OWN


def test_what_the_user_sets_stays_and_the_rest_follows_from_it() -> None:
    recipe = override(OWN, {"data.test_share": 0.5, "optim.batch": 8, "schedule.alsn.epochs": 3})
    made = sizes(PairCount(500, 0, {}), recipe, ("data.test_share", "optim.batch", "schedule.alsn.epochs"))
    assert not {"data.test_share", "optim.batch", "schedule.alsn.epochs"} & {*made}
    assert made["teacher_fit.batch"] == 16  # 200 to train on: 25
    assert made["schedule.fine.epochs"] == 8  # 25 steps of 8: 16 epochs


def test_splits_that_the_rows_name_count() -> None:
    count = PairCount(1000, 3, {"train": 500, "test": 100})
    assert count.within(0.1, 0.1) == {"train": 820, "val": 40, "test": 140}
    few = sizes(PairCount(1000, 0, {"train": 100, "test": 900}), OWN)
    assert few["optim.batch"] == 16  # 100 to train on: 12, and at least 16


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="9 pairs can be used of 12 rows: recipe own needs at least 10"):
        sizes(PairCount(9, 3, {}), OWN)
