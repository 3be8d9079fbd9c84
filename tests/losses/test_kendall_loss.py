"""Kendall's tau against scipy and against its definition; non-target terms against numbers worked out by hand."""

import math

import pytest
import torch
from scipy.stats import kendalltau

from cmapkd_core.losses import kendall
from cmapkd_core.losses.kendall import kendall_tau, non_target, row_divergence


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_definition(a: list[float], b: list[float]) -> float:
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    sign = [math.copysign(1, x) if x else 0 for x in ((a[i] - a[j]) * (b[i] - b[j]) for i, j in pairs)]
    return sum(sign) / len(pairs)


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_without_ties_it_is_scipys(classes):
    a, b = random(6, classes), random(6, classes, seed=1)
    expected = [kendalltau(x.numpy(), y.numpy()).statistic for x, y in zip(a, b, strict=True)]
    assert kendall_tau(a, b).tolist() == pytest.approx(expected, abs=1e-6)


def test_ties_count_as_no_agreement_over_all_pairs():
    """tau-a, where scipy's tau-b would divide by the pairs without ties."""
    a, b = torch.tensor([[1.0, 1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert kendall_tau(a, b).tolist() == pytest.approx([by_definition(a[0].tolist(), b[0].tolist())])
    assert kendall_tau(a, b).item() == pytest.approx((1 - 3) / 6)


def test_chunks_change_nothing(monkeypatch):
    a, b = random(7, 9), random(7, 9, seed=1)
    whole = kendall_tau(a, b)
    monkeypatch.setattr(kendall, "CHUNK", 2 * 81)
    assert torch.equal(kendall_tau(a, b), whole)


def test_tau_knows_its_ends_and_hears_ranks_alone():
    a = random(3, 8)
    assert torch.allclose(kendall_tau(a, a.exp()), torch.ones(3))
    assert torch.allclose(kendall_tau(a, -a), -torch.ones(3))
    assert kendall_tau(torch.zeros(1, 1), torch.zeros(1, 1)).item() == 0


def test_row_divergence_by_hand():
    target, guess = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert row_divergence(target, guess).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert row_divergence(target, target).item() == pytest.approx(0, abs=1e-7)


def test_non_target_by_hand():
    """The own logit is zeroed and stays a class; a row that is not kept still counts in the mean."""
    target = torch.tensor([[9.0, math.log(3.0)], [5.0, 5.0]])
    guess = torch.tensor([[-4.0, 0.0], [1.0, 2.0]])
    # row 0: softmax(0, log 3) = (1/4, 3/4) against softmax(0, 0)
    first = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert non_target(target, guess, torch.tensor([True, False])).item() == pytest.approx(first / 2, rel=1e-5)
    assert non_target(target, guess, torch.tensor([False, False])).item() == 0


def test_non_target_does_not_hear_the_own_class():
    target, guess, kept = random(5, 5), random(5, 5, seed=1), torch.ones(5)
    louder = guess + 10 * torch.eye(5)
    assert non_target(target, louder, kept).item() == pytest.approx(non_target(target, guess, kept).item(), rel=1e-6)


def test_the_target_gets_no_gradient():
    target, guess = random(4, 4).requires_grad_(), random(4, 4, seed=1).requires_grad_()
    non_target(target, guess, torch.ones(4)).backward()
    assert target.grad is None
    assert guess.grad.abs().sum() > 0
    assert torch.equal(guess.grad.diagonal(), torch.zeros(4))
