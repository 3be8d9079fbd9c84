"""What ALSN learns from: the utility of each level for a sample (docs/decisions/0003).

Shapes: B samples, K levels of one modality.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def utilities(distance: Tensor, goal: Tensor, root: Tensor, scale: float = 1.0) -> Tensor:
    """u[b,i] = cosine of the gradients of level i's distance and of the goal at a sample's features, [B,K].

    Args:
        distance: [B,K], attached to the graph; a level that is not active has gradient 0 and utility 0.
        goal: scalar loss of the same batch; its scale is without effect.
        root: [B,...], the features that both were computed from (the first tapped block's output); where the
            towers are frozen no level can be of use to them, and every utility is 0.
        scale: factor of the goal before its gradient is taken, for towers in fp16, which round a mean over a batch to
            0 on the way back. A distance is a sample's own and larger: it gets the root. A power of four changes
            no other bit. Where a gradient is not finite at this scale, neither are that sample's utilities.
    """
    if not root.requires_grad:
        return torch.zeros_like(distance)
    (toward,) = torch.autograd.grad(scale * goal, root, retain_graph=True)
    columns = []
    for i in range(distance.shape[1]):
        pulled = scale**0.5 * distance[:, i].sum()
        (pull,) = torch.autograd.grad(pulled, root, retain_graph=True, allow_unused=True)
        pull = torch.zeros_like(root) if pull is None else pull
        columns.append(F.cosine_similarity(pull.flatten(1).float(), toward.flatten(1).float(), dim=1, eps=1e-20))
    return torch.stack(columns, dim=1)


def policy(weights: Tensor, target: Tensor, uniform: float) -> Tensor:
    """KL(q || w) + uniform * KL(w || 1/K), mean over the batch, [B,K] twice -> scalar.

    q = softmax(u / tau_u) over the active levels; levels that are not active are 0 in both.
    The second part keeps weights from going to one level, in the ALSN stage and in joint training.
    """
    log_w = weights.clamp_min(1e-12).log()
    towards = (target * (target.clamp_min(1e-12).log() - log_w)).sum(1)
    active = (weights > 0).sum(1).to(weights.dtype)
    spread = (weights * log_w).sum(1) + active.log()
    return (towards + uniform * spread).mean()


def easiest(weights: Tensor, distance: Tensor, bonus: float) -> Tensor:
    """sum_i w_i d_i - bonus * H(w), mean over the batch: the paper's objective as it is written (section 4.3).

    Its optimum is softmax(-d / bonus), the easiest level; kept to compare with. [B,K] twice -> scalar.
    """
    return (weights * distance.detach()).sum(1).mean() - bonus * entropy(weights)


def entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the samples' weights in nats, [B,K] -> scalar; log K when uniform."""
    return -(weights * weights.clamp_min(1e-12).log()).sum(1).mean()
