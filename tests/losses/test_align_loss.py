"""The cross-modal terms: crossed InfoNCE and the pyramid of KLs."""

import pytest
import torch

from cmapkd_core.losses.align import align, pyramid, single
from cmapkd_core.losses.similarity import info_nce, relative_entropy
from cmapkd_core.losses.streamed import Similarities


def sims(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def factored(matrices: torch.Tensor) -> Similarities:
    """Matrices [K,J,B,B] or [B,B] as factors: all of a row's entries, and which of them are a column's."""
    given = matrices if matrices.dim() == 4 else matrices[None, None]
    _, texts, batch, _ = given.shape
    return Similarities((given.transpose(1, 2).flatten(2),), (torch.eye(texts * batch).view(texts, batch, -1),))


def test_single_is_the_mean_of_both_crossings():
    images, texts = torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.zeros(2, 2)
    half = torch.log1p(torch.tensor(-4.0).exp())
    assert single(factored(images), factored(texts)).item() == pytest.approx(0.5 * (half.item() + 0.693147), rel=1e-5)
    assert single(factored(images), factored(texts)).item() == pytest.approx(
        (0.5 * (info_nce(images) + info_nce(texts))).item()
    )


def test_pyramid_weighs_each_pair_of_levels_by_alpha():
    student, teacher = sims(2, 3, 4, 4), sims(3, 2, 4, 4).transpose(0, 1)
    alpha = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    expected = 0.25 * relative_entropy(teacher[0, 1], student[0, 1], 2.0)
    expected += 0.75 * relative_entropy(teacher[1, 2], student[1, 2], 2.0)
    assert pyramid(factored(student), factored(teacher), alpha, 2.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_alpha_counts_by_its_proportions():
    """A phase with few levels takes a part of the table: the rest is renormalised to sum 1."""
    student, teacher, alpha = sims(2, 2, 5, 5), sims(5, 5, 2, 2).permute(2, 3, 0, 1), torch.rand(2, 2) + 0.1
    small = pyramid(factored(student), factored(teacher), alpha / 100, 1.0)
    assert small.item() == pytest.approx(pyramid(factored(student), factored(teacher), alpha, 1.0).item(), rel=1e-5)


def test_one_pair_of_levels_is_its_relative_entropy_whatever_alpha():
    student, teacher = sims(1, 1, 3, 3), sims(3, 3).expand(1, 1, 3, 3)
    found = pyramid(factored(student), factored(teacher), torch.tensor([[0.01]]), 1.0)
    assert found.item() == pytest.approx(relative_entropy(teacher, student, 1.0).item(), rel=1e-5)


def test_equal_similarities_give_zero_and_a_finite_gradient():
    student = sims(4, 4, 6, 6).requires_grad_()
    loss = pyramid(factored(student), factored(student.detach()), torch.full((4, 4), 1 / 16), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


def test_align_adds_beta_times_the_pyramid():
    assert align(torch.tensor(2.0), torch.tensor(4.0), 0.5).item() == 4.0
