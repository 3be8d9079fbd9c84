"""Standardised similarities: numbers by hand, what does not count, and the form without the matrix."""

import math

import pytest
import torch

from cmapkd_core.losses.similarity import relative_entropy
from cmapkd_core.losses.standardised import over_spread, standardised_entropy, z_scored
from cmapkd_core.losses.streamed import Ranks


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random(6, width, seed=seed), random(6, width, seed=seed + 1)


def by_definition(teacher, student, tau: float) -> torch.Tensor:
    """Of whole matrices: the KL of z-scored rows, and of z-scored columns, half of each."""
    total = torch.zeros((), dtype=torch.float64)
    for t, s in ((teacher, student), (teacher.T, student.T)):
        wanted, guess = ((z_scored(x) / tau).log_softmax(1) for x in (t, s))
        total = total + 0.5 * tau**2 * (wanted.exp() * (wanted - guess)).sum(1).mean()
    return total


def test_z_scores_by_hand():
    """1, 2, 6: mean 3, variance (4 + 1 + 9) / 3."""
    expected = torch.tensor([[-2.0, -1.0, 3.0]]) / math.sqrt(14 / 3)
    assert torch.allclose(z_scored(torch.tensor([[1.0, 2.0, 6.0]])), expected)
    assert torch.equal(z_scored(torch.full((1, 3), 5.0)), torch.zeros(1, 3))


def test_the_term_by_hand():
    """Two pairs: any row is -1 and 1; a student that prefers what the teacher does not has them the other way."""
    teacher, student = torch.eye(2), torch.eye(2)
    swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert standardised_entropy((teacher, teacher), (student, 7 * student), 1.0).item() == pytest.approx(0, abs=1e-6)
    p = 1 / (1 + math.exp(-2))  # of 1 against -1
    kl = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    found = standardised_entropy((teacher, teacher), (student, swapped), 1.0).item()
    assert found == pytest.approx(kl, rel=1e-5)  # half of the rows' and half of the columns'
    p = 1 / (1 + math.exp(-2 / 3))
    kl = 9 * (2 * p - 1) * math.log(p / (1 - p))
    assert standardised_entropy((teacher, teacher), (student, swapped), 3.0).item() == pytest.approx(kl, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_value_and_gradient_are_the_definitions(tau):
    teacher, (image, text) = pair(8, 1), (x.requires_grad_() for x in pair(5, 3))
    whole = by_definition(teacher[0] @ teacher[1].T, image @ text.T, tau)
    found = standardised_entropy(teacher, (image, text), tau)
    assert found.item() == pytest.approx(whole.item(), rel=1e-9)
    for ours, theirs in zip(
        torch.autograd.grad(found, [image, text]), torch.autograd.grad(whole, [image, text]), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)


def test_scales_of_either_model_and_shifts_of_a_query_do_not_count():
    """They do without it; a constant among the candidates' coordinates is a shift of every logit of a query."""
    teacher, student = pair(8, 1), pair(5, 3)
    value = standardised_entropy(teacher, student, 2.0).item()
    scaled = (3 * teacher[0], 0.1 * teacher[1]), (0.5 * student[0], 40 * student[1])
    assert standardised_entropy(*scaled, 2.0).item() == pytest.approx(value, rel=1e-9)
    logits, each = student[0] @ student[1].T, torch.tensor([[1.0], [2.0], [0.1], [30.0], [5.0], [1.0]])
    assert torch.allclose(z_scored(each * logits + 7 * each), z_scored(logits))
    shifted = student[1] + random(1, 5, seed=9)
    moved = over_spread(student[0], shifted) @ shifted.T
    assert torch.allclose(z_scored(moved), z_scored(logits))
    plain = relative_entropy(teacher[0] @ teacher[1].T, logits, 2.0).item()
    assert relative_entropy(teacher[0] @ teacher[1].T, 3 * logits, 2.0).item() != pytest.approx(plain, rel=0.1)


def test_a_student_with_the_teachers_relations_has_nothing_to_learn():
    teacher = pair(8, 1)
    turn, _ = torch.linalg.qr(random(8, 8, seed=5))
    student = tuple((5 * x @ turn).requires_grad_() for x in teacher)
    value = standardised_entropy(teacher, student, 1.0)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert all(g.abs().max() < 1e-9 for g in torch.autograd.grad(value, student))


def test_the_teacher_gets_no_gradient_and_equal_candidates_give_a_finite_one():
    teacher, student = [tuple(x.requires_grad_() for x in pair(5, seed)) for seed in (1, 3)]
    standardised_entropy(teacher, student, 1.0).backward()
    assert all(x.grad is None for x in teacher)
    one = torch.ones(4, 3, dtype=torch.float64).requires_grad_()
    value = standardised_entropy((random(4, 3), random(4, 3, seed=1)), (one, one), 1.0)
    assert torch.isfinite(value)
    assert torch.isfinite(torch.autograd.grad(value, one)[0]).all()


def test_two_ranks_have_the_mean_of_what_one_has():
    teacher, student = pair(8, 1), pair(5, 3)
    shares = [standardised_entropy(teacher, student, 2.0, Ranks(rank, 2)).item() for rank in range(2)]
    assert sum(shares) / 2 == pytest.approx(standardised_entropy(teacher, student, 2.0).item(), rel=1e-12)
    assert shares[0] != pytest.approx(shares[1])
