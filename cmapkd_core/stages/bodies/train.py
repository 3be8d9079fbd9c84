"""What stages warmup, alsn and joint do: train the phases, and write models, tables and curves."""

from __future__ import annotations

import json
import math
import shutil

from cmapkd_core import parallel
from cmapkd_core.config import ALL_LEVELS, STAGE_PHASES
from cmapkd_core.engine.finite import require_finite
from cmapkd_core.engine.matmul import matmul_precision
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.session import Session
from cmapkd_core.method_specs import METHODS
from cmapkd_core.models.build import save_model
from cmapkd_core.progress import Progress
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import METHOD_STATE, MODEL, STUDENT, save_method_state
from cmapkd_core.stages.phases import run_phases, write_skipped
from cmapkd_core.stages.statistics import SAMPLE_STATS, WEIGHTS, collect, level_weights, wrong_and_right
from cmapkd_core.stages.training import SETUPS, TrainingSetup


def body(context: Context, stage: str) -> dict[str, float]:
    """Train the stage's phases, or pass the model on where it has none; write the artifact."""
    with matmul_precision(context.recipe.optim.matmul_precision, parallel.device()):
        return _trained(context, stage)


def _trained(context: Context, stage: str) -> dict[str, float]:
    setup = SETUPS[stage].build(context, stage)
    plans = setup.phases()
    if not plans:
        context.say(f"{stage}: nothing to train for this recipe; the model is passed on\n")
    seed = context.recipe.seed * 100 + list(STAGE_PHASES).index(stage)
    session = run_phases(context, stage, plans, setup.run, seed)
    require_finite(setup.method.state_dict(), f"{stage}: what it trained")
    tables = write_tables(setup)
    if parallel.rank() == 0:
        write_models(setup)
        write_logs(context, session)
    return metrics(setup, plans, session) | tables


def write_tables(setup: TrainingSetup) -> dict[str, float]:
    """Sample statistics at the end of warm-up, carried on by the later stages with the selector's weights.

    Returns:
        how the selector weighs pairs with another's caption and the others, where it does and there are some.
    """
    context, stage, method = setup.context, setup.stage, setup.method
    if not METHODS[context.recipe.method.name].weighs_levels:
        return {}
    path = context.out / SAMPLE_STATS
    if stage == "warmup":
        context.say("warmup: measuring the levels of samples for the selector")
        # No update: the pairs that pass the towers together are a batch of their own.
        loader = setup.loader("alsn", ALL_LEVELS, context.recipe.optim.accumulate)
        steps = math.ceil(context.recipe.selector.measured * loader.steps_per_epoch)
        progress = Progress(context.say, "warmup: levels for the selector", steps, "batches")
        collect(method.to(parallel.device()), loader, setup.targets, progress, path, steps)
    elif not setup.has_sample_stats():
        context.say(f"{stage}: its init has no {SAMPLE_STATS}, so no table of the samples' levels is written\n")
    elif parallel.rank() == 0:
        shutil.copy(context.inputs["init"].fetch(SAMPLE_STATS), path)
        fit = method.policy_fit()
        if fit is not None:
            level_weights(fit, path, context.out / WEIGHTS)
            if numbers := wrong_and_right(context.out / WEIGHTS):
                context.say(f"{stage}: {in_words(numbers)}\n")
            return numbers
    return {}


def in_words(numbers: dict[str, float]) -> str:
    """What `statistics.wrong_and_right` found, in a line."""
    both = [
        [numbers.get(f"{kind}/entropy/{side}", math.nan) for kind in ("wrong", "right")] for side in ("vision", "text")
    ]
    pictures, captions = (f"{wrong:.3f} and {right:.3f}" for wrong, right in both)
    line = (
        f"{numbers['wrong/pairs']:.0f} pairs have another's caption (data.noise); mean entropy of the level weights of "
        f"them and of the others, in nats: pictures {pictures}, captions {captions}"
    )
    areas = {name: numbers[f"wrong/auc/{name}"] for name in ALL_LEVELS if f"wrong/auc/{name}" in numbers}
    if not areas:
        return line
    best = max(areas, key=lambda name: abs(areas[name] - 0.5))
    return f"{line}; the weight of {best} tells them apart best, area under the ROC curve {areas[best]:.2f} (0.5: not)"


def write_models(setup: TrainingSetup) -> None:
    """The model that answers queries, the student where that is another one, and what the method has beside it."""
    out, stage, method = setup.context.out, setup.stage, setup.method.cpu()
    exported = method.exported(setup.teacher)
    require_finite(exported.state_dict(), f"{stage}: the model that answers queries")
    save_model(exported, out / MODEL)
    if exported is not method.student:  # what the next stage trains on is not what is evaluated
        save_model(method.student, out / STUDENT)
    save_method_state(method, out / METHOD_STATE, stage=stage)


def write_logs(context: Context, session: Session) -> None:
    """The curves; skipped updates and corrupt pairs where there were any."""
    (context.out / "history.json").write_text(json.dumps({"points": session.history}))
    write_skipped(context, session)
    if session.replaced:
        lines = [json.dumps({"key": key, "reason": reason}) for key, reason in session.replaced.items()]
        (context.out / "quarantine.jsonl").write_text("\n".join(lines) + "\n")


def metrics(setup: TrainingSetup, plans: list[PhasePlan], session: Session) -> dict[str, float]:
    """The last point's terms, and what the stage met and took."""
    last = session.history[-1]["terms"] if session.history else {}
    return {
        **{f"final/{name}": value for name, value in last.items()},
        "replaced": float(len(session.replaced)),
        "parameters/trained": float(setup.trained_parameters(plans)),
        **session.costs.metrics(),
        **session.watch.metrics(),
        "rollbacks": float(session.rollbacks),
    }
