"""The pipeline of one run: which stage runs after which, and what it is given.

    prepare -> teacher -> warmup -> alsn -> joint -> evaluate-student -> report
    prepare, teacher -> reference-warmup -> reference-joint -> evaluate-reference -> report
    teacher -> evaluate-teacher -> report;  the recipe's untrained student -> evaluate-before -> report

The tasks depend on no value of a recipe, so one compiled package serves every recipe, ablation and seed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# No `from __future__ import annotations` here: KFP reads the types of the pipeline's parameters.
from kfp import dsl

from cmapkd_core.config import Recipe
from cmapkd_core.places import RECIPE_STUDENT, evaluation_url, report_url, stage_url
from cmapkd_core.recipes import REFERENCE
from components.evaluate import evaluate
from components.prepare import prepare
from components.report import report
from components.teacher import teacher
from components.train import train
from pipelines.graph import Plan, Task, connect, write_package
from pipelines.site import Site

PARAMETERS = ("recipe", "ablation", "overrides", "seed", "data", "root", "tracking_uri", "image")

DATA = {"shards": "prepare"}
TAUGHT = {**DATA, "teacher": "teacher"}
WARMUP, JOINT = {"stage": "warmup", "init": ""}, {"stage": "joint"}

TASKS = (
    Task("prepare", prepare, "prepare"),
    Task("teacher", teacher, "train", DATA),
    Task("warmup", train, "train", TAUGHT, WARMUP),
    Task("alsn", train, "train", {**TAUGHT, "init": "warmup"}, {"stage": "alsn"}),
    Task("joint", train, "train", {**TAUGHT, "init": "alsn"}, JOINT),
    Task("evaluate-student", evaluate, "evaluate", {**DATA, "model": "joint"}),
    # the branch without a teacher
    Task("reference-warmup", train, "train", TAUGHT, WARMUP, row=REFERENCE),
    Task("reference-joint", train, "train", {**TAUGHT, "init": "reference-warmup"}, JOINT, row=REFERENCE),
    Task("evaluate-reference", evaluate, "evaluate", {**DATA, "model": "reference-joint"}),
    Task("evaluate-teacher", evaluate, "evaluate", {**DATA, "model": "teacher"}),
    Task("evaluate-before", evaluate, "evaluate", DATA, {"model": RECIPE_STUDENT}),
    Task(
        "report",
        report,
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
        },
    ),
)


def output_urls(tasks: Sequence[Task], recipe_of: Callable[[Task], Recipe], root: str, run: str) -> dict[str, str]:
    """URL of every task's artifact, by the functions that the stages themselves use."""
    urls: dict[str, str] = {}
    for task in tasks:
        recipe = recipe_of(task)
        if task.component is evaluate:
            model = task.values.get("model") or urls[task.inputs["model"]]
            urls[task.name] = evaluation_url(root, model, urls["prepare"], recipe)
        elif task.component is report:
            urls[task.name] = report_url(root, run)
        else:
            urls[task.name] = stage_url(root, task.values.get("stage", task.name), recipe)
    return urls


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
