"""Rank agreement and the non-target classes: what C2KD distils (Huo et al., CVPR 2024).

Shapes: B rows (samples), C classes; the class of row k is k where the classes are the batch itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**22  # signs held at once


def kendall_tau(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's tau-a of each row of a with the same row of b, [B,C] twice -> [B] in [-1, 1].

    tau = mean over pairs i != j of sign(a_i - a_j) sign(b_i - b_j), on the device and some rows at a time. The release
    calls scipy's tau-b: the same where no two values of a row are equal, and of the same sign everywhere.
    """
    a, b, classes = a.detach(), b.detach(), a.shape[1]
    rows = max(1, CHUNK // classes**2)
    sums = []
    for x, y in zip(a.split(rows), b.split(rows), strict=True):
        signs = (x[:, :, None] - x[:, None, :]).sign() * (y[:, :, None] - y[:, None, :]).sign()
        sums.append(signs.sum(dim=(1, 2)))
    return torch.cat(sums) / max(1, classes * (classes - 1))


def row_divergence(target: Tensor, guess: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(guess)) of each row, [B,C] twice -> [B]; the target gets no gradient."""
    wanted = target.detach().log_softmax(-1)
    return (wanted.exp() * (wanted - guess.log_softmax(-1))).sum(-1)


def non_target(target: Tensor, guess: Tensor, kept: Tensor) -> Tensor:
    """NT(guess <- target), [B,B] twice -> scalar.

    1/B sum_k kept_k KL(softmax(target_k . not y_k) || softmax(guess_k . not y_k)). As released: the own
    class's logit is set to 0 and stays a class, and the mean is over B, not over the kept rows.

    Args:
        kept: bool or 0/1, [B].
    """
    others = 1 - torch.eye(len(guess), device=guess.device)
    return (kept.to(guess.dtype) * row_divergence(target * others, guess * others)).mean()
