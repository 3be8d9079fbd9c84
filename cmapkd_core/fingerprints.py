"""What of a recipe each stage reads, and so which recipes share its artifact. No torch."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cmapkd_core.config import STAGE_PHASES, Recipe, learns_policy
from cmapkd_core.errors import InputError
from cmapkd_core.fields import below, choose, flatten, nearest, plain
from cmapkd_core.method_specs import METHODS, ONE_MAP, MethodSpec
from cmapkd_core.view import Declared

_SHARDS = tuple(f"data.{n}" for n in ("source", "url", "size", "val_share", "test_share", "samples_per_shard"))
_QUALITY = ("data.quarantine_bound", "data.max_pixels")
# Left out where they have their defaults, so that artifacts made before the fields existed keep their places.
_GATE = tuple(f"data.{n}" for n in ("splits", "leakage", "leakage_action", "against"))
_REPACK = "data.repack"
_PREPARE = (*_SHARDS, *_QUALITY, *_GATE, _REPACK)
# What a part of a data set depends on: neither what is held against its pictures nor how many may be bad.
_PART = (*_SHARDS, "data.max_pixels", "data.splits", _REPACK)
_FRACTION = "data.fraction"
# Of students alone: the teacher has all captions, and the right ones.
_CAPTIONS = ("data.unpaired", "data.noise")
_PICTURES = "method.unpaired"
_CROPS = "teacher_fit.views"  # every student's crops follow from it, also without a teacher
_STORED = (_CROPS, "teacher_fit.store", "teacher_fit.levels")
_GOAL = "selector.toward"  # warm-up measures what the levels are of use for,
_MEASURED = "selector.measured"  # of how many pairs,
ONCE = {_MEASURED: 1.0}  # what the defaults of fields were when artifacts had no such field, where they are others now
_LEVELS = "schedule.fine.levels"  # and which levels: those of the phase that will weigh them
_FROZEN = "schedule.frozen_quarters"
_LIFT = "student.lift"
_PARTS = "optim.accumulate"
_KD = "method.kd_standardise"
_FURTHER = "teachers"  # of students alone: each has an artifact of its own
_WATCH = tuple(f"optim.{n}" for n in ("max_skipped", "gradient_spike", "loss_spike", "rollbacks"))
_ROUNDING = tuple(f"optim.{n}" for n in ("teacher_precision", "matmul_precision"))
_UPDATES = (
    *(f"optim.{n}" for n in ("weight_decay", "beta1", "beta2", "clip_norm", "warmup", "precision")),
    *(*_WATCH, *_ROUNDING),
)
_TEACHER = (
    *(*_PREPARE, "data.crop_scale", *_UPDATES),
    *("teacher", "student.model", "pyramid.width", "teacher_fit"),  # the student's grid sizes the common levels
)


_WHERE = {  # how a stage's field is declared; of a training stage, for one method and for all of them
    "prepare": 'add "{}" to _PREPARE in cmapkd_core/fingerprints.py',
    "prepare-part": 'add "{}" to _PREPARE and _PART in cmapkd_core/fingerprints.py',
    "teacher": 'add "{}" to _TEACHER in cmapkd_core/fingerprints.py',
}
_OF_METHOD = (
    'add "{}" to `reads` of METHODS["%s"] in cmapkd_core/method_specs.py (of a rate its group to `groups`, of a weight '
    "its term to `terms`), or, where every method reads it, to _training_prefixes in cmapkd_core/fingerprints.py"
)


def declared(recipe: Recipe, stage: str) -> Declared:
    """The fields that `stage` may read, those among them that can change what it writes and so decide its place.

    A method without a teacher does not read the teacher, one without levels does not read them, and of a later phase
    no stage reads more than the levels that it will weigh.
    """
    if stage in STAGE_PHASES:
        spec: MethodSpec = choose("method", recipe.method.name, METHODS)
        names = below(_training_prefixes(recipe, stage), flatten(recipe))
        return Declared(stage, _used(names, spec), _OF_METHOD % recipe.method.name)
    if stage not in _WHERE:
        raise InputError(f"unknown stage '{stage}': {nearest(stage, (*_WHERE, *STAGE_PHASES))}")
    teacher = (*_TEACHER, _FRACTION) if recipe.teacher_fit.views else _TEACHER  # the share that is stored
    names = below({"prepare": _PREPARE, "prepare-part": _PART, "teacher": teacher}[stage], flatten(recipe))
    return Declared(stage, names, _WHERE[stage])


def reads(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The flattened fields that can change what `stage` writes; two recipes that agree in them share its artifact."""
    leaves, usual, names = flatten(recipe), flatten(Recipe()) | ONCE, declared(recipe, stage).names
    since = (*_GATE, _REPACK, *_STORED, *_WATCH, *_ROUNDING, _GOAL, _MEASURED, _FROZEN, _KD, *_CAPTIONS, _PICTURES)
    since = (*since, _LIFT, _FURTHER, ONE_MAP)
    since = since if stage == "joint" else (*since, _LEVELS)
    since = (*since, _FRACTION) if stage == "teacher" else since
    since = (*since, *METHODS[recipe.method.name].since)
    fields = {n: v for n, v in leaves.items() if n in names and (n not in since or v != usual[n])}
    if fields.get(_PARTS, 1) > 1:  # artifacts made before compared the pairs of a part alone
        fields[_PARTS] = f"{fields[_PARTS]} parts of a batch"
    return fields


def _training_prefixes(recipe: Recipe, stage: str) -> tuple[str, ...]:
    spec: MethodSpec = choose("method", recipe.method.name, METHODS)
    earlier = list(STAGE_PHASES)[: list(STAGE_PHASES).index(stage) + 1]
    phases = [f"schedule.{phase}" for name in earlier for phase in STAGE_PHASES[name]]
    fixed = (
        *_PREPARE,
        _CROPS,
        "data.crop_scale",
        _FRACTION,
        *_CAPTIONS,
        _FROZEN,
        "seed",
        "student",
        "optim",
        "method.name",
    )
    measuring = (_GOAL, _MEASURED) if stage == "warmup" else ("selector",)
    selector = (*measuring, _LEVELS) if spec.weighs_levels else ()
    weights = tuple(f"method.weights.{term}" for term in spec.terms)
    teachers = (*(_TEACHER if spec.teacher else ()), *((_FURTHER,) if spec.ensemble else ()))
    return (*fixed, *phases, *selector, *weights, *spec.reads, *teachers)


def _used(names: frozenset[str], spec: MethodSpec) -> frozenset[str]:
    """Without the rates of groups that a method lacks, and the levels where it has none."""

    def used(name: str) -> bool:
        if not name.startswith("schedule.") or name == _FROZEN:
            return True
        _, phase, leaf = name.split(".", 2)
        if leaf.startswith("lr."):
            if leaf[3:] not in spec.groups:
                return False
        elif leaf in ("levels", "selects") and "pyramid" not in spec.groups:
            return False
        return phase != "alsn" or spec.weighs_levels

    return frozenset(filter(used, names))


def trains(recipe: Recipe, stage: str) -> bool:
    """False where `stage` has nothing to do for the recipe and hands its predecessor's artifact on.

    That is stage alsn where no policy is learned.
    """
    return stage != "alsn" or (learns_policy(recipe) and recipe.schedule.alsn.epochs > 0)


def fingerprint(fields: dict[str, Any]) -> str:
    """12 hex digits of the canonical JSON of flattened fields."""
    text = json.dumps({k: plain(v) for k, v in sorted(fields.items())}, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
