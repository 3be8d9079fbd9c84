"""The phases of a stage in order: resumed from a checkpoint, rolled back where they diverge, stopped by SIGTERM."""

from __future__ import annotations

import json
from collections.abc import Callable

from cmapkd_core import parallel
from cmapkd_core.engine.checkpoint import Checkpoints
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.runtime import StopRequest, seed_everything
from cmapkd_core.engine.session import Session
from cmapkd_core.errors import Diverged, Interrupted
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import unsaved

SKIPPED = "skipped_updates.jsonl"
RunPhase = Callable[[PhasePlan, Session], None]


def run_phases(context: Context, stage: str, plans: list[PhasePlan], run: RunPhase, seed: int) -> Session:
    """Run the phases of a stage in order: `run(plan, session)` for each that no checkpoint has left behind.

    What diverges goes back to its last good checkpoint as often as the recipe allows, as a new attempt would, and on
    with another order of the batches.

    Raises:
        Diverged: once more than that.
    """
    stop = StopRequest().listen()
    try:
        session = _session(context, stage, plans, stop, seed)
        context.earlier_seconds = session.earlier_seconds
        while True:
            try:
                _run_in_order(session, run)
                break
            except Diverged as error:
                if session.rollbacks >= context.recipe.optim.rollbacks:
                    raise
                context.say(f"{error}\n{stage}: goes back, and on with another order of the batches\n")
                rollbacks, seconds = session.rollbacks + 1, session.seconds
            session = _session(context, stage, plans, stop, seed, rollbacks)
            session.earlier_seconds = seconds
    finally:
        stop.release()
    if stop.anywhere():
        raise Interrupted(f"{stage} was asked to stop after its last step; everything is saved")
    return session


def _session(
    context: Context, stage: str, plans: list[PhasePlan], stop: StopRequest, seed: int, rollbacks: int = 0
) -> Session:
    seed_everything(seed, rank=parallel.rank())
    return Session(
        stage=stage,
        plans=plans,
        checkpoints=Checkpoints(context.workdir, context.scratch, context.identity),
        tracker=context.tracker,
        say=context.say,
        runtime=context.recipe.runtime,
        stop=stop,
        unsaved=unsaved(stage),
        rollbacks=rollbacks,
    )


def _run_in_order(session: Session, run: RunPhase) -> None:
    with session:
        for plan in session.plans:
            if not session.finished(plan):
                require_no_stop(plan, session)
                run(plan, session)
        session.share_replaced()


def require_no_stop(plan: PhasePlan, session: Session) -> None:
    """Called by all ranks at the same place before a phase's first step, and between batches of what precedes it.

    Raises:
        Interrupted: on all of them, where one was asked to stop.
    """
    if parallel.any_rank(session.stop.asked):
        raise Interrupted(f"{session.stage} was asked to stop before phase {plan.name}. {session.way_on()}")


def write_skipped(context: Context, session: Session) -> None:
    """The table of the updates that a stage skipped, as a file of its artifact and in MLflow; none where none was."""
    if rows := session.watch.memory.skipped:
        path = context.out / SKIPPED
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        context.tracker.artifact(path)
