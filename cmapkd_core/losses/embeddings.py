"""Terms that compare the student's embeddings or similarities with the teacher's, beyond those in contrastive.py.

Shapes: B global batch, E embedding width, C classes or captions; logits have queries as rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmapkd_core.losses.kendall import row_divergence


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of unit embeddings, [B,E] twice -> scalar; 2 / E (1 - cos) of each pair (CLIP-KD's FD)."""
    return (student - teacher.detach()).square().mean()


def interactive(image_to_teacher: Tensor, text_to_teacher: Tensor) -> Tensor:
    """ICL = 1/2 [CE(s v^S . t^T, i) + CE(s t^S . v^T, i)], rows are the student's, [B,B] twice -> scalar (CLIP-KD)."""
    parts = [(x.logsumexp(1) - x.diagonal()).mean() for x in (image_to_teacher, text_to_teacher)]
    return 0.5 * torch.stack(parts).sum()


def soft_cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """1/2 sum over rows and columns of CE(softmax(teacher), softmax(student)), mean over the batch, [B,B] -> scalar.

    Its gradient is that of the KL; its minimum is the teacher's entropy.
    """
    parts = [-(teacher.detach().softmax(dim) * student.log_softmax(dim)).sum(dim).mean() for dim in (-1, -2)]
    return 0.5 * torch.stack(parts).sum()


def bank_divergence(student: Tensor, teacher: Tensor, bank: Tensor, scale: Tensor | float, tau: float) -> Tensor:
    """tau^2 KL(softmax(s teacher bank^T / tau) || softmax(s student bank^T / tau)) of each query, [b,E] twice -> [b].

    SEED (Fang et al., ICLR 2021, equation 4) with one scale s for both: 0 where the embeddings are equal.

    Args:
        bank: [N,E], constants. scale: the teacher's.
    """
    rows = (scale * x @ bank.T / tau for x in (teacher, student))
    return tau**2 * row_divergence(*rows)


def class_divergence(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """tau^2 / (B C) sum over rows of KL(softmax(teacher / tau) || softmax(student / tau)), [B,C] twice -> scalar.

    The division by the number of classes is PromptKD's.
    """
    return tau**2 * row_divergence(teacher / tau, student / tau).mean() / student.shape[1]
