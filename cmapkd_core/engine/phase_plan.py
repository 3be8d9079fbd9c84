"""One phase of a stage as the loop runs it: its length, the weights of its terms, its optimiser's settings."""

from __future__ import annotations

from dataclasses import dataclass

from cmapkd_core.config import OptimConfig, Phase


@dataclass(frozen=True)
class PhasePlan:
    """One phase of a stage, ready to run. weights: of the terms in the total."""

    index: int
    name: str
    phase: Phase
    steps_per_epoch: int
    weights: dict[str, float]
    optim: OptimConfig
    batch: int  # pairs a step, over all ranks

    @property
    def steps(self) -> int:
        """Of all epochs; each is an update."""
        return self.phase.epochs * self.steps_per_epoch
