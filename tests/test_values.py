"""Every number of a recipe has its bounds at its field, and they hold; so do names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from annotations import bounds, hints, kinds, outside

from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import flatten, override
from cmapkd_core.recipes import RECIPES, resolve
from cmapkd_core.values import AnyNumber, check_values

HINTS = hints(Recipe())
NUMBERS = {name: kinds(hint).pop() for name, hint in HINTS.items() if kinds(hint) & {int, float}}
BOUNDS = [(name, bound) for name in NUMBERS for bound in bounds(HINTS[name])]


def test_every_leaf_is_a_bounded_number_a_switch_or_a_text() -> None:
    assert set(HINTS) == set(flatten(Recipe()))
    assert all(len(kinds(hint)) == 1 and kinds(hint) <= {int, float, bool, str} for hint in HINTS.values())
    assert {name for name in NUMBERS if not bounds(HINTS[name])} == {"method.kendall"}
    assert HINTS["method.kendall"] == AnyNumber


@pytest.mark.parametrize(("name", "bound"), BOUNDS, ids=[f"{name}-{bound}" for name, bound in BOUNDS])
def test_a_number_just_outside_is_refused_by_its_name(name: str, bound: Any) -> None:
    recipe, wrong = RECIPES["tiny"], outside(bound, NUMBERS[name])
    now = flatten(recipe)[name]
    value = (wrong, *now[1:]) if isinstance(now, tuple) else wrong
    with pytest.raises(InputError, match=rf"^{name}=\S+: (it must|it cannot|four weights|the least and the largest)\b"):
        check_values(override(recipe, {name: value}))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_values_of_the_recipes_are_within(recipe: Recipe) -> None:
    check_values(recipe)


@pytest.mark.parametrize(
    ("override_text", "message"),
    [
        ("evaluate.vqa.width=30", "evaluate.vqa.width=30: it must be a multiple of 4"),
        ("evaluate.efficiency.batches=1,0", "evaluate.efficiency.batches=1,0: it must be at least 1"),
        ("evaluate.vqa.memory_gb=0", "evaluate.vqa.memory_gb=0.0: it must be above 0"),
        ("data.fraction=1.5", "data.fraction=1.5: it must be above 0 and at most 1"),
        ("data.crop_scale=nan,1", "data.crop_scale=nan,1.0: it must be a finite number"),
        ("selector.weights=0,0,0,0", "selector.weights=0.0,0.0,0.0,0.0: four weights, none below 0, one above"),
        ("data.leakage=idz", "unknown leakage check 'idz': did you mean 'ids'?; a new one is a row of LEAKAGE_CHECKS "),
        (
            "evaluate.tasks=vqaa",
            "unknown evaluation task 'vqaa': did you mean 'vqa'?; a new one is a row of EVALUATIONS",
        ),
        ("evaluate.sets=vqaa=folder:/a", "unknown evaluation task 'vqaa': did you mean 'vqa'?"),
        ("teacher_fit.store=level", "unknown teacher_fit.store 'level': did you mean 'levels'?"),
        ("selector.toward=kdd", "unknown term of selector.toward 'kdd': did you mean 'kd'?"),
    ],
)
def test_what_is_said(override_text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve("tiny", overrides=override_text)
    assert str(caught.value).startswith(message)


def test_a_row_in_code_is_held_to_the_types_exactly() -> None:
    """A text in place of a number in a table of rows is no number, though an override spells it so."""
    tiny = RECIPES["tiny"]
    with pytest.raises(InputError, match=r"^optim\.batch=8: "):
        check_values(dataclasses.replace(tiny, optim=dataclasses.replace(tiny.optim, batch="8")))
