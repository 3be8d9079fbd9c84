"""Towers in half precision, losses in single: what a GPU does by default, here on a CPU."""

import dataclasses

import pytest
import torch

from cmapkd_core.catalog import load
from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.engine.passes import weighted_total
from cmapkd_core.fields import replaced
from cmapkd_core.method_specs import METHODS
from cmapkd_core.models.build import build
from cmapkd_core.recipes import BASELINES, FULL, resolve


@pytest.fixture
def halved(make_method, make_teacher):
    """A row's method and teacher, both with towers in bfloat16, and its recipe."""

    def make(row: str):
        recipe, teacher = resolve("tiny", row, "optim.batch=5"), make_teacher()
        method = make_method(recipe, teacher).train()
        method.amp = teacher.amp = torch.bfloat16
        return method, teacher, recipe

    return make


@pytest.mark.parametrize("row", [FULL, *BASELINES])
def test_every_method_trains(halved, batch, ask, row):
    method, teacher, recipe = halved(row)
    for phase in (recipe.schedule.coarse, recipe.schedule.fine):
        targets = ask(teacher, batch(), method.active(phase))
        terms = method(batch(), targets, phase, 0).terms
        assert all(value.dtype is torch.float32 and torch.isfinite(value) for value in terms.values())
        weighted_total(terms, recipe.method.weights.within(phase)).backward()
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_levels_are_measured(halved, batch, ask):
    """At the end of warm-up, after hours of it: nothing may fail there."""
    method, teacher, recipe = halved(FULL)
    targets = ask(teacher, batch(), method.active(recipe.schedule.fine))
    rough = method.eval().statistics(batch(), targets)
    method.amp = teacher.amp = None
    exact = method.statistics(batch(), ask(teacher, batch(), method.active(recipe.schedule.fine)))
    assert all(x.dtype is torch.float32 for x in rough.values())
    assert torch.allclose(rough["d"], exact["d"], atol=0.05)


@pytest.fixture
def measured(make_teacher, batch, ask, tmp_path):
    """`measured(weight, dtype)`: utilities of a small student whose goal, the task, has this weight."""
    recipe, teacher = resolve("tiny", FULL, "optim.batch=5"), make_teacher()
    student = build(recipe.student, 1, tmp_path)
    torch.manual_seed(3)
    method = load("method", "cmapkd", METHODS)(recipe, student, teacher).eval()
    said = ask(teacher, batch(), ALL_LEVELS)

    def measure(weight: float, dtype: torch.dtype | None) -> torch.Tensor:
        weights = replaced(recipe.method.weights, "task", weight)
        method.recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, weights=weights))
        method.amp = dtype
        return method.statistics(batch(), said)["u"]

    return measure


# 0.1 is the paper's weight. At 2e-5 five pairs have the gradients of 256 at a hundredth of it, most of which fp16
# rounds to 0; at 1e3 they overflow where they are scaled as far as the small ones need it.
@pytest.mark.parametrize("weight", [2e-5, 1e-3, 0.1, 1e3])
def test_in_fp16_utilities_are_those_of_full_precision_whatever_the_goals_weight(measured, weight):
    exact = measured(weight, None)
    assert exact.abs().mean() > 0.1
    assert (measured(weight, torch.float16) - exact).abs().max() < 0.01
