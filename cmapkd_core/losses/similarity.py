"""Contrastive and embedding-level terms.

Shapes: B global batch, E embedding width; logits [..., B, B] have images as rows, captions as columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(logits: Tensor) -> Tensor:
    """Symmetric InfoNCE per leading index: 1/2 [CE(rows, i) + CE(columns, i)], [..., B, B] -> [...].

    Radford et al. 2021, fig. 3. The i-th caption belongs to the i-th image.
    """
    own = logits.diagonal(dim1=-2, dim2=-1)
    rows = (logits.logsumexp(-1) - own).mean(-1)
    columns = (logits.logsumexp(-2) - own).mean(-1)
    return 0.5 * (rows + columns)


def relative_entropy(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """tau^2 * 1/2 sum over both directions of KL(softmax(teacher/tau) || softmax(student/tau)), mean over the batch.

    [..., B, B] -> [...]. The factor keeps the gradient's size over temperatures (Hinton et al. 2015);
    the teacher gets no gradient.
    """
    total = torch.zeros(student.shape[:-2], device=student.device)
    for dim in (-1, -2):
        target = (teacher.detach() / tau).log_softmax(dim)
        guess = (student / tau).log_softmax(dim)
        total = total + (target.exp() * (target - guess)).sum(dim).mean(-1)
    return 0.5 * tau**2 * total


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """fd: mean of 1 - cos between a student's and the teacher's embeddings, [B,E], [B,E] -> scalar."""
    return (1 - F.cosine_similarity(student, teacher.detach(), dim=-1)).mean()


def margin(similarity: Tensor) -> Tensor:
    """How far each pair's own similarity is above its strongest rival, mean of both directions, [B,B] -> [B].

    Negative where a wrong partner wins. Cosines, so that models with other logit scales compare.
    """
    own = similarity.diagonal()
    rivals = similarity.masked_fill(torch.eye(len(own), dtype=torch.bool, device=own.device), float("-inf"))
    return own - 0.5 * (rivals.amax(dim=0) + rivals.amax(dim=1))
