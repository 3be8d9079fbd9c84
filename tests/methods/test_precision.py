"""Towers in half precision, losses in single: what a GPU does by default, here on a CPU and in bfloat16."""

import pytest
import torch

from cmapkd_core.engine.loop import weighted_total
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
