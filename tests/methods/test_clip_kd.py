"""CLIP-KD: lifted embeddings against the teacher's."""

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.recipes import resolve


def test_the_terms_written_out(terms_of_row):
    method, said, pairs, terms = terms_of_row("clip_kd")
    model = method.student.model
    image = F.normalize(method.lifts.image(model.encode_image(pairs.images["student"], normalize=False)), dim=1)
    text = F.normalize(method.lifts.text(model.encode_text(pairs.tokens["student"], normalize=False)), dim=1)
    mse = F.mse_loss(image, said.image) + F.mse_loss(text, said.text)
    own = torch.arange(5)
    rows = (image @ said.text.T / 0.07, text @ said.image.T / 0.07)
    assert torch.allclose(terms["mse"], mse, rtol=1e-4)
    assert torch.allclose(terms["icl"], sum(F.cross_entropy(x, own) for x in rows) / 2, rtol=1e-4)
    assert resolve("tiny", "clip_kd").method.weights.mse == 2000


def test_equal_widths_need_no_projection_and_a_twin_has_no_distance(twins, batch, ask):
    recipe = resolve("tiny", "clip_kd", "optim.batch=5")
    method, teacher = twins(recipe)
    pairs = batch("tiny-teacher")
    pairs.images["student"] = pairs.images["teacher"]
    assert [p.numel() for p in method.groups(recipe.schedule.fine)["extra"]] == [1]  # the scale of ICL
    terms = method(pairs, ask(teacher, pairs, ()), recipe.schedule.fine, 0).terms
    for name in ("mse", "kd"):
        assert terms[name].item() == pytest.approx(0, abs=1e-5), name


def test_projections_are_in_the_state_and_not_in_the_exported_student(terms_of_row):
    method, *_ = terms_of_row("clip_kd")
    assert {"lifts.image.weight", "lifts.text.bias", "log_scale"} < set(method.state_dict())
    assert method.exported(None) is method.student
