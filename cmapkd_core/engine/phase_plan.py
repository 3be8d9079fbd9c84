"""One phase of a stage as the loop runs it: its length, the weights of its terms, its optimiser's settings."""

from __future__ import annotations

from dataclasses import dataclass

from cmapkd_core.config import OptimConfig, Phase, Schedule
from cmapkd_core.errors import InputError


@dataclass(frozen=True)
class PhasePlan:
    """One phase of a stage, ready to run. steps: micro-batches; weights: of the terms in the total."""

    index: int
    name: str
    phase: Phase
    steps_per_epoch: int
    weights: dict[str, float]
    optim: OptimConfig
    batch: int  # pairs a micro-batch, over all ranks

    @property
    def steps(self) -> int:
        """All epochs, cut to whole updates."""
        steps = self.phase.epochs * self.steps_per_epoch
        return steps - steps % self.optim.accumulate

    @property
    def updates(self) -> int:
        """Of all its steps."""
        return self.steps // self.optim.accumulate

    def require_updates(self) -> None:
        """Raises InputError where the phase is too short for one whole update."""
        if not self.steps:
            batches = self.phase.epochs * self.steps_per_epoch
            of = "schedule" if hasattr(Schedule(), self.name) else "teacher_fit"
            raise InputError(
                f"phase {self.name} would train nothing: one update takes optim.accumulate={self.optim.accumulate} "
                f"micro-batches and the phase has {batches}; lower optim.accumulate or raise {of}.{self.name}.epochs"
            )
