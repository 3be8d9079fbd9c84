"""Values that are not finite: found before they are stored, and undone where a batch leaves them in buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cmapkd_core.errors import Diverged

_SHOWN = 4


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with a NaN or an Inf; of any shape [..], of any dtype and on any device."""
    floats = {name: x.detach() for name, x in tensors.items() if x.is_floating_point() and x.numel()}
    # Extremes: no mask of each tensor's size, and a NaN anywhere is both of them. One transfer for all.
    extremes = [torch.stack(x.aminmax()).isfinite().all() for x in floats.values()]
    fine = torch.stack([x.to(extremes[0].device) for x in extremes]).tolist() if extremes else []
    return [name for name, good in zip(floats, fine, strict=True) if not good]


def shortened(names: list[str], most: int = _SHOWN) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises Diverged where a tensor [..] of `what`, which is to become an artifact, has a NaN or an Inf."""
    if bad := not_finite(tensors):
        raise Diverged(
            f"{what} is not finite ({shortened(bad)}), so no artifact is written. The same command goes on from the "
            "last good checkpoint; where it ends here again, lower the learning rates (schedule.PHASE.lr) or use "
            "optim.precision=fp32"
        )


class Buffers:
    """The buffers of a module as they were at the last `keep`: running statistics, remembered samples.

    A forward changes them whatever becomes of its gradient; an update that is skipped leaves nothing behind.
    """

    def __init__(self, module: nn.Module) -> None:
        self._live = [x for x in module.buffers() if x.numel()]
        self._kept = [x.detach().clone() for x in self._live]
        self._counting: list[Any] = [part for part in module.modules() if hasattr(part, "recount")]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember what they are now."""
        self._copy(self._live, self._kept)

    @torch.no_grad()
    def copy_back(self) -> None:
        """Make running statistics again what they were."""
        self._copy(self._kept, self._live)

    def restore(self) -> None:
        """Make all of them again what they were; a module that counts what its buffers hold has to `recount`."""
        self.copy_back()
        for module in self._counting:
            module.recount()

    def _copy(self, source: list[Tensor], target: list[Tensor]) -> None:
        """In place, pair by pair; tensors [..] of equal shapes."""
        if source:  # a batch norm has three, and one kernel each would take longer than the copies
            torch._foreach_copy_(target, source)
