"""Intra-modal pyramid distillation (paper 4.4.1; the distance is docs/decisions/0002).

Shapes: B local batch, W width, K levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def map_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """d = mean over positions of 1 - cos over channels, [B,W,h,h] twice -> [B] in [0, 2].

    The paper's MSE of `F.normalize(dim=-1)` normalises a map along its width, which lets geometry
    decide the scale of a level; this one has the same scale at every level and in both modalities.
    """
    return (1 - F.cosine_similarity(student, teacher.detach(), dim=1)).flatten(1).mean(1)


def vector_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """d = 1 - cos, [B,W] twice -> [B] in [0, 2]."""
    return 1 - F.cosine_similarity(student, teacher.detach(), dim=1)


def distances(student: dict[str, Tensor], teacher: dict[str, Tensor], known: tuple[str, ...]) -> Tensor:
    """Distance of every known level, [B,K]; exactly 0 where the student has no such level."""
    columns = []
    rows = len(next(iter(student.values())))
    device = next(iter(student.values())).device
    for name in known:
        if name not in student:
            columns.append(torch.zeros(rows, device=device))
            continue
        distance = map_distance if student[name].dim() == 4 else vector_distance
        columns.append(distance(student[name], teacher[name]))
    return torch.stack(columns, dim=1)


def weighted(d: Tensor, w: Tensor) -> Tensor:
    """mean_b sum_i w[b,i] d[b,i], [B,K] twice -> scalar; the weights get no gradient from it."""
    return (w.detach() * d).sum(1).mean()
