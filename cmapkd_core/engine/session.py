"""What surrounds the steps of a stage: history, journal, progress line, checkpoints, stopping."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from cmapkd_core import parallel
from cmapkd_core.config import RuntimeConfig
from cmapkd_core.engine.checkpoint import Checkpoints, NotFinite, Saved, Snapshot
from cmapkd_core.engine.hang import Watchdog
from cmapkd_core.engine.optim import Optimiser
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.runtime import StopRequest, random_state, restore_random_state
from cmapkd_core.engine.saving import Costs, Saver
from cmapkd_core.engine.transfer import StepReport
from cmapkd_core.engine.watch import Watch
from cmapkd_core.errors import Diverged, InputError, Interrupted
from cmapkd_core.progress import Say, State, clock
from cmapkd_core.tracking import Tracker

log = logging.getLogger(__name__)
PARTS = READ, FORWARD, BACKWARD, AFTER = "reading its batch", "in the forward pass", "in the backward pass", "after it"
ELSE = (  # what can be done where training goes wrong at the same step each time
    "If it stops there again: lower the learning rates, look at the samples, or try optim.precision=fp32 or "
    "optim.rollbacks=1, which goes on with another order of the batches"
)


@dataclass
class Session:
    """One execution of a stage's phases on one rank; rank 0 writes and talks.

    A checkpoint is written while training goes on; leaving the `with` block of a session waits for the last one.

    Tensors of the module whose names begin with `unsaved` ("" for none) are in no checkpoint, and stay as they are when
    another run goes on from one.
    """

    stage: str
    plans: list[PhasePlan]
    checkpoints: Checkpoints
    tracker: Tracker
    say: Say
    runtime: RuntimeConfig
    stop: StopRequest
    unsaved: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)  # corrupt pairs by key, with the reason
    saved: Saved | None = None
    earlier_seconds: float = 0.0  # of the attempts that it goes on from, up to their checkpoints
    now: Callable[[], float] = time.monotonic  # by which checkpoints are due; rank 0's counts
    rollbacks: int = 0  # times that the stage went back to a checkpoint for another order of the batches
    watch: Watch = field(default_factory=Watch)
    watchdog: Watchdog = field(init=False)
    _clock: tuple[int, float] = (0, 0.0)
    _from: int = 0  # the step that this attempt's phase begins after
    _postponed: bool = False  # a checkpoint was due after a bad update

    def __post_init__(self) -> None:
        self._saver = Saver(self.checkpoints, self.runtime.checkpoint_minutes, self.now)
        self.watchdog = Watchdog(self.stage, self.runtime.hang_minutes)
        self._began = time.monotonic()
        # Rank 0 chooses for all: what the ranks see and can read may differ, and their optimisers would then too.
        self.saved = self.checkpoints.latest() if parallel.rank() == 0 else None
        name = parallel.broadcast(self.saved.name if self.saved else "")
        if name and parallel.rank() > 0:
            self.saved = self.checkpoints.load(name)
        # A killed process leaves a journal with holes, or another attempt's: the history knows what counts.
        self.tracker.rewind(0)
        if self.saved:
            self.history = self.saved.state["history"]
            self.replaced = dict(self.saved.state["replaced"])
            self.earlier_seconds = self.saved.state.get("seconds", 0.0)
            self._saver.go_on_from(self.saved.state.get("checkpoints", {}))
            self.watch.load(self.saved.state.get("watch", {}))
            self.rollbacks = max(self.rollbacks, self.saved.state.get("rolled", 0))
            plan = self.plans[self.saved.phase]
            self.say(f"{self.stage}: going on from the checkpoint at phase {plan.name}, step {self.saved.step}\n")
            for point in self.history:
                self.tracker.log(_flat(point), point["step"])
            for metrics, step in self.watch.events():
                self.tracker.log(metrics, step)

    def __enter__(self) -> Session:
        self.watchdog.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end(error)
        finally:
            self.watchdog.__exit__(kind, error, trace)

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self.settle()
        elif failure := self._saver.wait():  # no word to the other ranks, which may not be listening
            log.warning("the last checkpoint could not be written: %s", failure)
        self._saver.end()
        if self.costs.number:
            self.say(f"{self.stage}: {self.costs}\n")

    @property
    def costs(self) -> Costs:
        """What the checkpoints took so far, on rank 0."""
        return self._saver.costs

    @property
    def seconds(self) -> float:
        """What the stage took so far, with the attempts that it goes on from."""
        return self.earlier_seconds + time.monotonic() - self._began

    def total(self, plan: PhasePlan, step: int) -> int:
        """A step of a phase, counted from the stage's first."""
        return sum(earlier.steps for earlier in self.plans[: plan.index]) + step

    def at(self, plan: PhasePlan, step: int, part: str) -> None:
        """For the watchdog: this rank is in a part (of PARTS) of a step, counted from 1 in its phase."""
        first = step <= self._from + 1
        self.watchdog.at(f"phase {plan.name}, step {step}, {part}", plan.index, step, PARTS.index(part), first=first)

    def finished(self, plan: PhasePlan) -> bool:
        """True for a phase that the checkpoint has left behind; its effect is in the weights."""
        return self.saved is not None and self.saved.phase > plan.index

    def resume(self, plan: PhasePlan, module: nn.Module, optimiser: Optimiser) -> int:
        """Load the checkpoint where it belongs to this phase; returns the step to go on from."""
        self._clock, self._from = (0, time.monotonic()), 0
        if self.saved is None or self.saved.phase != plan.index:
            self.watch.begin()
            return 0
        saved = self.saved
        _, own = self._split(module.state_dict())
        kept, _ = self._split(saved.tensors["weights.safetensors"])
        module.load_state_dict(kept | own)
        optimiser.load(saved.tensors["optimiser.safetensors"], saved.state["optimiser"])
        rank = f"{parallel.rank()}."
        states = {k[len(rank) :]: v for k, v in saved.tensors["random.safetensors"].items() if k.startswith(rank)}
        if states:  # a larger world than the one that saved: the new ranks keep their fresh streams
            restore_random_state(states, saved.state["random"][parallel.rank()])
        self._clock, self._from = (saved.step, time.monotonic()), saved.step
        return saved.step

    def save(self, plan: PhasePlan, step: int, module: nn.Module, optimiser: Optimiser) -> None:
        """Begin a checkpoint after `step` steps of the phase; it waits for a copy in memory and for the one before.

        Raises:
            As `settle`, for the one before.
        """
        self.settle()
        with self._saver.holding_up():
            self._take(plan, step, module, optimiser)

    def _take(self, plan: PhasePlan, step: int, module: nn.Module, optimiser: Optimiser) -> None:
        spent = self._saver.taken()
        everyone = parallel.all_objects(random_state())
        self.share_replaced()
        if parallel.rank() == 0:
            moments, optimiser_state = optimiser.state()
            tensors = {
                "weights.safetensors": self._split(module.state_dict())[0],
                "optimiser.safetensors": moments,
                "random.safetensors": {
                    f"{r}.{k}": v for r, (numbers, _) in enumerate(everyone) for k, v in numbers.items()
                },
            }
            state: dict[str, Any] = {"optimiser": optimiser_state, "random": [plain for _, plain in everyone]}
            state |= {"history": self.history, "replaced": self.replaced, "seconds": self.seconds}
            state |= {"checkpoints": self._saver.state(), "watch": self.watch.state(), "rolled": self.rollbacks}
            self._saver.begin(Snapshot.take(plan.index, step, tensors, state, spent))

    def settle(self) -> None:
        """Wait, on all ranks, until the last checkpoint is complete.

        Raises:
            InputError: it could not be stored; on rank 0 what writing it raised, of whatever kind.
            Diverged: on all ranks, where it would hold a NaN or an Inf.
            RuntimeError: on another rank, where rank 0 has an error of another kind.
        """
        with self._saver.holding_up():
            with self.watchdog.busy("the checkpoint before, which is being written"):
                failure = self._saver.wait()
            kind = next((kind for kind in (InputError, NotFinite) if isinstance(failure, kind)), RuntimeError)
            shared = parallel.broadcast((kind, str(failure)) if failure else None)
        if shared and shared[0] is NotFinite:
            raise Diverged(f"{self.stage}: not finite, so not saved: {shared[1]}. {self.way_on()}. {ELSE}")
        if failure:
            raise failure
        if shared:
            kind, text = shared
            raise kind(f"rank 0 could not write a checkpoint: {text}")

    def _split(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What belongs into a checkpoint, and what is `unsaved`: tensors of any shape [..], by name."""
        own = {k: v for k, v in state.items() if self.unsaved and k.startswith(self.unsaved)}
        return {k: v for k, v in state.items() if k not in own}, own

    def share_replaced(self) -> None:
        """Corrupt pairs that one rank met become known to all."""
        self.replaced = {
            key: reason for replaced in parallel.all_objects(self.replaced) for key, reason in replaced.items()
        }

    def way_on(self) -> str:
        """Asked on all ranks where a stage stops: what the same command goes on from. Waits for a write under way."""
        with self.watchdog.busy("the checkpoint before, which is being written"):
            failure = self._saver.wait()
        if failure:
            log.warning("the last checkpoint could not be written: %s", failure)
        good: tuple[int, int] | None = parallel.broadcast(self.checkpoints.good)
        if good is None:
            return "There is no checkpoint yet, so the same command begins again"
        phase, step = good
        return f"The same command goes on from the last good checkpoint, phase {self.plans[phase].name}, step {step}"

    def due(self, every: int, plan: PhasePlan, step: int) -> bool:
        """True at each `every` steps of a phase (0: none of them), and at its end."""
        return step == plan.steps or (every > 0 and step % every == 0)

    def flags(self) -> tuple[bool, bool]:
        """What `after` has to know of all ranks: (this one was asked to stop, a checkpoint is due).

        Clocks differ, and a save is all ranks' work: rank 0's clock decides.
        """
        return self.stop.flags(parallel.rank() == 0 and self._saver.due())

    def after(
        self,
        plan: PhasePlan,
        step: int,
        point: dict[str, Any],
        report: StepReport,
        module: nn.Module,
        optimiser: Optimiser,
    ) -> None:
        """Log, save and stop as due after `step` steps of the phase.

        Raises:
            Interrupted: SIGTERM came on some rank; the state is saved.
            As `settle`, for a checkpoint that could not be written.
        """
        if self.due(self.runtime.log_every, plan, step):
            # Terms that see local pairs alone (intra) differ over the ranks: the log has what one process would.
            self._report(plan, step, point | {"stats": report.stats})
        due = self._postponed or report.stopping or report.saving
        # The last good one stays the last until an update is taken again.
        if due or self.due(self.runtime.checkpoint_every, plan, step):
            self._postponed = not self.watch.trusts(plan.optim)
            if not self._postponed:
                self.save(plan, step, module, optimiser)
        if report.stopping:
            self.settle()
            if self._postponed:
                where = f"phase {plan.name}, step {step}, after a bad update, which is not saved"
                raise Interrupted(f"{self.stage} was asked to stop at {where}. {self.way_on()}")
            raise Interrupted(f"{self.stage} was asked to stop; saved at phase {plan.name}, step {step}")

    def _report(self, plan: PhasePlan, step: int, point: dict[str, Any]) -> None:
        numbers = (*point["terms"].values(), point["gradient_norm"])
        if not all(map(math.isfinite, numbers)):  # no point of a curve: the table of skipped updates has it
            return
        since, then = self._clock
        now = time.monotonic()
        since = since if since < step else step - 1
        speed = (step - since) * plan.batch / max(now - then, 1e-9)
        self._clock = (step, now)
        epoch = (step - 1) // plan.steps_per_epoch + 1
        total = self.total(plan, step)
        point = {"step": total, "phase": plan.name, "epoch": epoch, "samples_per_second": speed, **point}
        self.history.append(point)
        self.tracker.log(_flat(point), total)
        whole = sum(p.steps * p.batch for p in self.plans)
        left = sum(p.steps * p.batch for p in self.plans[plan.index :]) - step * plan.batch
        loss = sum(point["weighted"].values())
        text = (
            f"{self.stage} {plan.name}: epoch {epoch}/{plan.phase.epochs}  step {step}/{plan.steps}  "
            f"loss {loss:.4f}  {speed:.0f} samples/s  ETA {clock(left / max(speed, 1e-9))}"
        )
        self.say(State.of(text, 1 - left / whole))


def _flat(point: dict[str, Any]) -> dict[str, float]:
    """`{"terms": {"intra": 1}}` as `{"terms/intra": 1}`: the journal's and MLflow's metric names."""
    flat: dict[str, float] = {}
    for name, value in point.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{inner}": float(number) for inner, number in value.items()}
        elif isinstance(value, int | float) and name != "step":
            flat[name] = float(value)
    return flat
