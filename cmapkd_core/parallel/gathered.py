"""Rows of all ranks with their gradient: the one collective that torch's autograd has to know."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cmapkd_core import parallel


class _Gather(torch.autograd.Function):
    """Concatenate over ranks; the backward sums each rank's gradient for its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """[b,..] -> [B,..]: the rows of all ranks."""
        parts = [torch.empty_like(x) for _ in range(parallel.world())]
        with parallel.together():
            dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """[B,..] -> [b,..]: this rank's rows of the sum over ranks."""
        grad = grad.contiguous()
        with parallel.together():
            dist.all_reduce(grad)
        return grad[parallel.rank() * ctx.rows : (parallel.rank() + 1) * ctx.rows]


def gather(x: Tensor) -> Tensor:
    """See `parallel.gather`; there are several ranks."""
    rows: Tensor = _Gather.apply(x)
    return rows
