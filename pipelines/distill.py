"""The pipeline of one run: which stage runs after which, and what it is given.

    prepare -> teacher -> warmup -> alsn -> joint -> evaluate-student -> report, export
    prepare, teacher -> reference-warmup -> reference-joint -> evaluate-reference -> report
    teacher -> evaluate-teacher -> report;  the recipe's untrained student -> evaluate-before -> report

Of a recipe the tasks depend on `evaluate.sets` alone (pipelines/evaluations.py): one compiled package serves every
recipe, ablation and seed with the same evaluations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# No `from __future__ import annotations` here: KFP reads the types of the pipeline's parameters.
from kfp import dsl

from cmapkd_core.config import Recipe
from cmapkd_core.fields import as_overrides, override, parse_overrides
from cmapkd_core.places import RECIPE_STUDENT, evaluation_url, export_url, levels_url, report_url, stage_url
from cmapkd_core.recipes import REFERENCE, ROWS, data_fields
from components import EVALUATE, EXPORT, LEVELS, PREPARE, REPORT, TEACHER, TRAIN, Component
from pipelines.evaluations import collected, extra_tasks
from pipelines.graph import Plan, Task, connect, write_package
from pipelines.site import Site

PARAMETERS = ("recipe", "ablation", "overrides", "seed", "data", "root", "tracking_uri", "image")

DATA = {"shards": "prepare"}
TAUGHT = {**DATA, "teacher": "teacher"}
CONTROL: dict[str, Any] = {"row": REFERENCE, "own_overrides": as_overrides(ROWS[REFERENCE])}
WARMUP, JOINT = {"stage": "warmup", "init": ""}, {"stage": "joint"}
OWN_TASKS = {"task": ""}  # of an evaluation: those of the recipe

TASKS = (
    Task("prepare", PREPARE, "prepare"),
    Task("teacher", TEACHER, "train", DATA),
    Task("warmup", TRAIN, "train", TAUGHT, WARMUP),
    Task("alsn", TRAIN, "train", {**TAUGHT, "init": "warmup"}, {"stage": "alsn"}),
    Task("joint", TRAIN, "train", {**TAUGHT, "init": "alsn"}, JOINT),
    Task("evaluate-student", EVALUATE, "evaluate", {**DATA, "model": "joint"}, OWN_TASKS),
    Task("levels", LEVELS, "evaluate", {**TAUGHT, "joint": "joint"}),
    Task("export", EXPORT, "report", {**DATA, "model": "joint", "evaluation": "evaluate-student"}),
    # the branch without a teacher
    Task("reference-warmup", TRAIN, "train", TAUGHT, WARMUP, **CONTROL),
    Task("reference-joint", TRAIN, "train", {**TAUGHT, "init": "reference-warmup"}, JOINT, **CONTROL),
    Task("evaluate-reference", EVALUATE, "evaluate", {**DATA, "model": "reference-joint"}, OWN_TASKS),
    Task("evaluate-teacher", EVALUATE, "evaluate", {**DATA, "model": "teacher"}, OWN_TASKS),
    Task("evaluate-before", EVALUATE, "evaluate", DATA, {**OWN_TASKS, "model": RECIPE_STUDENT}),
)

REPORT_TASK = Task(
    "report",
    REPORT,
    "report",
    {
        **TAUGHT,
        "warmup": "warmup",
        "alsn": "alsn",
        "joint": "joint",
        "reference": "reference-joint",
        "teacher_eval": "evaluate-teacher",
        "before_eval": "evaluate-before",
        "student_eval": "evaluate-student",
        "reference_eval": "evaluate-reference",
        "levels": "levels",
    },
)


def tasks_of(recipe: Recipe) -> tuple[Task, ...]:
    """Every task of a run: those that all recipes have, the recipe's own evaluations, the report."""
    extra = extra_tasks(recipe)
    return (*TASKS, *extra, replace(REPORT_TASK, collects={"evaluations": collected(extra)}))


def output_urls(tasks: Sequence[Task], recipe_of: Callable[[Task], Recipe], root: str, run: str) -> dict[str, str]:
    """URL of every task's artifact, by the functions that the stages themselves use."""
    urls: dict[str, str] = {}
    for task in tasks:
        recipe = override(recipe_of(task), data_fields(task.data) | parse_overrides(task.own_overrides))
        told = task.values | {name: urls[source] for name, source in task.inputs.items()}
        urls[task.name] = PLACES.get(task.component, _stage_place)(root, recipe, told, run)
    return urls


def _stage_place(root: str, recipe: Recipe, told: Mapping[str, str], run: str) -> str:
    return stage_url(root, told["stage"], recipe)


# Component -> URL of its artifact, from the root, the recipe, what the task is told, and the run.
PLACES: dict[Component, Callable[[str, Recipe, Mapping[str, str], str], str]] = {
    PREPARE: lambda root, recipe, told, run: stage_url(root, "prepare", recipe),
    TEACHER: lambda root, recipe, told, run: stage_url(root, "teacher", recipe),
    EVALUATE: lambda root, recipe, told, run: evaluation_url(root, told["model"], told["shards"], recipe, told["task"]),
    EXPORT: lambda root, recipe, told, run: export_url(root, told["model"], told["shards"], recipe, told["evaluation"]),
    LEVELS: lambda root, recipe, told, run: levels_url(root, recipe),
    REPORT: lambda root, recipe, told, run: report_url(root, run),
}


def defaults(site: Site) -> dict[str, str]:
    """The pipeline's parameters as the run form shows them before anyone edits it."""
    fresh = {"ablation": "none", "overrides": "", "seed": ""}
    return {name: fresh[name] if name in fresh else getattr(site, name) for name in PARAMETERS}


def build(site: Site, plan: Plan, form: dict[str, str]) -> Any:
    """The KFP pipeline of a plan; `form` has the defaults of PARAMETERS."""

    @dsl.pipeline(name="cmapkd", description="Distils a small CLIP model from a large one on your pairs.")
    def cmapkd(
        recipe: str = form["recipe"],
        ablation: str = form["ablation"],
        overrides: str = form["overrides"],
        seed: str = form["seed"],
        data: str = form["data"],
        root: str = form["root"],
        tracking_uri: str = form["tracking_uri"],
        image: str = form["image"],
    ) -> None:
        """Distils a small CLIP model from a large one on your pairs.

        Args:
            recipe: Named configuration, a row of RECIPES such as paper or demo.
            ablation: What to change in it; none, a row of ABLATIONS such as no_alsn, or of BASELINES such as kd.
            overrides: Single fields, blanks between: optim.batch=128 method.weights.align=0.3. They win over the row.
            seed: Seed of the student's training; empty keeps the recipe's.
            data: Empty keeps the recipe's data; else SOURCE:URL, such as folder:s3://bucket/pictures.
            root: Where artifacts, checkpoints and reports go, such as s3://bucket/cmapkd.
            tracking_uri: MLflow server; empty keeps a journal in the artifacts only.
            image: Container image of all stages, by digest.
        """
        request = {"recipe": recipe, "ablation": ablation, "overrides": overrides, "seed": seed, "data": data}
        connect(plan, site, request | {"root": root, "tracking_uri": tracking_uri}, image)

    return cmapkd


def compile_package(site: Site, path: Path, plan: Plan, form: dict[str, str]) -> Path:
    """Write the compiled pipeline of a plan."""
    return write_package(build(site, plan, form), path)
