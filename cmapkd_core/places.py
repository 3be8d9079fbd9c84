"""Where artifacts and run records lie below a root; stages write there and the submit command names it beforehand.

    {root}/{stage}/{fingerprint}    an artifact: two recipes that agree in what the stage reads share it
    {root}/runs/{run}/run.json      what a run was asked for (records.py)
    {root}/runs/{run}/report        the run's report

No torch here.
"""

from __future__ import annotations

import re
from typing import Any

from cmapkd_core import storage
from cmapkd_core.config import Recipe
from cmapkd_core.fields import flatten
from cmapkd_core.fingerprints import fingerprint, reads, trains

# What of `evaluate.*` decides each task's result; a prefix stands for all fields below it.
TASK_READS: dict[str, tuple[str, ...]] = {
    "retrieval": ("evaluate.split",),
    "zeroshot": ("evaluate.split", "evaluate.templates"),
    "vqa": ("evaluate.split", "evaluate.vqa"),
    "captioning": ("evaluate.split", "evaluate.captioning"),
    "efficiency": ("evaluate.efficiency",),
}

RECIPE_STUDENT = "recipe:student"  # the model reference for the recipe's student before any training


def place(root: str, stage: str, fields: dict[str, Any]) -> str:
    """URL of the artifact of `stage` for the flattened fields that it reads."""
    return storage.join(root, stage, fingerprint(fields))


def stage_url(root: str, stage: str, recipe: Recipe) -> str:
    """URL of the artifact of prepare, teacher, warmup, alsn or joint; its predecessor's where it hands that on."""
    return place(root, stage, reads(recipe, stage)) if trains(recipe, stage) else stage_url(root, "warmup", recipe)


def evaluation_fields(root: str, model_ref: str, shards_url: str, recipe: Recipe, task: str = "") -> dict[str, Any]:
    """What decides an evaluation's result: the model, the shards, the tasks and how they are measured.

    URLs below `root` count relative to it, so that a moved root keeps its fingerprints. `task` narrows the
    recipe's tasks to one.
    """
    tasks = (task,) if task else recipe.evaluate.tasks
    prefixes = [prefix for name in tasks for prefix in TASK_READS.get(name, ())]
    if model_ref == RECIPE_STUDENT:
        prefixes += ["student.model", "student.weights", "seed"]
    leaves = flatten(recipe).items()
    return {
        "model": _below(root, model_ref),
        "shards": _below(root, shards_url),
        "evaluate.tasks": tasks,
        **{n: v for n, v in leaves if any(n == p or n.startswith(p + ".") for p in prefixes)},
    }


def evaluation_url(root: str, model_ref: str, shards_url: str, recipe: Recipe, task: str = "") -> str:
    """URL of an evaluation: `model_ref` is an artifact's URL, `recipe:student` or an open_clip name[:tag]."""
    return place(root, "evaluate", evaluation_fields(root, model_ref, shards_url, recipe, task))


def run_url(root: str, run: str) -> str:
    """Folder of a run's record and report; `-` stands for blanks and slashes, which a name from the KFP UI may hold."""
    return storage.join(root, "runs", re.sub(r"[^A-Za-z0-9._-]+", "-", run).strip(".-") or "unnamed")


def report_url(root: str, run: str) -> str:
    """URL of a run's report artifact."""
    return storage.join(run_url(root, run), "report")


def _below(root: str, url: str) -> str:
    prefix = root.rstrip("/") + "/"
    return url.removeprefix(prefix)
