"""Identities of the method: no difference costs nothing, the order of a batch is nothing, the teacher stays."""

import dataclasses

import pytest
import torch

from cmapkd_core.config import ALL_LEVELS, TEXT_LEVELS, VISION_LEVELS, Phase, Rates
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.relation import gram
from cmapkd_core.losses.similarity import margin
from cmapkd_core.recipes import BASELINES, resolve

# accumulate: the policy's memory holds one micro-batch, and `batch` makes five pairs
TINY = "optim.batch=5"
PHASES = {
    "coarse": resolve("tiny").schedule.coarse,
    "medium": resolve("tiny").schedule.medium,
    "fine": resolve("tiny").schedule.fine,
    "fixed": Phase(1, Rates(student=1e-3), ALL_LEVELS),
}


def terms_of(method, teacher, batch, ask, phase, step=0):
    return method(batch, ask(teacher, batch, method.active(phase)), phase, step).terms


@pytest.mark.parametrize("name", PHASES)
def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_it(twins, batch, ask, name):
    recipe = resolve("tiny", overrides=TINY)
    method, teacher = twins(recipe)
    pairs = batch("tiny-teacher")
    pairs.images["student"] = pairs.images["teacher"]
    terms = terms_of(method.train(), teacher, pairs, ask, PHASES[name])
    for term in ("intra", "relation", "kd", "fd"):
        assert terms[term].item() == pytest.approx(0, abs=1e-5), term
    method.recipe = resolve("tiny", overrides=f"{TINY} method.pyramid_align=0")
    without_pyramid = terms_of(method, teacher, pairs, ask, PHASES[name])["align"]
    assert terms["align"].item() == pytest.approx(without_pyramid.item(), abs=1e-5)
    assert terms["task"].item() > 0.01  # the pairs themselves still are to be learned


def test_gradients_are_finite_where_the_student_is_the_teacher(twins, batch, ask):
    recipe = resolve("tiny", overrides=f"{TINY} method.weights.kd=1 method.weights.fd=1")
    method, teacher = twins(recipe)
    pairs = batch("tiny-teacher")
    pairs.images["student"] = pairs.images["teacher"]
    terms = terms_of(method.train(), teacher, pairs, ask, PHASES["fine"])
    sum(terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_a_student_that_differs_pays_in_every_term(make_method, make_teacher, batch, ask):
    teacher = make_teacher()
    method = make_method(resolve("tiny", overrides=TINY), teacher)
    terms = terms_of(method.train(), teacher, batch(), ask, PHASES["fine"])
    assert all(value.item() > 1e-4 for value in terms.values())


@pytest.mark.parametrize("row", ["none", "no_alsn", "with_bank", "with_rd", *BASELINES])
def test_the_order_of_a_batch_changes_no_term(make_method, make_teacher, batch, ask, row):
    teacher = make_teacher()
    method = make_method(resolve("tiny", row, TINY), teacher)
    pairs, order = batch(), torch.tensor([3, 0, 4, 1, 2])
    turned = Batch(
        [pairs.keys[i] for i in order],
        pairs.index[order],
        {side: x[order] for side, x in pairs.images.items()},
        {side: x[order] for side, x in pairs.tokens.items()},
        [],
    )
    # ALSN has dropout, which falls on places in the batch: with `train` only the first measurement is compared.
    method.train()
    terms_of(method, teacher, pairs, ask, PHASES["fine"])
    method.eval()
    ours, theirs = (terms_of(method, teacher, b, ask, PHASES["fine"]) for b in (pairs, turned))
    for name, value in ours.items():
        assert value.item() == pytest.approx(theirs[name].item(), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("name", PHASES)
def test_logged_weights_sum_to_one_over_the_active_levels(make_method, make_teacher, batch, ask, name):
    teacher = make_teacher()
    method, phase = make_method(resolve("tiny", overrides=TINY), teacher), PHASES[name]
    stats = method(batch(), ask(teacher, batch(), method.active(phase)), phase, 0).stats
    assert {n for n in stats if n.startswith("weight/")} == {f"weight/{n}" for n in phase.levels}
    for known in (VISION_LEVELS, TEXT_LEVELS):
        assert sum(float(stats[f"weight/{n}"]) for n in known if n in phase.levels) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("row", ["none", "no_alsn", "no_relation", *BASELINES])
def test_the_teacher_is_no_part_of_the_method_and_never_changes(make_method, make_teacher, batch, ask, row):
    teacher = make_teacher()
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    recipe = resolve("tiny", row, TINY)
    method, pairs = make_method(recipe, teacher), batch()
    outcome = method(pairs, ask(teacher, pairs, method.active(recipe.schedule.fine)), recipe.schedule.fine, 0)
    sum(outcome.terms.values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not teacher.training
    ours = {p.data_ptr() for p in teacher.parameters()}
    assert not ours & {x.data_ptr() for x in method.state_dict().values()}
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())


def test_what_the_teacher_says_has_no_graph(make_teacher, batch, ask):
    said = ask(make_teacher(), batch(), ALL_LEVELS)
    tensors = [said.image, said.text, said.scale, said.level_scale, said.alpha]
    tensors += [x for table in vars(said.levels).values() for x in table.values()]
    assert not any(x.requires_grad for x in tensors)
    assert said.alpha.sum().item() == pytest.approx(1)
    assert torch.allclose(said.image.norm(dim=1), torch.ones(5), atol=1e-5)


def test_weights_of_no_relation_take_the_term_out_of_the_total(make_method, make_teacher, batch, ask):
    """An ablation is data: the term is still measured, its weight is 0."""
    from cmapkd_core.engine.passes import weighted_total

    teacher = make_teacher()
    recipe = resolve("tiny", "no_relation", TINY)
    terms = terms_of(make_method(recipe, teacher).train(), teacher, batch(), ask, PHASES["fine"])
    weights = vars(recipe.method.weights)
    expected = sum(weights[n] * v.item() for n, v in terms.items() if n != "relation")
    assert weighted_total(terms, weights).item() == pytest.approx(expected, rel=1e-6)


def test_statistics_of_twins_have_no_distance_and_no_difficulty(twins, batch, ask):
    method, teacher = twins(resolve("tiny", overrides=TINY))
    pairs = batch("tiny-teacher")
    pairs.images["student"] = pairs.images["teacher"]
    rows = method.eval().statistics(pairs, ask(teacher, pairs, ALL_LEVELS))
    assert {name: x.shape for name, x in rows.items()} == {
        "d": (5, 8),
        "u": (5, 8),
        "teacher_image": (5, 32),
        "teacher_text": (5, 32),
        "difficulty": (5,),
    }
    assert rows["d"].abs().max() < 1e-5
    assert rows["difficulty"].abs().max() < 1e-5


def test_difficulty_is_the_teachers_margin_minus_the_students(make_method, make_teacher, batch, ask):
    teacher, pairs = make_teacher(), batch()
    method = make_method(resolve("tiny", overrides=TINY), teacher).eval()
    said = ask(teacher, pairs, ALL_LEVELS)
    rows = method.statistics(pairs, said)
    image, text = method.student.encode_image(pairs.images["student"]), method.student.encode_text(
        pairs.tokens["student"]
    )  # fmt: skip
    expected = margin(gram(said.image, said.text)) - margin(image @ text.T)
    assert torch.allclose(rows["difficulty"], expected.detach(), atol=1e-5)
    assert rows["u"].abs().max() <= 1 + 1e-5
    assert (rows["u"].abs() > 0).all()


def test_levels_that_the_recipe_leaves_out_have_no_distance_and_no_utility(make_method, make_teacher, batch, ask):
    teacher, pairs = make_teacher(), batch()
    recipe = resolve("tiny", overrides=f"{TINY} pyramid.vision_levels=P5 pyramid.text_levels=L3,L4")
    method = make_method(recipe, teacher).eval()
    assert method.active(dataclasses.replace(recipe.schedule.fine, levels=ALL_LEVELS)) == ("P5", "L3", "L4")
    rows = method.statistics(pairs, ask(teacher, pairs, ALL_LEVELS))
    active = torch.tensor([n in ("P5", "L3", "L4") for n in ALL_LEVELS])
    assert torch.equal(rows["d"][:, ~active], torch.zeros(5, 5))
    assert torch.equal(rows["u"][:, ~active], torch.zeros(5, 5))
    assert (rows["d"][:, active] > 0).all()
