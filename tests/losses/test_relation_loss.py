"""Relations between samples and between levels."""

import pytest
import torch

from cmapkd_core.losses.relation import gram, layer_relation, linear_cka, off_diagonal, sample_relation
from cmapkd_core.losses.streamed import Similarities


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(n: int) -> torch.Tensor:
    return torch.linalg.qr(random(n, n, seed=5))[0]


def test_gram_by_hand():
    x, y = torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([[1.0, 1.0], [0.0, -3.0]])
    assert gram(x, y).flatten().tolist() == pytest.approx([0.5**0.5, 0.0, 0.5**0.5, -1.0], abs=1e-6)


def test_off_diagonal_leaves_the_diagonal_out():
    difference = torch.tensor([[100.0, 1.0, 2.0], [3.0, 100.0, 0.0], [0.0, 0.0, 100.0]])
    assert off_diagonal(difference).item() == pytest.approx((1 + 4 + 9) / 6)


def test_off_diagonal_of_one_by_one_is_zero_with_a_gradient():
    single = torch.tensor([[7.0]], requires_grad=True)
    off_diagonal(single).backward()
    assert off_diagonal(single).item() == 0
    assert single.grad.item() == 0


def test_sample_relation_is_the_mean_over_the_three_grams():
    student = (Similarities.of(torch.zeros(2, 2), torch.eye(2)),) * 3
    teacher = tuple(Similarities.of(torch.full((2, 2), float(n)), torch.eye(2)) for n in (1, 2, 3))
    assert sample_relation(student, teacher).item() == pytest.approx((1 + 4 + 9) / 3)


def test_sample_relation_needs_no_equal_widths_and_leaves_the_teacher_alone():
    ours, theirs = random(6, 3).requires_grad_(), random(6, 9).requires_grad_()
    grams = tuple((Similarities.of(x, x),) * 3 for x in (ours, theirs))
    sample_relation(*grams).backward()
    assert ours.grad.abs().sum() > 0
    assert theirs.grad is None


def test_cka_of_a_level_with_itself_is_one_also_after_rotation_and_scaling():
    x = random(8, 5)
    table = linear_cka(torch.stack((x, 3 * x @ rotation(5) + 7)))
    assert torch.allclose(table, torch.ones(2, 2), atol=1e-5)


def test_cka_by_its_definition():
    x, y = random(7, 4, seed=1), random(7, 4, seed=2)
    a, b = (z - z.mean(0) for z in (x, y))
    expected = (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(torch.stack((x, y)))[0, 1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_cka_of_a_large_batch_is_that_of_a_small_one():
    """Above K x D samples it goes by products of levels: the same table, and the same gradient."""
    levels = torch.stack([random(9, 4, seed=n) for n in range(2)])
    many = levels.repeat(1, 2, 1).requires_grad_()  # 18 samples of 2 x 4; repeated samples change no CKA
    few = levels.clone().requires_grad_()
    by_kernels = gram(*2 * [torch.einsum("kbd,kcd->kbc", *2 * [few - few.mean(1, keepdim=True)]).flatten(1)])
    by_products = linear_cka(many)
    assert torch.allclose(by_products, by_kernels, atol=1e-6)
    ours, expected = (torch.autograd.grad(t[0, 1], x)[0] for t, x in ((by_products, many), (by_kernels, few)))
    assert torch.allclose(ours[:, :9] + ours[:, 9:], expected, atol=1e-6)


def test_cka_lies_between_zero_and_one_and_sees_which_samples_are_alike():
    x = random(16, 6, seed=3)
    shuffled = x[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    table = linear_cka(torch.stack((x, shuffled)))
    assert table.min() >= 0
    assert table.max() <= 1 + 1e-6
    assert table[0, 1] < 0.8  # a correlation of batch means would not notice the shuffle


def test_layer_relation_compares_off_diagonal_structure():
    levels = [random(9, 4, seed=n) for n in range(3)]
    rotated = [x @ rotation(4) for x in levels]
    assert layer_relation(rotated, levels).item() == pytest.approx(0, abs=1e-10)
    tied = [levels[0], levels[0], levels[2]]
    expected = off_diagonal(linear_cka(torch.stack(tied)) - linear_cka(torch.stack(levels)))
    assert layer_relation(tied, levels).item() == pytest.approx(expected.item())
    assert expected > 1e-3


def test_layer_relation_of_one_level_is_zero():
    assert layer_relation([random(5, 3)], [random(5, 3, seed=1)]).item() == 0


@pytest.mark.parametrize("degenerate", ["equal to the teacher", "all samples the same"])
def test_gradients_are_finite(degenerate):
    teacher = [random(5, 3, seed=n) for n in (1, 2)]
    student = [x.clone() if "teacher" in degenerate else torch.ones(5, 3) for x in teacher]
    for x in student:
        x.requires_grad_()
    (layer_relation(student, teacher) + off_diagonal(gram(student[0], student[0]))).backward()
    assert all(torch.isfinite(x.grad).all() for x in student)
