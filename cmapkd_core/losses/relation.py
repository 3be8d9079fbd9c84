"""Relational structure distillation (paper 4.4.3; docs/decisions/0006).

Shapes: B global batch; vectors [B,D] of any width, since only their cosines are compared. Of several ranks each has its
share of a sample relation (losses/streamed.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd_core.losses.streamed import Similarities, squared_difference

Grams = tuple[Similarities, Similarities, Similarities]
EPS = 1e-12  # below which a norm counts as 0, as in F.normalize


def gram(x: Tensor, y: Tensor) -> Tensor:
    """Cosines of every row of x [B,D] with every row of y [B,D], [B,B]."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T


def off_diagonal(difference: Tensor) -> Tensor:
    """Mean square of a square matrix's off-diagonal elements; 0 for a 1x1 matrix."""
    n = len(difference)
    mask = ~torch.eye(n, dtype=torch.bool, device=difference.device)
    return (difference.square() * mask).sum() / max(1, n * (n - 1))


def sample_relation(student: Grams, teacher: Grams) -> Tensor:
    """Mean over three Gram matrices (image-image, text-text, image-text) of their off-diagonal squared difference.

    Kept apart, since one Gram of concatenated modalities would mix them (paper_problems 14).
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([squared_difference(t, s) for s, t in pairs]).mean()


def linear_cka(levels: Tensor) -> Tensor:
    """Linear centred kernel alignment between levels, [K,B,D] -> [K,K] in [0, 1] (Kornblith et al. 2019).

    Needs no common basis or width, and sees which samples are alike, unlike a correlation of batch means.
    """
    centred = levels - levels.mean(dim=1, keepdim=True)
    count, batch, width = levels.shape
    if batch <= count * width:
        kernels = torch.einsum("kbd,kcd->kbc", centred, centred).flatten(1)
        return gram(kernels, kernels)
    # <X X^T, Y Y^T> = |X^T Y|^2, so that nothing grows with the square of the batch.
    inner = torch.einsum("kbd,jbe->kjde", centred, centred).flatten(2)
    norms: Tensor = torch.linalg.vector_norm(inner, dim=2)
    sizes = norms.diagonal().clamp_min(EPS)
    table: Tensor = norms.square() / sizes[:, None] / sizes
    return table


def layer_relation(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Off-diagonal squared difference of the level-by-level CKA matrices; 0 for one level.

    Args:
        student, teacher: vectors [B,D] of the same active levels of one modality.
    """
    return off_diagonal(linear_cka(torch.stack(student)) - linear_cka(torch.stack(teacher)).detach())
