"""CLIP-RD's relations as terms of the full method (test_clip_rd.py has their values by hand)."""

import math

import pytest
import torch

from cmapkd_core.methods.relations import TERMS
from cmapkd_core.recipes import resolve


def test_the_row_has_clip_rds_terms_of_its_own_embeddings(make_method, make_teacher, batch, ask, twins):
    """Those that a method of that name makes of the same embeddings, at the scales that both begin with."""
    recipe, teacher, pairs = resolve("tiny", "with_rd", "optim.batch=5"), make_teacher(), batch()
    method, phase = make_method(recipe, teacher).train(), recipe.schedule.fine
    said = ask(teacher, pairs, method.active(phase))
    terms = method(pairs, said, phase, 0).terms
    model, lifts = method.student.model, (method.lifts.image, method.lifts.text)
    raw = model.encode_image(pairs.images["student"]), model.encode_text(pairs.tokens["student"])
    student = tuple(torch.nn.functional.normalize(lift(x), dim=1) for lift, x in zip(lifts, raw, strict=True))
    published, _ = twins(resolve("tiny", "clip_rd"))
    expected = published.in_teacher_space(student, (said.image, said.text))
    for term in TERMS:
        assert terms[term].item() == pytest.approx(expected[term].item(), rel=1e-5), term


def test_a_term_without_a_weight_is_not_there_and_without_any_nothing_is(make_method, make_teacher, batch, ask):
    teacher, pairs, phase = make_teacher(), batch(), resolve("tiny").schedule.fine

    def made(overrides: str):
        method = make_method(resolve("tiny", "none", f"optim.batch=5 {overrides}"), teacher)
        terms = method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0).terms
        return method, [term for term in terms if term in TERMS]

    bare, none = made("")
    assert none == []
    assert not [name for name, _ in bare.named_parameters() if name.startswith("relations")]
    method, one = made("method.weights.xrd=2")
    assert one == ["xrd"]
    scales = [p for name, p in method.named_parameters() if name.startswith("relations")]
    assert [p.item() for p in scales] == pytest.approx([math.log(1 / 0.07)] * 3)
