"""Gradient checkpointing (Chen et al. 2016): a block keeps its input, and runs again when its gradient is asked for.

Around a block's own forward and below the hooks on it, so that taps are made outside, once, and gradients with respect
to them exist as ever. open_clip's, timm's and transformers' own switches differ in that, and in what they leave out;
none of them keeps batch norms from counting a batch twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, a forward of these blocks keeps no activations of theirs; where nothing asks for gradients, as ever."""
    before = {block: vars(block).get("forward") for block in blocks} if torch.is_grad_enabled() else {}
    for block in before:
        contexts = partial(_contexts, block)
        # In the module's own table: nn.Module's setattr would ask what kind of thing a forward is.
        vars(block)["forward"] = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    try:
        yield
    finally:
        for block, forward in before.items():
            if forward is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = forward


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first forward, and around each one for a gradient."""
    return nullcontext(), _Counted(block)


class _Counted(AbstractContextManager[None]):
    """Inside, batch norms leave their running statistics alone: those of this batch are in them already."""

    def __init__(self, block: nn.Module) -> None:
        self._norms: list[Any] = [module for module in block.modules() if isinstance(module, _BatchNorm)]
        self._before: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._before = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        for norm in self._norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self._norms, self._before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
