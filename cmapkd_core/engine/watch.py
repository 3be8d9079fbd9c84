"""Which updates are taken: none with a gradient that is not finite or spikes; and whether the loss diverges.

Every rank comes to the same verdict at the same update: what it follows from is the ranks' mean (engine/transfer.py),
and its memory is in the checkpoints, so that a resumed run judges as one that was never stopped.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from cmapkd_core import parallel
from cmapkd_core.config import OptimConfig

WINDOW = 100  # updates that a running median is taken over
ENOUGH, ENOUGH_LOSSES = 4, 20  # before so many nothing is called a spike; a loss falls steeply at first
PATIENCE = 3  # updates in a row whose loss spikes are a divergence
KEYS = 1024  # of an update's samples that the table names at most


@dataclass(frozen=True)
class Verdict:
    """Of one update. norm, loss: of all ranks. why: it is skipped; "" is taken. overflow: the scaler skips it."""

    norm: float
    loss: float
    why: str = ""
    median: float = 0.0  # of the norms before it
    overflow: bool = False


@dataclass
class Memory:
    """What goes into a checkpoint."""

    skipped: list[dict[str, Any]] = field(default_factory=list)  # the table: one row for each skipped update
    in_phase: int = 0  # of them
    in_a_row: int = 0  # skipped up to now; 0 after an update that was taken
    high: int = 0  # updates in a row whose loss spiked
    loss_spikes: list[dict[str, float]] = field(default_factory=list)  # where it began to: step, loss, median
    overflows: int = 0  # that fp16's loss scaler found while it looked for its scale
    norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class Watch:
    """The judge of a stage's updates."""

    def __init__(self) -> None:
        self.memory = Memory()
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._new_update()

    def _new_update(self) -> None:
        self._loss, self._bad = 0.0, list[str]()
        self._keys: Iterable[str] = ()

    def begin(self) -> None:
        """A phase begins: another loss."""
        self._norms.clear()
        self._losses.clear()
        self.memory.in_phase = self.memory.high = 0

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; of checkpoints made before there was a watch, {}."""
        self.memory = Memory(**state)
        self._norms.extend(self.memory.norms)
        self._losses.extend(self.memory.losses)

    def state(self) -> dict[str, Any]:
        """For `load`: JSON."""
        return asdict(self.memory) | {"norms": list(self._norms), "losses": list(self._losses)}

    def metrics(self) -> dict[str, float]:
        """As a stage's metrics."""
        memory = self.memory
        counts = {"skipped_updates": len(memory.skipped), "loss_spikes": len(memory.loss_spikes)}
        return {name: float(value) for name, value in (counts | {"overflows": memory.overflows}).items()}

    def see(self, terms: dict[str, float], loss: float, keys: Iterable[str]) -> None:
        """The update under way: this rank's raw terms, all ranks' weighted sum; keys are read if it is skipped."""
        self._bad = [name for name, value in terms.items() if not math.isfinite(value)]
        self._loss, self._keys = loss, keys

    def judge(self, norm: float, optim: OptimConfig, scale: Callable[[], float], sound: bool = True) -> Verdict:
        """The verdict on the update that was seen; the same on all ranks.

        Args:
            norm: of the gradient before clipping, that of all ranks.
            scale: gives that of fp16's loss scaler; 1 where there is none.
            sound: every rank's terms are finite.
        """
        loss, median = self._loss, _median(self._norms, ENOUGH)
        why, overflow = "", False
        if self._bad or not sound:
            why = "a term of the loss is not finite"
        elif not math.isfinite(norm):
            overflow = scale() > 1.0  # a smaller scale mends it, and finding that out is what the scaler is there for
            why = "" if overflow else f"the norm of the gradient is {norm}"
        elif optim.gradient_spike and median and norm > max(optim.gradient_spike * median, optim.clip_norm):
            why = f"the norm of the gradient, {norm:.3g}, is {norm / median:.0f} times its running median {median:.3g}"
        if math.isfinite(norm):
            self._norms.append(norm)
        self.memory.overflows += overflow
        self.memory.in_a_row = self.memory.in_a_row + 1 if why else 0
        return Verdict(norm, loss, why, median, overflow)

    def loss_spike(self, loss: float, factor: float, total: int) -> float:
        """Where the loss begins to spike the running median that it spikes against, else 0; `factor` 0: it never does.

        `total`: the step, counted in the stage.

        A loss may be below 0 (an entropy's bonus), so what counts is how far above the median it is.
        """
        if not math.isfinite(loss):
            return 0.0
        median, memory = _median(self._losses, ENOUGH_LOSSES), self.memory
        high = bool(factor and median) and loss - median > (factor - 1) * abs(median)
        self._losses.append(loss)
        memory.high = memory.high + 1 if high else 0
        if memory.high != 1:
            return 0.0
        memory.loss_spikes.append({"step": total, "loss": loss, "median": median})
        return median

    def events(self) -> list[tuple[dict[str, float], int]]:
        """Metrics and step of everything so far, for a tracker that begins anew."""
        numbered = {"skipped_updates": self.memory.skipped, "loss_spikes": self.memory.loss_spikes}
        return [({name: n}, row["step"]) for name, rows in numbered.items() for n, row in enumerate(rows, start=1)]

    def trusts(self, optim: OptimConfig) -> bool:
        """False where weights may be what is wrong: the last update was skipped, or the loss is high and may revert."""
        return not self.memory.in_a_row and not (optim.rollbacks and self.memory.high)

    def diverged(self) -> bool:
        """True where the loss has spiked for several updates."""
        return self.memory.high >= PATIENCE

    def skip(self, verdict: Verdict, phase: str, step: int, total: int) -> dict[str, Any]:
        """Enter a skipped update into the table and return its row: all ranks' samples, or those whose terms are bad.

        Args:
            step: counted from 1 in the phase; total: the same, counted in the stage.
        """
        everyone = parallel.all_objects((self._bad, list(self._keys)))
        terms = list(dict.fromkeys(name for bad, _ in everyone for name in bad))
        keys = [key for bad, own in everyone for key in own if bad or not terms]
        why = f"{', '.join(terms)} of the loss is not finite" if terms else verdict.why
        row = {"step": total, "phase": phase, "phase_step": step, "why": why, "gradient_norm": _plain(verdict.norm)}
        row |= {"median_norm": verdict.median, "loss": _plain(verdict.loss), "samples": len(keys), "keys": keys[:KEYS]}
        self.memory.skipped.append(row)
        self.memory.in_phase += 1
        return row

    def done(self) -> None:
        """The update is taken or skipped; the next one begins."""
        self._new_update()


def _median(values: deque[float], enough: int) -> float:
    """0 where there are too few."""
    return statistics.median(values) if len(values) >= enough else 0.0


def _plain(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)
