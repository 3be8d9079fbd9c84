"""CLIP-RD: relations between the models, down each modality and across them."""

import math

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.recipes import resolve

PAIRS = torch.eye(2)
SWAPPED = PAIRS.flip(0)


def kl(target: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
    """Half of the rows' and half of the columns' KL."""
    parts = [
        F.kl_div(g.log_softmax(1), t.log_softmax(1), log_target=True, reduction="batchmean")
        for t, g in ((target, guess), (target.T, guess.T))
    ]
    return 0.5 * (parts[0] + parts[1])


@pytest.fixture
def related(twins):
    """`related(student, teacher)`: the terms in the teacher's space, with a scale of 1 everywhere."""
    method, _ = twins(resolve("tiny", "clip_rd"))
    with torch.no_grad():
        for name, p in method.named_parameters():
            if name.endswith("log_scale"):
                p.zero_()
    return method.in_teacher_space


def test_the_terms_by_hand(related):
    """Two pairs on the axes, the student's captions swapped: each modality agrees with itself, or not at all."""
    p = 1 / (1 + math.exp(-1))  # of 1 against 0
    apart = (2 * p - 1) * math.log(p / (1 - p))  # the KL of (p, 1-p) and (1-p, p)
    alike = related((PAIRS, PAIRS), (PAIRS, PAIRS))
    assert alike["vrd"].item() == alike["xrd"].item() == pytest.approx(0, abs=1e-7)
    assert alike["vrd_contrast"].item() == pytest.approx(-2 * math.log(p), rel=1e-5)
    terms = related((PAIRS, SWAPPED), (PAIRS, PAIRS))
    assert terms["vrd"].item() == pytest.approx(apart, rel=1e-5)
    assert terms["vrd_contrast"].item() == pytest.approx(-math.log(p) - math.log(1 - p), rel=1e-5)
    # the teacher's images against the student's captions are swapped, the teacher's captions against its images not
    assert terms["xrd"].item() == pytest.approx(apart, rel=1e-5)


def test_vertical_is_seen_where_crossed_is_not(related):
    """Captions and images that are wrong in the same way agree with each other; the contrast says that they are."""
    terms = related((SWAPPED, SWAPPED), (PAIRS, PAIRS))
    assert terms["vrd"].item() == terms["xrd"].item() == pytest.approx(0, abs=1e-7)
    assert terms["vrd_contrast"].item() == pytest.approx(2 * math.log1p(math.e), rel=1e-5)


def test_the_terms_written_out_where_widths_differ(terms_of_row):
    method, said, pairs, terms = terms_of_row("clip_rd")
    model = method.student.model
    image = F.normalize(method.lifts.image(model.encode_image(pairs.images["student"], normalize=False)), dim=1)
    text = F.normalize(method.lifts.text(model.encode_text(pairs.tokens["student"], normalize=False)), dim=1)
    down = [said.image @ image.T / 0.07, said.text @ text.T / 0.07]
    across = [said.image @ text.T / 0.07, said.text @ image.T / 0.07]
    own = torch.arange(5)
    contrast = sum(0.5 * (F.cross_entropy(x, own) + F.cross_entropy(x.T, own)) for x in down)
    assert torch.allclose(terms["vrd"], kl(down[1], down[0]), rtol=1e-4)
    assert torch.allclose(terms["vrd_contrast"], contrast, rtol=1e-4)
    assert torch.allclose(terms["xrd"], 0.5 * (kl(*across) + kl(*across[::-1])), rtol=1e-4)


def test_images_follow_captions_down_and_each_other_across(terms_of_row):
    method, _, _, terms = terms_of_row("clip_rd")
    lifts = method.lifts.image.weight, method.lifts.text.weight
    for term, moved in (("vrd", [True, False]), ("xrd", [True, True]), ("vrd_contrast", [True, True])):
        found = torch.autograd.grad(terms[term], lifts, retain_graph=True, allow_unused=True)
        assert [x is not None and bool(x.abs().sum() > 0) for x in found] == moved, term


def test_what_clip_kd_has_is_unchanged(terms_of_row):
    ours, theirs = (terms_of_row(row)[3] for row in ("clip_rd", "clip_kd"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
