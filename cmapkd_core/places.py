"""Where artifacts and run records lie below a root; stages write there and the submit command names it beforehand.

    {root}/{stage}/{fingerprint}    an artifact: two recipes that agree in what the stage reads share it
    {root}/runs/{run}/run.json      what a run was asked for (records.py)
    {root}/runs/{run}/report        the run's report

No torch here.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

from cmapkd_core import storage
from cmapkd_core.catalog import EVALUATIONS
from cmapkd_core.config import Recipe
from cmapkd_core.fields import below, flatten
from cmapkd_core.fingerprints import declared, fingerprint, reads, trains
from cmapkd_core.model_reference import named_model
from cmapkd_core.view import Declared

# How a model's training pictures are compared with those that it is tested on (stages/evaluation_leakage.py). Left out
# where they have their defaults, so that evaluations made before the fields existed keep their places.
_SEEN = ("data.leakage", "evaluate.leakage_action")
_LIFT = "student.lift"
_YOUNGER = (*_SEEN, "evaluate.answers", "evaluate.strata", _LIFT)

RUN_DIGITS = 12  # of the digest in the place of a run's name in another script
RECIPE_STUDENT = "recipe:student"  # the model reference for the recipe's student before any training


def place(root: str, stage: str, fields: dict[str, Any]) -> str:
    """URL of the artifact of `stage` for the flattened fields that it reads."""
    return storage.join(root, stage, fingerprint(fields))


def stage_url(root: str, stage: str, recipe: Recipe) -> str:
    """URL of the artifact of prepare, teacher, warmup, alsn or joint; its predecessor's where it hands that on."""
    return place(root, stage, reads(recipe, stage)) if trains(recipe, stage) else stage_url(root, "warmup", recipe)


def part_fields(recipe: Recipe, part: int, of: int) -> dict[str, Any]:
    """What decides a part of the recipe's data set."""
    return {**reads(recipe, "prepare-part"), "part": part, "of": of}


def part_url(root: str, recipe: Recipe, part: int, of: int) -> str:
    """URL of the artifact of a part, which is gone once stage prepare has joined all of them."""
    return place(root, "prepare-part", part_fields(recipe, part, of))


def reads_data(tasks: tuple[str, ...]) -> bool:
    """False where none of the tasks looks at a split, so that no data need be prepared for them."""
    return any(EVALUATIONS[task].reads_data for task in tasks if task in EVALUATIONS)


def evaluation_fields(root: str, model_ref: str, shards_url: str, recipe: Recipe, task: str = "") -> dict[str, Any]:
    """What decides an evaluation's result: the model, the shards, the tasks and how they are measured.

    URLs below `root` count relative to it, so that a moved root keeps its fingerprints. `task` narrows the
    recipe's tasks to one; shards count where one of the tasks reads them.
    """
    tasks = (task,) if task else recipe.evaluate.tasks
    leaves, usual, names = flatten(recipe), flatten(Recipe()), evaluation_reads(model_ref, recipe, task).names
    younger = _YOUNGER if model_ref == RECIPE_STUDENT else (*_YOUNGER, "seed")
    return {
        "model": _below(root, model_ref),
        **({"shards": _below(root, shards_url)} if reads_data(tasks) else {}),
        "evaluate.tasks": tasks,
        **{n: v for n, v in leaves.items() if n in names and (n not in younger or v != usual[n])},
    }


def evaluation_reads(model_ref: str, recipe: Recipe, task: str = "") -> Declared:
    """The recipe's fields that an evaluation may read."""
    tasks = (task,) if task else recipe.evaluate.tasks
    prefixes = [prefix for name in tasks for prefix in (EVALUATIONS[name].reads if name in EVALUATIONS else ())]
    if reads_data(tasks) and named_model(model_ref) is None:
        prefixes += _SEEN
    names = below(prefixes, flatten(recipe)) | {*_draws(model_ref)}
    where = f'add "{{}}" to `reads` of {", ".join(tasks)} in EVALUATIONS of cmapkd_core/catalog.py'
    return Declared("evaluate", names, where)


def _draws(model_ref: str) -> tuple[str, ...]:
    """Fields that decide the weights of a model that is no artifact; a seed draws what its weights file lacks."""
    if model_ref == RECIPE_STUDENT:
        return ("student.model", "student.weights", _LIFT, "seed")
    # Left out at its default, so that evaluations made before it counted keep their places.
    return ("seed",) if named_model(model_ref) else ()


def evaluation_url(root: str, model_ref: str, shards_url: str, recipe: Recipe, task: str = "") -> str:
    """URL of an evaluation: `model_ref` is an artifact's URL, `recipe:student` or as `named_model` reads it."""
    return place(root, "evaluate", evaluation_fields(root, model_ref, shards_url, recipe, task))


def levels_fields(recipe: Recipe) -> dict[str, Any]:
    """What decides stage levels: the training that it looks at, and the split."""
    return {**reads(recipe, "joint"), "evaluate.split": recipe.evaluate.split}


def levels_reads(recipe: Recipe) -> Declared:
    """The recipe's fields that stage levels may read."""
    names = declared(recipe, "joint").names | {"evaluate.split"}
    return Declared("levels", names, 'add "{}" to levels_fields and levels_reads in cmapkd_core/places.py')


def levels_url(root: str, recipe: Recipe) -> str:
    """URL of the artifact of stage levels."""
    return place(root, "levels", levels_fields(recipe))


def export_fields(
    root: str, model_ref: str, shards_url: str, recipe: Recipe, evaluation: str = "", suite: str = "", licence: str = ""
) -> dict[str, Any]:
    """What decides an export: the model, the data that it is compared on and its card names, what the card is given."""
    leaves, usual, names = flatten(recipe), flatten(Recipe()), export_reads(model_ref).names
    younger = (_LIFT,) if model_ref == RECIPE_STUDENT else ("seed",)
    return {
        "model": _below(root, model_ref),
        "shards": _below(root, shards_url),
        "evaluation": _below(root, evaluation),
        "suite": _below(root, suite),
        "licence": licence,
        **{n: v for n, v in leaves.items() if n in names and (n not in younger or v != usual[n])},
    }


def export_reads(model_ref: str) -> Declared:
    """The recipe's fields that an export may read."""
    names = frozenset(("name", "evaluate.split", *_draws(model_ref)))
    return Declared("export", names, 'add "{}" to export_reads in cmapkd_core/places.py')


def export_url(
    root: str, model_ref: str, shards_url: str, recipe: Recipe, evaluation: str = "", suite: str = "", licence: str = ""
) -> str:
    """URL of an export; `model_ref` as for an evaluation, evaluation and suite are URLs of those artifacts or ""."""
    return place(root, "export", export_fields(root, model_ref, shards_url, recipe, evaluation, suite, licence))


def run_url(root: str, run: str) -> str:
    """Folder of a run's record and report; `-` stands for blanks and slashes, which a name from the KFP UI may hold.

    A name in another script keeps what is ASCII in it and gets a digest of the whole, so that two have two places.
    """
    run = unicodedata.normalize("NFC", run)  # one name, whichever of Unicode's ways a keyboard writes its accents in
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", run).strip(".-")
    if not run.isascii():
        digest = hashlib.sha256(run.encode()).hexdigest()[:RUN_DIGITS]
        kept = f"{kept or 'run'}-{digest}"
    return storage.join(root, "runs", kept or "unnamed")


def report_url(root: str, run: str, expectations: str = "") -> str:
    """URL of a run's report artifact; what holds the paper's expectations beside the results has a place of its own."""
    return storage.join(run_url(root, run), "report-with-expectations" if expectations else "report")


ON_PURPOSE = "fails on purpose"  # what a task says of the attempt with which it tries whether there is another
OF_ITSELF = "check:"  # before its name: what an input holds in a check that no other task's result fills


def check_url(root: str, run: str, task: str) -> str:
    """URL of what a task of `submit.py --check` found in its pod."""
    return storage.join(root, "checks", run, f"{task}.json")


def failed_once_url(root: str, run: str, task: str) -> str:
    """URL of what a task that fails once on purpose leaves for the attempt after it."""
    return check_url(root, run, f"{task}-failed-once")


def _below(root: str, url: str) -> str:
    """A place relative to `root` where it is below it, however the two are spelled; a model's name as it is."""
    if "/" not in url or named_model(url):
        return url
    return storage.absolute(url).removeprefix(storage.absolute(root).rstrip("/") + "/")
