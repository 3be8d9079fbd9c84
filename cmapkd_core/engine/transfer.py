"""All that the host learns of a step, in one exchange between the ranks and one wait for the device.

Whether an update is taken is decided on the host, from numbers of the device: a second question would empty the
device's queue a second time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmapkd_core import parallel
from cmapkd_core.engine.passes import Made


@dataclass(frozen=True)
class StepReport:
    """Of one step.

    own: this rank's terms. terms, stats: all ranks' means, by name. shares: of this rank's gradient, by term.
    norm: of the gradient before clipping. stopping, saving: a rank was asked to stop, wants a checkpoint.
    """

    own: dict[str, float]
    terms: dict[str, float]
    stats: dict[str, float]
    shares: dict[str, float]
    norm: float
    stopping: bool
    saving: bool


def gather_report(made: Made, norm: Tensor, flags: tuple[bool, bool], stats: bool) -> StepReport:
    """What the device and the other ranks know, on all ranks at once.

    Args:
        norm: a scalar, the same on all ranks.
        flags: this rank's, of `stopping` and `saving`.
        stats: `made.stats` are wanted, on all ranks alike.
    """
    shared = {"terms": made.terms, "stats": made.stats if stats else {}}
    scalars = [norm, *(x for table in shared.values() for x in table.values())]
    numbers = torch.stack([x.detach().float() for x in scalars])
    # Filled in there: a copy of the host's numbers to the device would be waited for.
    mean = parallel.averaged(torch.cat((numbers, *(numbers.new_full((1,), float(flag)) for flag in flags))))
    local = [x.float() for table in (made.terms, made.norms) for x in table.values()]
    values = iter(torch.cat((mean, torch.stack(local))).tolist() if local else mean.tolist())
    overall = next(values)
    terms, means = ({name: next(values) for name in table} for table in shared.values())
    stopping, saving = (next(values) > 0 for _ in flags)
    own, norms = ({name: next(values) for name in table} for table in (made.terms, made.norms))
    return StepReport(own, terms, means, shares_of(norms), overall, stopping, saving)


def shares_of(norms: dict[str, float]) -> dict[str, float]:
    """Each term's share of the summed norms of the terms' gradients; none where one overflowed.

    A term that is off in effect shows as a share near 0. In fp16 one overflows in the scaler's first steps.
    """
    total = sum(norms.values())
    if not math.isfinite(total):
        return {}
    return {name: norm / total if total else 0.0 for name, norm in norms.items()}
