"""LLaVA-KD's terms on patches against numbers worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.losses.patches import patch_relation, patch_responses


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_responses_by_hand():
    teacher = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])  # one image, two patches, two captions
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert patch_responses(torch.zeros(1, 2, 2), teacher).item() == pytest.approx((kl + 0) / 2, rel=1e-6)
    assert patch_responses(teacher, teacher).item() == pytest.approx(0, abs=1e-7)


def test_relation_by_hand():
    """Two patches: equal for the student (R all ones), orthogonal for the teacher (R the identity)."""
    student = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    teacher = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    assert patch_relation(student, teacher).item() == pytest.approx(1 - 2 / (2 * math.sqrt(2)), rel=1e-6)


def test_relation_needs_no_common_basis_or_width():
    student = unit(3, 6, 4)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q
    assert patch_relation(student, student @ turn).item() == pytest.approx(0, abs=1e-6)
    assert patch_relation(student, F.pad(student, (0, 5))).item() == pytest.approx(0, abs=1e-6)
    assert patch_relation(student, unit(3, 6, 4, seed=2)).item() > 0.1


def test_the_teacher_gets_no_gradient():
    student, teacher = unit(2, 4, 3).requires_grad_(), unit(2, 4, 3, seed=1).requires_grad_()
    (patch_relation(student, teacher) + patch_responses(student, teacher)).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
