"""Level weights from the gradient on validation pairs: the bound of what a greedy selector could win.

It cheats on purpose, and no student that it trained is a result: it is told at every update what would lower the task's
loss on pairs that are held out (split val, never test). Whoever chooses levels by what the next update does, and knows
less, can win no more than it does.

s[b,i] = <grad d_i(pair b), v>   where v is the update that AdamW would make of the gradient of the task on val.
A small step down on level i of pair b lowers the loss on val by so much, to first order. With z = s less its mean over
a pair's active levels, over its root mean square in the batch, w[b] = softmax(z / tau), as unequal as random weights.

All s of a batch are one directional derivative, taken as a central difference: two passes forward. In fp32, with batch
norms as at inference, since they mix pairs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cmapkd_core import parallel
from cmapkd_core.config import TEXT_LEVELS, VISION_LEVELS, SelectorConfig
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.streamed import info_nce
from cmapkd_core.methods.base import Method, Rows, gathered
from cmapkd_core.methods.cmapkd import Cmapkd
from cmapkd_core.models.selector import Selector, restrict

# How far the student's parameters are moved each way: so much of their norm. Further bends, less far rounds.
REACH = 3e-5


class Oracle(Selector):
    """Whom joint training gives validation pairs, and the engine AdamW's moments."""

    def __init__(self, image_width: int, text_width: int, config: SelectorConfig) -> None:
        super().__init__(image_width, text_width, config)
        self.tau = config.tau
        self._as_step: Callable[[nn.Parameter, Tensor], Tensor] = lambda parameter, gradient: gradient
        self._scores: Tensor | None = None  # [b,8] of the pairs that were looked at last

    def optimised_by(self, as_step: Callable[[nn.Parameter, Tensor], Tensor]) -> None:
        """What the student's optimiser makes of a gradient [..] of a parameter."""
        self._as_step = as_step

    def forward(self, image: Tensor, text: Tensor, levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Equal weights [B,4]: of embeddings alone it knows nothing."""
        even = image.new_zeros(len(image), len(VISION_LEVELS))
        return restrict(even, VISION_LEVELS, levels), restrict(even, TEXT_LEVELS, levels)

    def look(self, method: Cmapkd, rows: Rows, step: int, levels: tuple[str, ...]) -> None:
        """Score the levels of the b pairs of a batch."""
        assert self.pairs is not None, "stage joint gives the pairs (catalog.SELECTORS: validates)"
        with as_at_inference(method):
            direction = toward_lower_loss(method, self.pairs(step), self._as_step)
            self._scores = slopes(method, rows, direction, levels)

    def choose(self, image: Tensor, text: Tensor, levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """The weights [b,4] of the pairs that were looked at; equal ones before the first look."""
        if self._scores is None:
            return self.forward(image, text, levels)
        s_v, s_l = self._scores.split(4, dim=1)
        return self._weights(s_v, VISION_LEVELS, levels), self._weights(s_l, TEXT_LEVELS, levels)

    def _weights(self, scores: Tensor, known: tuple[str, ...], levels: tuple[str, ...]) -> Tensor:
        active = [i for i, name in enumerate(known) if name in levels]
        z = scores - torch.stack([scores[:, i] for i in active]).mean(0)[:, None]
        (whole,) = gathered(torch.stack([z[:, i] for i in active], dim=1))
        return restrict(z / (self.tau * whole.square().mean().sqrt().clamp_min(1e-20)), known, levels)


def toward_lower_loss(
    method: Method, pairs: Batch, as_step: Callable[[nn.Parameter, Tensor], Tensor]
) -> dict[str, Tensor]:
    """What an update takes from the student's trained parameters, by name, to lower the task's loss on b pairs.

    The same on all ranks, of which each has pairs of its own.
    """
    student = {name: p for name, p in method.student.named_parameters() if p.requires_grad}
    if not student:
        return {}
    with torch.enable_grad():
        vision, text = method.towers(pairs)
        loss = info_nce(method.logits(*gathered(vision.embedding, text.embedding)))
        gradients = torch.autograd.grad(loss, list(student.values()), allow_unused=True)
    given = [torch.zeros_like(p) if g is None else g for p, g in zip(student.values(), gradients, strict=True)]
    flat = parallel.averaged(torch.cat([g.flatten() for g in given]))
    parts = flat.split([g.numel() for g in given])
    return {name: as_step(p, part.view_as(p)) for (name, p), part in zip(student.items(), parts, strict=True)}


@torch.no_grad()
def slopes(method: Cmapkd, rows: Rows, direction: dict[str, Tensor], levels: tuple[str, ...]) -> Tensor:
    """Derivatives of the levels' distances of b pairs along a direction of the student's parameters, [b,8]."""
    student = {name: p for name, p in method.student.named_parameters() if name in direction}
    step = REACH * _norm(student) / _norm(direction).clamp_min(1e-12)  # not asked whether it is 0: nothing waits
    distances = _Distances(method)

    def moved(by: Tensor) -> Tensor:
        instead = {f"of.student.{name}": p + by * direction[name] for name, p in student.items()}
        result: Tensor = functional_call(distances, instead, (rows, levels))
        return result

    return (moved(step) - moved(-step)) / (2 * step).clamp_min(1e-20)


def _norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """Of all tensors [..] together, a scalar."""
    norms = [x.detach().float().norm() for x in tensors.values()]
    whole: Tensor = torch.stack(norms or [torch.zeros((), device=parallel.device())]).norm()
    return whole


class _Distances(nn.Module):
    """The levels' distances as a function of the parameters, which are replaced from outside."""

    def __init__(self, method: Cmapkd) -> None:
        super().__init__()
        self.of = method

    def forward(self, rows: Rows, levels: tuple[str, ...]) -> Tensor:
        """Of the b pairs, [b,8]."""
        return torch.cat([self.of.distances(batch, targets, levels) for batch, targets in rows.given])


@contextlib.contextmanager
def as_at_inference(method: Method) -> Iterator[None]:
    """Inside, a method is in fp32, its batch norms and dropout as at inference."""
    trained, amp = [module for module in method.modules() if module.training], method.amp
    method.eval()
    method.amp = None
    try:
        yield
    finally:
        method.amp = amp
        for module in trained:
            module.training = True
