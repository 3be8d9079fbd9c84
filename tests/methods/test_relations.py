"""CLIP-RD's relations as terms of the full method (test_clip_rd.py has their values by hand)."""

import pytest
import torch

from cmapkd_core.methods.relations import SCALES, TERMS
from cmapkd_core.recipes import resolve


def test_the_row_has_clip_rds_terms_of_its_own_embeddings(make_method, make_teacher, batch, ask, twins):
    """Those that a method of that name makes of the same embeddings at the same scales, which are three."""
    recipe, teacher, pairs = resolve("tiny", "with_rd", "optim.batch=5"), make_teacher(), batch()
    method, phase = make_method(recipe, teacher).train(), recipe.schedule.fine
    published, _ = twins(resolve("tiny", "clip_rd"))
    with torch.no_grad():
        for name, value in {"images": 1.0, "captions": 2.0, "across": 3.0}.items():
            method.relations.scales[name].log_scale.fill_(value)
        for scale, value in zip(published.vertical, (1.0, 2.0), strict=True):
            scale.log_scale.fill_(value)
        published.log_scale.fill_(3.0)
    said = ask(teacher, pairs, method.active(phase))
    terms = method(pairs, said, phase, 0).terms
    model, lifts = method.student.model, (method.lifts.image, method.lifts.text)
    raw = model.encode_image(pairs.images["student"]), model.encode_text(pairs.tokens["student"])
    student = tuple(torch.nn.functional.normalize(lift(x), dim=1) for lift, x in zip(lifts, raw, strict=True))
    expected = published.in_teacher_space(student, (said.image, said.text))
    for term in TERMS:
        assert terms[term].item() == pytest.approx(expected[term].item(), rel=1e-5), term


@pytest.mark.parametrize("term", TERMS)
def test_a_term_alone_is_that_of_all_and_trains_the_scales_that_it_has(make_method, make_teacher, batch, ask, term):
    teacher, pairs, phase = make_teacher(), batch(), resolve("tiny").schedule.fine
    alone, all_of_them = (
        make_method(resolve("tiny", row, f"optim.batch=5 {overrides}"), teacher).train()
        for row, overrides in (("none", f"method.weights.{term}=1"), ("with_rd", ""))
    )
    said = ask(teacher, pairs, alone.active(phase))
    terms = alone(pairs, said, phase, 0).terms
    assert [name for name in terms if name in TERMS] == [term]
    assert terms[term].item() == pytest.approx(all_of_them(pairs, said, phase, 0).terms[term].item(), rel=1e-6)
    terms[term].backward()
    scales = alone.relations.scales
    assert sorted(scales) == sorted(SCALES[term])
    assert all(scale.log_scale.grad.abs() > 0 for scale in scales.values())
    in_groups = {id(p) for group in alone.groups(phase).values() for p in group}
    assert {id(p) for p in scales.parameters()} <= in_groups


def test_without_a_weight_there_is_no_term_and_no_scale(make_method, make_teacher, batch, ask):
    teacher, pairs, phase = make_teacher(), batch(), resolve("tiny").schedule.fine
    method = make_method(resolve("tiny", "none", "optim.batch=5"), teacher)
    assert not {*method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0).terms} & {*TERMS}
    assert not [name for name, _ in method.named_parameters() if name.startswith("relations")]
