"""What of a recipe each stage reads, and so which recipes share its artifact. No torch."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cmapkd_core.config import STAGE_PHASES, Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import choose, flatten, nearest, plain
from cmapkd_core.method_specs import METHODS, MethodSpec, learns_policy

_SHARDS = tuple(f"data.{n}" for n in ("source", "url", "size", "val_share", "test_share", "samples_per_shard"))
_QUALITY = ("data.quarantine_bound", "data.max_pixels")
# Left out where they have their defaults, so that artifacts made before the fields existed keep their places.
_GATE = tuple(f"data.{n}" for n in ("splits", "leakage", "leakage_action", "against"))
_CROPS = "teacher_fit.views"  # every student's crops follow from it, also without a teacher
_STORED = (_CROPS, "teacher_fit.store")
_GOAL = "selector.toward"  # warm-up measures what the levels are of use for,
_LEVELS = "schedule.fine.levels"  # and which levels: those of the phase that will weigh them
_WATCH = tuple(f"optim.{n}" for n in ("max_skipped", "gradient_spike", "loss_spike", "rollbacks"))
_UPDATES = (
    *(f"optim.{n}" for n in ("weight_decay", "beta1", "beta2", "clip_norm", "warmup", "precision")),
    *_WATCH,
)
_TEACHER = (
    *(*_SHARDS, *_QUALITY, *_GATE, "data.crop_scale", *_UPDATES),
    *("teacher", "student.model", "pyramid.width", "teacher_fit"),  # the student's grid sizes the common levels
)


def reads(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The flattened fields that can change what `stage` writes.

    Two recipes that agree in them share the stage's artifact. A method without a teacher does not
    read the teacher, one without levels does not read them, and of a later phase no stage reads more
    than the levels that it will weigh.
    """
    if stage == "prepare":
        prefixes: tuple[str, ...] = (*_SHARDS, *_QUALITY, *_GATE)
    elif stage == "teacher":
        prefixes = _TEACHER
    elif stage in STAGE_PHASES:
        prefixes = _training_prefixes(recipe, stage)
    else:
        raise InputError(f"unknown stage '{stage}': {nearest(stage, ('prepare', 'teacher', *STAGE_PHASES))}")
    leaves, usual = flatten(recipe), flatten(Recipe())
    chosen = {n: v for n, v in leaves.items() if any(n == p or n.startswith(p + ".") for p in prefixes)}
    since = (*_GATE, *_STORED, *_WATCH, _GOAL, *(() if stage == "joint" else (_LEVELS,)))
    chosen = {n: v for n, v in chosen.items() if n not in since or v != usual[n]}
    if stage in STAGE_PHASES:
        _drop_unused(chosen, METHODS[recipe.method.name])
    return chosen


def _training_prefixes(recipe: Recipe, stage: str) -> tuple[str, ...]:
    spec: MethodSpec = choose("method", recipe.method.name, METHODS)
    earlier = list(STAGE_PHASES)[: list(STAGE_PHASES).index(stage) + 1]
    phases = [f"schedule.{phase}" for name in earlier for phase in STAGE_PHASES[name]]
    fixed = (
        *_SHARDS,
        *_QUALITY,
        *_GATE,
        _CROPS,
        "data.crop_scale",
        "data.fraction",
        "seed",
        "student",
        "optim",
        "method.name",
    )
    selector = (_GOAL if stage == "warmup" else "selector", _LEVELS) if spec.weighs_levels else ()
    weights = tuple(f"method.weights.{term}" for term in spec.terms)
    return (*fixed, *phases, *selector, *weights, *spec.reads, *(_TEACHER if spec.teacher else ()))


def _drop_unused(chosen: dict[str, Any], spec: MethodSpec) -> None:
    """Leave out rates of groups that a method lacks, and the levels where it has none."""
    for name in list(chosen):
        if not name.startswith("schedule."):
            continue
        _, phase, leaf = name.split(".", 2)
        if (leaf.startswith("lr.") and leaf[3:] not in spec.groups) or (
            leaf in ("levels", "selects") and "pyramid" not in spec.groups
        ):
            del chosen[name]
        elif phase == "alsn" and not spec.weighs_levels:
            chosen.pop(name)


def trains(recipe: Recipe, stage: str) -> bool:
    """False where `stage` has nothing to do for the recipe and hands its predecessor's artifact on.

    That is stage alsn where no policy is learned.
    """
    return stage != "alsn" or (learns_policy(recipe) and recipe.schedule.alsn.epochs > 0)


def fingerprint(fields: dict[str, Any]) -> str:
    """12 hex digits of the canonical JSON of flattened fields."""
    text = json.dumps({k: plain(v) for k, v in sorted(fields.items())}, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
