"""Seeds, random states and the wish to stop: what makes a run repeatable and interruptible."""

from __future__ import annotations

import random
import signal
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmapkd_core import parallel


class StopRequest:
    """Remembers SIGTERM until the loop looks; the step under way is finished and saved first.

    That is for local runs and TrainJobs, which wait for it. A pod of Kubeflow Pipelines is gone a second after SIGTERM,
    saved or not: what that costs is bounded by the checkpoints by time.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = signal.SIG_DFL

    def listen(self) -> StopRequest:
        """Take over SIGTERM of this process."""
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def release(self) -> None:
        """Give SIGTERM back, once: outside the loop nobody looks, and a stop must not wait for nobody."""
        if signal.getsignal(signal.SIGTERM) == self._ask:  # a handler that has done its work stays as it left itself
            signal.signal(signal.SIGTERM, self._before if self._before is not None else signal.SIG_DFL)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def anywhere(self) -> bool:
        """True on all ranks at the same step once one of them was asked."""
        return parallel.any_rank(self.asked)

    def flags(self, due: bool) -> tuple[bool, bool]:
        """What this rank tells the others in each step: (it was asked to stop, a checkpoint is due)."""
        return self.asked, due


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch. Weights are drawn with rank 0 everywhere; dropout has a stream per rank."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed + 1_000_003 * rank)


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """This rank's generators as tensors, uint8 [n] each, and as plain values."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, state, following = random.getstate()
    plain = {
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "python": [version, list(state), following],
    }
    return tensors, plain


def restore_random_state(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """The inverse of `random_state`: uint8 [n] by generator, and plain values."""
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    kind, keys, position, has_gauss, gauss = plain["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, state, following = plain["python"]
    random.setstate((version, tuple(state), following))
