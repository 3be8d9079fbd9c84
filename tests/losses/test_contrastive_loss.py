"""InfoNCE, the soft targets' KL, fd and the margin against numbers worked out by hand."""

import math

import pytest
import torch

from cmapkd_core.losses.similarity import feature_distance, info_nce, margin, relative_entropy

LOGITS = torch.tensor([[2.0, 0.0], [1.0, 3.0]])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_info_nce_of_two_pairs_by_hand():
    # rows: both own captions lead by 2; columns: the own images lead by 1 and by 3
    expected = 0.5 * (softplus(-2) + (softplus(-1) + softplus(-3)) / 2)
    assert info_nce(LOGITS).item() == pytest.approx(expected, rel=1e-6)


def test_info_nce_of_logits_without_information_is_log_of_the_batch():
    assert info_nce(torch.full((5, 5), 3.0)).item() == pytest.approx(math.log(5), rel=1e-6)


def test_info_nce_is_symmetric_in_the_modalities_and_keeps_leading_indices():
    stack = torch.stack((LOGITS, LOGITS.T, 10 * LOGITS)).reshape(3, 1, 2, 2)
    losses = info_nce(stack)
    assert losses.shape == (3, 1)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert losses[2].item() == pytest.approx(info_nce(10 * LOGITS).item(), rel=1e-6)


def test_info_nce_survives_the_largest_scale():
    logits = (100 * torch.eye(3) - 200).requires_grad_()
    info_nce(logits).backward()
    assert torch.isfinite(logits.grad).all()


def test_relative_entropy_by_hand():
    teacher, student = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    # rows: KL(3/4,1/4 || 1/2,1/2) and 0; columns: the same numbers, so both directions are equal
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert relative_entropy(teacher, student, 1.0).item() == pytest.approx(0.5 * (kl / 2 + kl / 2), rel=1e-6)


def test_relative_entropy_hears_columns_as_well_as_rows():
    """Adding a constant to every row changes no row's softmax, only the columns'."""
    teacher, rows_equal = LOGITS, LOGITS + torch.tensor([[0.0], [5.0]])
    expected = 0.0
    for column in range(2):
        p, q = teacher[:, column].softmax(0), rows_equal[:, column].softmax(0)
        expected += 0.5 * float((p * (p / q).log()).sum()) / 2
    assert expected > 0.1
    assert relative_entropy(teacher, rows_equal, 1.0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [0.5, 2.0, 4.0])
def test_temperature_divides_the_logits_and_its_square_multiplies_the_loss(tau):
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 3, 4, 4)
    plain = relative_entropy(teacher, student, 1.0)
    assert torch.allclose(relative_entropy(tau * teacher, tau * student, tau), tau**2 * plain, rtol=1e-5)


def test_relative_entropy_at_its_minimum():
    student = LOGITS.clone().requires_grad_()
    loss = relative_entropy(LOGITS, student, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert student.grad.abs().max() < 1e-6


def test_the_teacher_gets_no_gradient():
    teacher, student = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    (relative_entropy(teacher, student, 1.0) + feature_distance(student, teacher)).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_feature_distance_is_one_minus_the_cosine():
    ours = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    theirs = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert feature_distance(ours, theirs).item() == pytest.approx((0 + 1 + 2) / 3, rel=1e-6)


def test_margin_by_hand():
    similarity = torch.tensor([[0.9, 0.2, 0.1], [0.6, 0.3, 0.0], [0.5, 0.4, 0.7]])
    # pair 0: rivals 0.2 in its row, 0.6 in its column; pair 1: 0.6, 0.4; pair 2: 0.5, 0.1
    assert margin(similarity).tolist() == pytest.approx([0.9 - 0.4, 0.3 - 0.5, 0.7 - 0.3], rel=1e-5)
