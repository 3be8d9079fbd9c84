"""What a phase trains: every trainable parameter gets a gradient, nothing else does."""

import pytest
import torch

from cmapkd_core.engine.loop import freeze_all_but
from cmapkd_core.engine.optim import trainable
from cmapkd_core.engine.passes import weighted_total
from cmapkd_core.method_specs import METHODS
from cmapkd_core.recipes import BUDGETS, ROWS, STUDENTS, WEIGHTS, resolve

TINY = "optim.batch=5"
OTHERS = [row for row in ROWS if row in ("with_bank", "with_rd") or row not in (*WEIGHTS, *STUDENTS, *BUDGETS)]
PHASES = ("coarse", "medium", "fine")


def trained(method, phase):
    groups = trainable(method.groups(phase), phase)
    freeze_all_but(method, [p for params in groups.values() for p in params])
    return groups


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("row", OTHERS)
def test_every_trainable_parameter_of_a_phase_gets_a_gradient_and_no_other(
    make_method, make_teacher, batch, ask, row, phase
):
    recipe, teacher, pairs = resolve("tiny", row, f"{TINY} method.weights.fd=1"), make_teacher(), batch()
    method, phase = make_method(recipe, teacher).train(), getattr(recipe.schedule, phase)
    groups = trained(method, phase)
    outcome = method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0)
    weighted_total(outcome.terms, recipe.method.weights.within(phase)).backward()
    chosen = {id(p) for params in groups.values() for p in params}
    for name, p in method.named_parameters():
        if id(p) in chosen:
            assert p.grad is not None, f"{name} is in the optimiser and gets no gradient"
            assert torch.isfinite(p.grad).all(), name
            # The scale of the levels' similarities has a gradient in the align term alone.
            silent = row == "no_align" and name == "levels.bridge.log_scale"
            assert silent or p.grad.abs().sum() > 0, f"{name} gets a gradient of zero"
        else:
            assert p.grad is None, f"{name} is trained outside its phase"


@pytest.mark.parametrize("row", OTHERS)
def test_a_method_has_the_groups_and_terms_of_its_row_in_config(make_method, make_teacher, batch, ask, row):
    recipe, teacher, pairs = resolve("tiny", row, TINY), make_teacher(), batch()
    method, spec = make_method(recipe, teacher), METHODS[recipe.method.name]
    for name in PHASES:
        phase = getattr(recipe.schedule, name)
        assert tuple(method.groups(phase)) == spec.groups
        outcome = method(pairs, ask(teacher, pairs, method.active(phase)) if spec.teacher else None, phase, 0)
        assert tuple(outcome.terms) == spec.terms_with(vars(recipe.method.weights))
        assert all(value.dim() == 0 and value.dtype is torch.float32 for value in outcome.terms.values())
        assert not any(value.requires_grad for value in outcome.stats.values())


@pytest.mark.parametrize("row", OTHERS)
def test_no_parameter_is_in_two_groups(make_method, make_teacher, row):
    recipe = resolve("tiny", row, TINY)
    found = [
        id(p) for params in make_method(recipe, make_teacher()).groups(recipe.schedule.fine).values() for p in params
    ]
    assert len(found) == len(set(found))


def test_the_policy_term_reaches_the_selector_alone(make_method, make_teacher, batch, ask):
    recipe, teacher, pairs = resolve("tiny", overrides=TINY), make_teacher(), batch()
    method, phase = make_method(recipe, teacher).train(), recipe.schedule.fine
    terms = method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0).terms
    terms["policy"].backward()
    moved = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert moved == {"selector"}


def test_no_other_term_reaches_the_selector(make_method, make_teacher, batch, ask):
    """With the weights' own gradient ALSN would choose the easiest level (paper_problems 9)."""
    recipe, teacher, pairs = resolve("tiny", overrides=TINY), make_teacher(), batch()
    method, phase = make_method(recipe, teacher).train(), recipe.schedule.fine
    terms = method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0).terms
    sum(value for name, value in terms.items() if name != "policy").backward()
    assert all(p.grad is None for p in method.selector.parameters())


@pytest.mark.parametrize("term", ["task", "fd", "kd", "relation"])
def test_the_evaluated_embedding_hears_the_term(make_method, make_teacher, batch, ask, term):
    """Of the paper's terms the pyramids' never pass through the projection into the joint space."""
    recipe, teacher, pairs = resolve("tiny", overrides=TINY), make_teacher(), batch()
    method, phase = make_method(recipe, teacher).train(), recipe.schedule.fine
    terms = method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0).terms
    grads = torch.autograd.grad(terms[term], method.student.heads()[:2])
    assert all(g.abs().sum() > 0 for g in grads)


def test_a_phase_that_trains_the_pyramid_alone_runs(make_method, make_teacher, batch, ask):
    """No tower gets a gradient, so there is no utility to measure: it counts as 0."""
    overrides = f"{TINY} schedule.fine.lr.student=0"
    recipe, teacher, pairs = resolve("tiny", overrides=overrides), make_teacher(), batch()
    method, phase = make_method(recipe, teacher).train(), recipe.schedule.fine
    trained(method, phase)
    outcome = method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0)
    weighted_total(outcome.terms, vars(recipe.method.weights)).backward()
    assert all(p.grad is None for p in method.student.parameters())
    assert any(p.grad is not None for p in method.levels.parameters())
