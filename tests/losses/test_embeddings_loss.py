"""CLIP-KD's, MobileCLIP's and PromptKD's terms against numbers worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.losses.embeddings import (
    bank_divergence,
    class_divergence,
    interactive,
    soft_cross_entropy,
    squared_error,
)
from cmapkd_core.losses.similarity import feature_distance, info_nce, relative_entropy

LOGITS = torch.tensor([[2.0, 0.0], [1.0, 3.0]])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_squared_error_of_unit_vectors_is_their_cosine_distance():
    ours, theirs = F.normalize(random(4, 6), dim=1), F.normalize(random(4, 6, seed=1), dim=1)
    assert squared_error(ours, theirs).item() == pytest.approx(2 / 6 * feature_distance(ours, theirs).item(), rel=1e-5)
    assert squared_error(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item() == pytest.approx(1)
    assert squared_error(ours, ours).item() == 0


def test_interactive_by_hand():
    """Rows alone: columns would ask the teacher to find the student."""
    expected = (softplus(-2) + softplus(-2)) / 2
    assert interactive(LOGITS, LOGITS).item() == pytest.approx(expected, rel=1e-6)
    other = torch.zeros(2, 2)
    assert interactive(LOGITS, other).item() == pytest.approx(0.5 * (expected + math.log(2)), rel=1e-6)


def test_interactive_of_a_matrix_and_its_transpose_is_info_nce():
    logits = random(5, 5)
    assert interactive(logits, logits.T).item() == pytest.approx(info_nce(logits).item(), rel=1e-6)


def test_soft_cross_entropy_by_hand():
    teacher, student = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert soft_cross_entropy(teacher, student).item() == pytest.approx(math.log(2), rel=1e-6)  # uniform guesses
    sharp = torch.tensor([[0.0, math.log(4.0)], [0.0, 0.0]])
    # row 0: 3/4 log 5 + 1/4 log 5/4; row 1 and column 0: log 2; column 1: 1/2 log 5/4 + 1/2 log 5
    row, column = 0.75 * math.log(5) + 0.25 * math.log(1.25), 0.5 * math.log(1.25) + 0.5 * math.log(5)
    expected = 0.5 * ((row + math.log(2)) / 2 + (math.log(2) + column) / 2)
    assert soft_cross_entropy(teacher, sharp).item() == pytest.approx(expected, rel=1e-5)


def test_soft_cross_entropy_is_the_kl_and_the_teachers_entropy():
    teacher, ours, other = random(5, 5), random(5, 5, seed=1), random(5, 5, seed=2)
    gap = soft_cross_entropy(teacher, ours) - soft_cross_entropy(teacher, other)
    assert gap.item() == pytest.approx(
        (relative_entropy(teacher, ours, 1.0) - relative_entropy(teacher, other, 1.0)).item(), rel=1e-4
    )


def test_class_divergence_by_hand():
    teacher, student = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert class_divergence(teacher, student, 1.0).item() == pytest.approx(kl / (2 * 2), rel=1e-6)


def test_class_divergence_over_temperatures_and_at_its_minimum():
    teacher, student = random(3, 7), random(3, 7, seed=1)
    plain = class_divergence(teacher, student, 1.0).item()
    assert class_divergence(3 * teacher, 3 * student, 3.0).item() == pytest.approx(9 * plain, rel=1e-5)
    assert class_divergence(teacher, teacher, 1.0).item() == pytest.approx(0, abs=1e-7)


def test_bank_divergence_by_hand():
    """A query on the first of two entries: 3 to 1 at scale log 3, and a student between them: 1 to 1."""
    teacher, student, bank = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.eye(2)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = bank_divergence(student, teacher, bank, math.log(3.0), 1.0)
    assert found.shape == (1,)
    assert found.item() == pytest.approx(kl, rel=1e-5)
    assert bank_divergence(student, teacher, bank, 2 * math.log(3.0), 2.0).item() == pytest.approx(4 * kl, rel=1e-5)


def test_bank_divergence_is_a_querys_own_and_does_not_mind_the_order_of_the_bank():
    ours, theirs, bank = (
        F.normalize(random(*shape, seed=i), dim=1) for i, shape in enumerate(((3, 6), (3, 6), (9, 6)))
    )
    found = bank_divergence(ours, theirs, bank, 10.0, 1.0)
    assert (found > 0).all()
    assert torch.allclose(bank_divergence(ours[1:], theirs[1:], bank.flip(0), 10.0, 1.0), found[1:], rtol=1e-4)
    assert bank_divergence(theirs, theirs, bank, 10.0, 1.0).abs().max() < 1e-6


def test_the_teacher_gets_no_gradient():
    teacher, student = random(4, 4).requires_grad_(), random(4, 4, seed=1).requires_grad_()
    terms = squared_error(student, teacher), soft_cross_entropy(teacher, student), class_divergence(teacher, student, 2)
    sum(terms).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
