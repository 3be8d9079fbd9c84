"""What stage evaluate does: open a model and run its tasks."""

from __future__ import annotations

import json
from pathlib import Path

from cmapkd_core import parallel
from cmapkd_core.catalog import EVALUATIONS, load
from cmapkd_core.config import ModelConfig
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate import Evaluated, NotApplicable, Subject, count_parameters
from cmapkd_core.model_reference import named_model
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build, build_student, load_model
from cmapkd_core.models.model_folder import IDENTITY
from cmapkd_core.places import RECIPE_STUDENT
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.evaluation_leakage import refuse_seen
from cmapkd_core.stages.execute import Context


def body(
    context: Context, model: str, tasks: tuple[str, ...], tags: dict[str, str], *, strict: bool
) -> dict[str, float]:
    """Run the tasks; one that does not fit the data is an error where it was asked for by name (`strict`)."""
    for name, value in tags.items():
        context.tracker.tag(f"cmapkd.{name}", value)
    recipe, device = context.recipe, parallel.device()
    shards = shards_of(context) if "shards" in context.inputs else _no_data(context.scratch)
    leakage = refuse_seen(context, shards)
    backbone = open_model(context, model).to(device).eval()
    subject = Subject(
        backbone,
        shards,
        recipe.evaluate,
        recipe.runtime.workers,
        device,
        context.out,
        context.say,
    )
    metrics = count_parameters(backbone) | leakage
    for name in tasks:
        try:
            outcome = load("evaluation task", name, EVALUATIONS)(subject)
            require_facts(name, outcome)
        except NotApplicable as reason:
            if strict:
                raise
            context.say(f"evaluate: {name} is left out: {reason}\n")
            outcome = Evaluated({}, {"missing": str(reason)})
        metrics |= {f"{name}/{metric}": value for metric, value in outcome.metrics.items()}
        (context.out / f"{name}.json").write_text(json.dumps(outcome.detail), encoding="utf-8")
    (context.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    (context.out / IDENTITY).write_text(json.dumps(backbone.identity.plain(), indent=1))
    return metrics


def require_facts(name: str, outcome: Evaluated) -> None:
    """What the row calls facts of the data is among the numbers, or a report could not hold its models to them.

    Raises:
        InputError: one is not; names the row.
    """
    if missing := [fact for fact in EVALUATIONS[name].facts if fact not in outcome.metrics]:
        raise InputError(
            f"evaluation task '{name}' gives no metric {', '.join(missing)}, which its row has among `facts` (it gives "
            f"{', '.join(outcome.metrics)}): correct `facts` of {name} in EVALUATIONS of cmapkd_core/catalog.py, or "
            f"what {EVALUATIONS[name].code} gives"
        )


def open_model(context: Context, model: str) -> Backbone:
    """The model that `run` was given, on the CPU; its artifact is the stage's input `model`."""
    backbone = _open(context, model)
    context.introduce("model", backbone.identity)
    return backbone


def _open(context: Context, model: str) -> Backbone:
    if "model" in context.inputs:
        return load_model(context.inputs["model"].fetch_folder("model"))
    if model == RECIPE_STUDENT:
        return build_student(context.recipe.student, context.recipe.seed, context.scratch)
    named = named_model(model)
    assert named is not None, "what is no artifact is a name"
    if not named[1]:
        context.say(f"evaluate: {model} names no weights, so they are random\n")
    return build(ModelConfig(named[0], named[1] or "random"), context.recipe.seed, context.scratch)


def _no_data(cache: Path) -> ShardSet:
    """A data set without a split, for tasks that read none (`places.reads_data`)."""
    return ShardSet("", cache, {"classes": [], "max_pixels": 0, "splits": {}}, {})
