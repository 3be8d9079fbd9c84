"""What becomes of each update: taken, skipped and reported, or the end of the stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cmapkd_core.engine.finite import shortened
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.session import ELSE, Session
from cmapkd_core.engine.transfer import StepReport
from cmapkd_core.errors import Diverged

_STEPS, _SAMPLES = 24, 8  # that a message names
_SPIKES = 3  # that are said one by one; small data near a loss of 0 has one in every few steps


def judge(session: Session, plan: PhasePlan, step: int, report: StepReport, scale: Callable[[], float]) -> bool:
    """True where the update of `step` is to be taken, on all ranks alike; one that is not is reported.

    Args:
        scale: as `Watch.judge` takes it.
    """
    watch, optim = session.watch, plan.optim
    verdict = watch.judge(report.norm, optim, scale, all(map(math.isfinite, report.terms.values())))
    where, total = f"{session.stage} {plan.name}: step {step}", session.total(plan, step)
    if verdict.why:
        row = watch.skip(verdict, plan.name, step, total)
        count = len(watch.memory.skipped)
        session.tracker.log({"skipped_updates": count}, total)
        session.say(f"{where}: update skipped ({count} of at most {optim.max_skipped}): {_described(row)}\n")
    if median := watch.loss_spike(verdict.loss, optim.loss_spike, total):
        count = len(watch.memory.loss_spikes)
        session.tracker.log({"loss_spikes": count}, total)
        text = f"loss {verdict.loss:.4g}, more than {optim.loss_spike:g} times its median {median:.4g}"
        last = "; more of them are only counted, as the metric loss_spikes" if count == _SPIKES else ""
        if count <= _SPIKES:
            session.say(f"{where}: {text}{last}\n")
    watch.done()
    return not verdict.why


def require_sound(session: Session, plan: PhasePlan, step: int) -> None:
    """Stop a stage that only seems to train, on all ranks at the same step.

    Raises:
        Diverged: too many updates were skipped; or the loss stays far above its median, where that may roll back.
    """
    memory, optim, half = session.watch.memory, plan.optim, plan.steps // 2
    where, text = f"{session.stage}, phase {plan.name}, step {step}", ""
    if len(memory.skipped) > optim.max_skipped or memory.in_phase > half:
        many = len(memory.skipped) > optim.max_skipped
        bound = f"optim.max_skipped={optim.max_skipped}" if many else f"half of the phase's {plan.steps}"
        steps = shortened([f"{row['phase']} {row['phase_step']}" for row in memory.skipped], _STEPS)
        count = len(memory.skipped)
        text = (
            f"{count} update{'s were' if count > 1 else ' was'} skipped, more than {bound} (steps {steps}); the last: "
        )
        text += _described(memory.skipped[-1])
    elif optim.rollbacks and session.watch.diverged():
        text = f"the loss stays above {optim.loss_spike:g} times its running median"
    if text:
        raise Diverged(f"{where}: {text}. {session.way_on()}. {ELSE}")


def _described(row: dict[str, Any]) -> str:
    """Of a skipped update: why, and its samples."""
    keys, count = row["keys"][:_SAMPLES], row["samples"]
    samples = ", ".join(keys) + (f" and {count - len(keys)} more" if count > len(keys) else "")
    return f"{row['why']} on the batch {samples or '(rows of a table)'}"
