"""Hints against numbers worked out by hand."""

import pytest
import torch

from cmapkd_core.losses.hints import map_hint, token_hint

# Layer norm of (1, 3) over two channels is (-1, 1), of (4, 0) it is (1, -1).
TEACHER = torch.tensor([[1.0, 3.0], [4.0, 0.0]])


def test_map_hint_by_hand():
    teacher = TEACHER.T.reshape(1, 2, 1, 2)  # two positions, channels first
    student = torch.tensor([[0.0, 1.0], [1.0, 2.0]]).T.reshape(1, 2, 1, 2)
    # errors: (0+1)^2, (1-1)^2, (1-1)^2, (2+1)^2
    assert map_hint(student, teacher).item() == pytest.approx(0.5 * (1 + 0 + 0 + 9) / 4, rel=1e-4)


def test_token_hint_counts_valid_tokens_and_every_caption_alike():
    teacher = TEACHER.expand(2, 2, 2)
    student = torch.tensor([[[0.0, 1.0], [1.0, 2.0]], [[-1.0, 1.0], [50.0, 50.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    first, second = (1 + 0 + 0 + 9) / 4, 0.0  # padding of the second caption counts for nothing
    assert token_hint(student, teacher, mask).item() == pytest.approx(0.5 * (first + second) / 2, rel=1e-4)


def test_a_hint_does_not_hear_the_teachers_scale_and_gives_it_no_gradient():
    teacher = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    student = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss = token_hint(student, teacher, mask)
    assert token_hint(student, 7 * teacher + 2, mask).item() == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_a_guess_of_the_normed_teacher_costs_nothing():
    teacher = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    guess = torch.nn.functional.layer_norm(teacher.movedim(1, -1), (8,)).movedim(-1, 1)
    assert map_hint(guess, teacher).item() == pytest.approx(0, abs=1e-10)
