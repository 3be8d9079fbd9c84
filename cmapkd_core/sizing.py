"""Shares, batch and epochs of recipe `own`, from the number of a user's pairs. No torch.

Recipes are plain data, so the numbers are made before a run starts and recorded as its overrides. A student gets about
UPDATES updates, six times the demo's, as far as the bounds of epochs allow: few pairs are seen often, many a few times.
The numbers are chosen, not tuned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cmapkd_core.config import SPLITS, Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import override

SIZED = ("own",)  # recipes whose numbers follow from the number of pairs
SIZES = (  # the fields that do, in the order in which they follow
    *("data.val_share", "data.test_share", "optim.batch", "teacher_fit.batch"),
    *("teacher_fit.space.epochs", "teacher_fit.pyramid.epochs"),
    *("schedule.coarse.epochs", "schedule.medium.epochs", "schedule.alsn.epochs", "schedule.fine.epochs"),
    "runtime.workers",
)
FEWEST = 10  # pairs, of which some are for validation and test

HELD = 0.1  # share of the pairs in val, and in test
FEW, MOST = 50, 5000  # pictures in test at least, and in val and test at most: more tell two models apart no better
LARGEST_SHARE = 0.2  # of the pairs in test, where FEW would be more;
JUDGED, JUDGED_SHARE = 26, 0.4  # but for so many, since a report gives no verdict on fewer than 20 and the hash varies
BATCHES = (2, 128)
PARTS = 8  # batches of an epoch at least, where BATCHES allows it
UPDATES, EPOCHS = 400, (4, 40)  # of a student in its three phases, which share the epochs 1 : 1 : 2
OF_ALSN, OF_SPACE, OF_PYRAMID = (150, (1, 20)), (1000, (2, 60)), (200, (1, 12))  # updates, epochs
MANY = 10_000  # pairs from which on processes of their own read the pictures
WORKERS = 4


@dataclass(frozen=True)
class PairCount:
    """Pictures that can be used by what their source says; `named`: those of them whose row names its split."""

    pairs: int
    bad: int
    named: Mapping[str, int]

    def within(self, val_share: float, test_share: float) -> dict[str, int]:
        """About how many pictures each split gets: rows without a split are divided by a hash."""
        rest = self.pairs - sum(self.named.values())
        shares = {"train": 1 - val_share - test_share, "val": val_share, "test": test_share}
        return {split: self.named.get(split, 0) + round(rest * shares[split]) for split in SPLITS}


def sizes(count: PairCount, recipe: Recipe, given: Collection[str] = ()) -> dict[str, Any]:
    """Fields by dotted name with the values that fit so many pairs.

    Args:
        recipe: with the user's own values.
        given: fields that the user or the row has set, which stay and from which others follow.

    Raises:
        InputError: fewer than FEWEST pairs.
    """
    if count.pairs < FEWEST:
        raise InputError(
            f"{count.pairs} pairs can be used of {count.pairs + count.bad} rows: recipe {recipe.name} needs at least "
            f"{FEWEST}, and some hundreds to learn anything"
        )
    wanted: dict[str, Any] = _shares(count.pairs)
    recipe = override(recipe, _left(wanted, given))
    training = count.within(recipe.data.val_share, recipe.data.test_share)["train"] * recipe.data.fraction
    batch = _batch(training)
    wanted |= {"optim.batch": batch, "teacher_fit.batch": batch}
    recipe = override(recipe, _left(wanted, given))
    student = _epochs(training, recipe.optim.batch, UPDATES, EPOCHS) // 4
    fitted = count.within(recipe.data.val_share, recipe.data.test_share)[
        "train"
    ]  # the teacher's: whatever the fraction
    wanted |= {
        "teacher_fit.space.epochs": _epochs(fitted, recipe.teacher_fit.batch, *OF_SPACE),
        "teacher_fit.pyramid.epochs": _epochs(fitted, recipe.teacher_fit.batch, *OF_PYRAMID),
        "schedule.coarse.epochs": student,
        "schedule.medium.epochs": student,
        "schedule.alsn.epochs": _epochs(training, recipe.optim.batch, *OF_ALSN),
        "schedule.fine.epochs": 2 * student,
        "runtime.workers": WORKERS if count.pairs >= MANY else 0,
    }
    return _left(wanted, given)


def updates(training: float, recipe: Recipe) -> int:
    """Updates of a student from `training` pairs in its three phases; the last incomplete batch of an epoch is left."""
    phases = (recipe.schedule.coarse, recipe.schedule.medium, recipe.schedule.fine)
    return sum(phase.epochs for phase in phases) * _steps(training, recipe.optim.batch)


def _left(wanted: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if name not in given}


def _shares(pairs: int) -> dict[str, float]:
    few = max(LARGEST_SHARE * pairs, min(JUDGED, JUDGED_SHARE * pairs))
    test = min(max(HELD * pairs, FEW), few, MOST)
    val = min(HELD * pairs, MOST)
    return {"data.val_share": round(val / pairs, 6), "data.test_share": round(test / pairs, 6)}


def _batch(training: float) -> int:
    """The largest power of two of which an epoch has PARTS, between bounds; below 32 pairs half of them."""
    least, most = BATCHES
    fits = max(training / PARTS, min(16, training / 2))
    return min(most, max(least, 1 << (max(int(fits), 1).bit_length() - 1)))


def _steps(training: float, batch: int) -> int:
    return max(int(training) // batch, 1)


def _epochs(training: float, batch: int, wanted: int, bounds: tuple[int, int]) -> int:
    """Epochs of about as many updates as wanted; of a student's bounds a multiple of four."""
    least, most = bounds
    unit = 4 if bounds == EPOCHS else 1
    return min(most, max(least, round(wanted / _steps(training, batch) / unit) * unit))
