"""Hints: intermediate states of the student against the teacher's (Romero et al. 2015, FitNets).

Shapes: b local batch, C teacher's width, h side of a map, N tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def map_hint(student: Tensor, teacher: Tensor) -> Tensor:
    """1/2 mean of (r(student) - LN(teacher))^2 over channels and positions, [b,C,h,h] twice -> scalar.

    LN is without parameters and over channels: outlier channels of a transformer would be the whole loss.
    """
    target = F.layer_norm(teacher.detach().movedim(1, -1), teacher.shape[1:2])
    return 0.5 * (student.movedim(1, -1) - target).square().mean()


def token_hint(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The same of token states [b,N,C] twice and bool mask [b,N]: the mean of a caption's tokens, then of captions."""
    target = F.layer_norm(teacher.detach(), teacher.shape[-1:])
    error = (student - target).square().mean(-1)
    weights = mask.to(error.dtype)
    return 0.5 * ((error * weights).sum(1) / weights.sum(1).clamp_min(1)).mean()
