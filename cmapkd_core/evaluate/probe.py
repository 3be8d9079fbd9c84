"""Training of a probe on frozen towers: the same number of updates for every model, whatever the model says.

What vqa and captioning share: AdamW under a rate that rises and falls with the share of the work that is done,
clipping, the end at what is not finite, seeds, and the line for the person who watches. A probe skips no update and
stops at no early point: it is the same for every model, or no comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from cmapkd_core.errors import Diverged
from cmapkd_core.progress import Progress, Say

WARMUP = 0.05  # share of the work with a rising learning rate
CLIP = 1.0
Losses = Callable[[int], Iterable[tuple[Tensor, int]]]  # epoch from 1 -> a batch's mean loss and its examples


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is trained; epochs and lr come from evaluate.NAME, the others are the task's own."""

    name: str
    epochs: int
    lr: float
    examples: int  # an epoch
    unit: str
    betas: tuple[float, float]
    decay: float
    rate: Callable[[int, int], float]  # (examples, updates) done before an update -> share of the learning rate


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Weights and dropout follow from the seed; the process's random state stays as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def fit(
    module: nn.Module,
    training: ProbeSettings,
    losses: Losses,
    say: Say,
    after: Callable[[], dict[str, float]] = dict,
) -> list[dict[str, float]]:
    """Train `module` for the epochs of `training`.

    Args:
        losses: gives an epoch's batches, each when the one before it has been learned.
        after: numbers to keep of each epoch beside its loss; they decide nothing.

    Returns:
        One row an epoch: epoch, loss (mean over the examples), and what `after` gave.

    Raises:
        Diverged: a loss or a gradient that is NaN or Inf.
    """
    optimiser = torch.optim.AdamW(module.parameters(), training.lr, training.betas, weight_decay=training.decay)
    progress = Progress(say, training.name, training.epochs * training.examples, training.unit)
    examples = updates = 0
    history = []
    for epoch in range(1, training.epochs + 1):
        total = 0.0
        module.train()
        for loss, count in losses(epoch):
            for group in optimiser.param_groups:
                group["lr"] = training.lr * training.rate(examples, updates)
            value = _update(module, optimiser, loss, training.name, epoch)
            total, examples, updates = total + value * count, examples + count, updates + 1
            progress(examples, f"epoch {epoch}/{training.epochs}  loss {value:.4f}")
        history.append({"epoch": float(epoch), "loss": total / training.examples, **after()})
    return history


def _update(module: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, name: str, epoch: int) -> float:
    """Take one update for a scalar loss; its value."""
    optimiser.zero_grad()
    loss.backward()
    norm = clip_grad_norm_(module.parameters(), CLIP)
    value, length = torch.stack([loss.detach(), norm]).tolist()
    if not math.isfinite(value + length):
        raise Diverged(
            f"{name}: in epoch {epoch} the probe's loss is {value} and the norm of its gradient {length}: lower "
            f"evaluate.{name}.lr, or look at the model's own training"
        )
    optimiser.step()
    return float(value)


def risen_cosine(done: int, total: int) -> float:
    """Half a cosine over all of the work, times a linear rise over its first WARMUP."""
    rise = min(1.0, (done + 1) / max(1, round(WARMUP * total)))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, done / total)))


def rise_then_cosine(done: int, total: int) -> float:
    """A linear rise over the first WARMUP of the work, from a tenth of that; then half a cosine over the rest."""
    share = done / total
    if share < WARMUP:
        return (share + 0.1 * WARMUP) / (1.1 * WARMUP)
    return 0.5 * (1 + math.cos(math.pi * (share - WARMUP) / (1 - WARMUP)))
