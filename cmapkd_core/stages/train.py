"""Stages warmup, alsn and joint: train a student by the phases that the recipe's schedule puts there.

    python -m cmapkd_core.stages.train --stage warmup --recipe demo --root runs/local --shards URL --teacher URL
    torchrun --standalone --nproc-per-node 8 -m cmapkd_core.stages.train ...     (the same, eight processes)

Artifact: model/ (the student), method.safetensors (what the method has beside it), history.json; student/ where
the model that answers queries is more than the student; skipped_updates.jsonl where updates were skipped. warmup adds
sample_stats.parquet, and the later stages weights.parquet where a selector was learned.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pyarrow.parquet as pq
from torch import nn

from cmapkd_core import parallel
from cmapkd_core.config import ALL_LEVELS, STAGE_PHASES, OptimConfig, Phase, Recipe, SelectorConfig
from cmapkd_core.data.loader import TableLoader
from cmapkd_core.engine.finite import require_finite
from cmapkd_core.engine.session import Plan
from cmapkd_core.errors import InputError
from cmapkd_core.fields import choose
from cmapkd_core.fingerprints import declared, reads, trains
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models.build import save_model
from cmapkd_core.places import place
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.assembly import (
    METHOD_STATE,
    MODEL,
    STUDENT,
    make_method,
    run_plans,
    save_own_state,
    write_skipped,
)
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.common import Context, execute
from cmapkd_core.stages.foreign import refuse_foreign
from cmapkd_core.stages.given import of_training
from cmapkd_core.stages.line import Line
from cmapkd_core.stages.statistics import SAMPLE_STATS, WEIGHTS, collect, level_weights, shared_columns
from cmapkd_core.stages.taught import Taught, hear
from cmapkd_core.stages.tracked import told_to_mlflow
from cmapkd_core.view import with_part

Work = dict[str, Callable[[], tuple[Any, Any, Any]]]
Hearing = Callable[[], Taught]
Phases = tuple[list[Plan], Work, nn.Module]  # of a stage, how each is run, and what all of them train


def run(request: Request, *, stage: str, shards: str, teacher: str, init: str = "") -> str:
    """Train one stage of a student.

    Args:
        stage: warmup, alsn or joint.
        shards, teacher: URLs of the prepare and teacher artifacts.
        init: URL of the stage's predecessor; "" starts from the recipe's student.

    Returns:
        the artifact's URL; `init` itself where the stage has nothing to do for this recipe.

    Raises:
        InputError: an input is missing, or was made by another recipe.
    """
    choose("stage", stage, STAGE_PHASES)
    parallel.start()
    recipe = request.resolved()
    if init and not trains(recipe, stage):
        return handed_on(stage, init)
    fields = reads(recipe, stage)
    inputs = {"shards": shards, **({"init": init} if init else {})}
    if METHODS[recipe.method.name].teacher:
        inputs["teacher"] = teacher
    with told_to_mlflow(request, stage):
        refuse_foreign(recipe, request.root, inputs)
    url = place(request.root, stage, fields)
    return execute(
        request,
        stage,
        url=url,
        fields=fields,
        inputs=inputs,
        body=lambda context: body(context, stage),
        declared=declared(recipe, stage),
        paths=of_training(recipe, init),
    )


def handed_on(stage: str, init: str) -> str:
    """The predecessor's artifact as this stage's own: no copy, so runs with and without the stage agree.

    Raises:
        InputError: it is not complete.
    """
    parallel.start()
    found = Artifact.open(init)
    Line(quiet=parallel.rank() > 0)(f"{stage}: nothing to train for this recipe; it hands on {found.url}\n")
    return found.url


def body(context: Context, stage: str) -> dict[str, float]:
    """Train the stage's phases, or pass the model on where it has none."""
    method, teacher = make_method(_of_stage(context.recipe, stage), context)
    taught = cache(partial(hear, context, method, teacher))  # opened when first asked for, and then once
    plans, work, trained = STAGES[stage](context, stage, method, taught)
    if not plans:
        context.say(f"{stage}: nothing to train for this recipe; the model is passed on\n")
    seed = context.recipe.seed * 100 + list(STAGE_PHASES).index(stage)
    session = run_plans(context, stage, plans, work, seed)
    require_finite(method.state_dict(), f"{stage}: what it trained")
    _write_tables(context, stage, method, taught)
    if parallel.rank() == 0:
        method.cpu()
        exported = method.exported(teacher)
        require_finite(exported.state_dict(), f"{stage}: the model that answers queries")
        save_model(exported, context.out / MODEL)
        if exported is not method.student:  # what the next stage trains on is not what is evaluated
            save_model(method.student, context.out / STUDENT)
        save_own_state(method, context.out / METHOD_STATE, stage=stage)
        (context.out / "history.json").write_text(json.dumps({"points": session.history}))
        write_skipped(context, session)
        if session.replaced:
            lines = [json.dumps({"key": key, "reason": reason}) for key, reason in session.replaced.items()]
            (context.out / "quarantine.jsonl").write_text("\n".join(lines) + "\n")
    last = session.history[-1]["terms"] if session.history else {}
    sizes = {"parameters/trained": float(trained_parameters(trained, [plan.phase for plan in plans]))}
    spent = session.costs.metrics() | session.watch.metrics() | {"rollbacks": float(session.rolled)}
    return {**{f"final/{n}": v for n, v in last.items()}, "replaced": float(len(session.replaced)), **sizes, **spent}


def _of_stage(recipe: Recipe, stage: str) -> Recipe:
    """In warm-up nobody chooses: it is the same for all selectors, which share it, so it is told of none."""
    if stage != "warmup" or not METHODS[recipe.method.name].weighs_levels:
        return recipe
    return with_part(recipe, "selector", SelectorConfig(kind="fixed", toward=recipe.selector.toward))


def trained_parameters(module: Any, phases: list[Phase]) -> int:
    """Parameters of what the phases train that at least one of them gives a learning rate.

    Args:
        module: with the loop's contract: a method, or what of it the stage trains alone.
    """
    groups = [(phase, name, params) for phase in phases for name, params in module.groups(phase).items()]
    moved = {id(p): p.numel() for phase, name, params in groups if getattr(phase.lr, name) > 0 for p in params}
    return sum(moved.values())


def on_pairs(context: Context, stage: str, method: Method, hearing: Hearing) -> Phases:
    """Phases that train from pictures and captions; each has its own stream of batches, the same for all methods."""
    recipe, taught = context.recipe, hearing()
    names = [name for name in STAGE_PHASES[stage] if getattr(recipe.schedule, name).epochs]

    def work(name: str) -> tuple[Any, Any, Any]:
        levels = method.active(getattr(recipe.schedule, name))
        return method, taught.loader(name, levels), lambda batch, phase: taught.targets(batch, levels)

    steps_per_epoch = taught.loader(names[0], ()).steps_per_epoch if names else 0
    batch = recipe.optim.batch // recipe.optim.accumulate
    plans = _plans(recipe, names, steps_per_epoch, recipe.optim, batch)
    return plans, {name: partial(work, name) for name in names}, method


def on_statistics(context: Context, stage: str, method: Method, hearing: Hearing) -> Phases:
    """The selector's phase, from warm-up's table; nothing for a fixed selector or a method without one.

    Raises:
        InputError: the stage has no init with that table.
    """
    recipe, fit = context.recipe, method.policy_fit()
    if fit is None or not recipe.schedule.alsn.epochs:
        return [], {}, method
    if not _with_statistics(context):
        raise InputError(f"stage alsn learns from {SAMPLE_STATS}: give the warm-up's artifact as --init")
    columns = shared_columns(context.inputs["init"])
    batch = min(recipe.optim.batch, len(columns["u"]) // parallel.world() * parallel.world())
    loader = TableLoader(columns, batch=batch, rank=parallel.rank(), world=parallel.world(), seed=recipe.seed)
    # Rows of a table are small: a whole batch of them is one micro-batch, however pairs are split to fit a GPU.
    optim = dataclasses.replace(recipe.optim, accumulate=1)
    plans = _plans(recipe, list(STAGE_PHASES[stage]), loader.steps_per_epoch, optim, batch)
    return plans, {plan.name: lambda: (fit, loader, lambda batch, phase: None) for plan in plans}, fit


STAGES: dict[str, Callable[[Context, str, Method, Hearing], Phases]] = {
    "warmup": on_pairs,
    "alsn": on_statistics,
    "joint": on_pairs,
}


def _plans(recipe: Recipe, names: list[str], steps_per_epoch: int, optim: OptimConfig, batch: int) -> list[Plan]:
    plans = []
    for i, name in enumerate(names):
        phase: Phase = getattr(recipe.schedule, name)
        weights = recipe.method.weights.within(phase)
        plans.append(Plan(i, name, phase, steps_per_epoch, weights, optim, batch))
    return plans


def _write_tables(context: Context, stage: str, method: Method, hearing: Hearing) -> None:
    """Sample statistics at the end of warm-up, carried on by the later stages with the selector's weights."""
    if not METHODS[context.recipe.method.name].weighs_levels:
        return
    path = context.out / SAMPLE_STATS
    if stage == "warmup":
        context.say("warmup: measuring every sample's levels for the selector")
        taught = hearing()
        table = collect(method.to(parallel.device()), taught.loader("alsn", ALL_LEVELS), taught.targets)
        if table is not None:
            pq.write_table(table, path)
    elif not _with_statistics(context):
        context.say(f"{stage}: its init has no {SAMPLE_STATS}, so no table of the samples' levels is written\n")
    elif parallel.rank() == 0:
        shutil.copy(context.inputs["init"].fetch(SAMPLE_STATS), path)
        fit = method.policy_fit()
        if fit is not None:
            pq.write_table(level_weights(fit, path), context.out / WEIGHTS)


def _with_statistics(context: Context) -> bool:
    return "init" in context.inputs and SAMPLE_STATS in context.inputs["init"].files()


if __name__ == "__main__":
    sys.exit(main(run))
