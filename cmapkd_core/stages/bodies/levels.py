"""What stage levels does: measure the levels of the teacher and of the student before and after training."""

from __future__ import annotations

import dataclasses
import json

import pyarrow.parquet as pq

from cmapkd_core import parallel
from cmapkd_core.ensemble import FIRST
from cmapkd_core.evaluate import level_distances as measured
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.evaluate.level_distances import LevelSide, PooledLevels
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import require_teacher
from cmapkd_core.methods.cmapkd import Cmapkd
from cmapkd_core.models.frozen_teacher import Teacher
from cmapkd_core.progress import Progress
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import build_method


def body(context: Context) -> dict[str, float]:
    """The table and its numbers; a sentence for a method without levels."""
    name = context.recipe.method.name
    if "pyramid" not in METHODS[name].groups:
        reason = f"The method {name} has no levels."
        context.say(f"levels: {reason}\n")
        (context.out / "levels.json").write_text(json.dumps({"missing": reason}))
        (context.out / "metrics.json").write_text("{}")
        return {}
    models = measure(context)
    table = shards_of(context).table(context.recipe.evaluate.split)
    count = len(models["teacher"].own)
    captions = [texts[0] for texts in table["captions"].to_pylist()[:count]]
    keys = table["key"].to_pylist()[:count]
    pq.write_table(measured.as_table(keys, captions, models), context.out / measured.LEVELS_TABLE)
    metrics = measured.metrics(models)
    names = list(models["teacher"].vectors)
    detail = {"split": context.recipe.evaluate.split, "levels": names, "pairs": count}
    (context.out / "levels.json").write_text(json.dumps(detail))
    (context.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return {f"levels/{key}": value for key, value in metrics.items()}


def measure(context: Context) -> dict[str, PooledLevels]:
    """The levels of the teacher and of the student before and after training."""
    untrained = {name: artifact for name, artifact in context.inputs.items() if name.startswith(FIRST)}
    before, teacher = _method(context, untrained)
    after, _ = _method(context, {**untrained, "init": context.inputs["joint"]})
    active = after.active(context.recipe.schedule.fine)
    sides = {
        "teacher": LevelSide(teacher.backbone, teacher.levels, side_of(teacher.backbone)),
        "before": LevelSide(before.student, before.levels, side_of(before.student)),
        "after": LevelSide(after.student, after.levels, side_of(after.student)),
    }
    return {name: _pooled(context, side, active, name) for name, side in sides.items()}


def _method(context: Context, inputs: dict[str, Artifact]) -> tuple[Cmapkd, Teacher]:
    method, teacher = build_method(context.recipe, dataclasses.replace(context, inputs=inputs))
    assert isinstance(method, Cmapkd), "of the methods it is the one with a pyramid"
    return method.to(parallel.device()).eval(), require_teacher(teacher)


def _pooled(context: Context, model: LevelSide, names: tuple[str, ...], name: str) -> PooledLevels:
    recipe, shards = context.recipe, shards_of(context)
    count = min(measured.PAIRS, shards.count(recipe.evaluate.split))
    return measured.pooled_levels(
        model,
        names,
        shards,
        recipe.evaluate.split,
        parallel.device(),
        batch=min(recipe.evaluate.batch, 64),
        progress=Progress(context.say, f"levels: {name}", count, "pairs"),
    )
