"""The tasks of a run, a row each: which stage it is, in which pod, what it reads of which others and what it is given.

    prepare -> teacher -> warmup -> alsn -> joint -> evaluate-student -> report, export
    prepare -> reference-warmup -> reference-joint -> evaluate-reference -> report
    teacher -> evaluate-teacher -> report;  the recipe's untrained student -> evaluate-before -> report

All else follows from these rows: the components' arguments, the places of the artifacts, the dry run, the local run,
and a suite, which has them once for every row and seed (suite.py). Of a recipe they depend on `evaluate.sets`
alone, TASK or TASK=SOURCE[:URL]: each gives one task a model, and a data set of its own is prepared once; and on
`data.partitions`: as many tasks prepare-part-N make the parts that prepare joins; and on `teachers`, which have a task
teacher-2, teacher-3 .. each, beside the first's. So one compiled package serves every recipe, ablation and seed with
the same evaluations, partitions and further teachers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cmapkd.pipelines.components import (
    EVALUATE,
    EXPORT,
    LEVELS,
    PREPARE,
    PREPARE_PART,
    REPORT,
    TEACHER,
    TRAIN,
    Component,
)
from cmapkd_core.catalog import EVALUATIONS
from cmapkd_core.config import Recipe
from cmapkd_core.ensemble import FIRST, further_teachers, own_fields
from cmapkd_core.fields import as_overrides, override, parse_overrides
from cmapkd_core.method_specs import METHODS
from cmapkd_core.places import RECIPE_STUDENT, evaluation_url, export_url, levels_url, part_url, report_url, stage_url
from cmapkd_core.recipes import REFERENCE, ROWS, data_fields
from cmapkd_core.stages.parts import KEY


@dataclass(frozen=True)
class Task:
    """One box of the DAG. `inputs` name the tasks whose artifacts it reads, `values` are constants."""

    name: str
    component: Component
    pod: str
    inputs: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    collects: dict[str, str] = field(default_factory=dict)  # what a report calls them -> tasks, an input each
    row: str = ""  # of recipes.ROWS; "": the run's own
    seed: str = ""  # "": the run's own
    data: str = ""  # SOURCE[:URL]; "": the run's own
    overrides: str | None = None  # None: the run's own
    own_overrides: str = ""  # field=value parts that win over those
    role: str = ""  # in the report, of the model of an evaluation of its own
    part: str = ""  # what its records add to the run's name
    after: tuple[str, ...] = ()  # tasks that end before it though it reads nothing of them
    redo: str = ""  # as Plan.redo, for this task alone
    check: str = ""  # as Request.check
    suite: bool = True  # False: of a run alone, a suite has none
    passing: bool = False  # its artifact is gone once that of the task that reads it is complete

    def sources(self) -> set[str]:
        """Names of the tasks whose artifacts it reads."""
        return {*self.inputs.values(), *self.collects.values()}


def task_name(*parts: str) -> str:
    """Name of a task: its key in the package too, which KFP makes of it, and so what kubectl and the API show."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


DATA = {"shards": "prepare"}
WITH_TEACHER = {**DATA, "teacher": "teacher"}
CONTROL: dict[str, Any] = {"row": REFERENCE, "own_overrides": as_overrides(ROWS[REFERENCE]), "suite": False}
WARMUP, ALSN, JOINT = {"stage": "warmup"}, {"stage": "alsn"}, {"stage": "joint"}

TASKS = (
    Task("prepare", PREPARE, "prepare"),
    Task("teacher", TEACHER, "train", DATA),
    Task("warmup", TRAIN, "train", WITH_TEACHER, WARMUP),
    Task("alsn", TRAIN, "train", {**WITH_TEACHER, "init": "warmup"}, ALSN),
    Task("joint", TRAIN, "train", {**WITH_TEACHER, "init": "alsn"}, JOINT),
    Task("evaluate-student", EVALUATE, "evaluate", {**DATA, "model": "joint"}),
    Task("levels", LEVELS, "evaluate", {**WITH_TEACHER, "joint": "joint"}, suite=False),
    Task("export", EXPORT, "report", {**DATA, "model": "joint", "evaluation": "evaluate-student"}, suite=False),
    # the branch without a teacher, which waits for none
    Task("reference-warmup", TRAIN, "train", DATA, WARMUP, **CONTROL),
    Task("reference-joint", TRAIN, "train", {**DATA, "init": "reference-warmup"}, JOINT, **CONTROL),
    Task("evaluate-reference", EVALUATE, "evaluate", {**DATA, "model": "reference-joint"}, suite=False),
    Task("evaluate-teacher", EVALUATE, "evaluate", {**DATA, "model": "teacher"}),
    Task("evaluate-before", EVALUATE, "evaluate", DATA, {"model": RECIPE_STUDENT}),
)

REPORTED = {
    **WITH_TEACHER,
    "warmup": "warmup",
    "alsn": "alsn",
    "joint": "joint",
    "reference": "reference-joint",
    "teacher_eval": "evaluate-teacher",
    "before_eval": "evaluate-before",
    "student_eval": "evaluate-student",
    "reference_eval": "evaluate-reference",
    "levels": "levels",
}

# ---- evaluations of their own ---------------------------------------------------------------------

# Role in the report -> the task whose artifact holds the model; what the recipe itself names has none.
TASK_OF_ROLE = {"student": "joint", "reference": "reference-joint", "teacher": "teacher", "before": ""}
IN_SUITES = ("student", "teacher")  # of a suite's rows


def tasks_of(recipe: Recipe) -> tuple[Task, ...]:
    """Every task of a run: those that all recipes have, the recipe's own evaluations, the report."""
    extra = own_tasks(recipe)
    evaluations = {f"{called}/{role}": name for called, role, name in own_evaluations(extra)}
    tasks = taught(in_parts(TASKS, recipe), recipe)
    return (*tasks, *extra, Task("report", REPORT, "report", collects=REPORTED | evaluations))


def tasks_of_cell(recipe: Recipe) -> tuple[Task, ...]:
    """The tasks of one row with one seed that a suite takes; its report is of all of them.

    A row without a teacher does not wait for one. Of a run that is not known: its form may name another row.
    """
    own = taught(in_parts([task for task in TASKS if task.suite], recipe), recipe)
    tasks = (*own, *own_tasks(recipe, IN_SUITES))
    return tasks if METHODS[recipe.method.name].teacher else tuple(map(_without_teacher, tasks))


def in_parts(tasks: Sequence[Task], recipe: Recipe) -> tuple[Task, ...]:
    """The tasks, with `data.partitions` before the one that prepares the run's data where that is more than one."""
    of = recipe.data.partitions
    parts = [
        Task(f"prepare-part-{n}", PREPARE_PART, "prepare", values={"part": f"{n}", "of": f"{of}"}, passing=True)
        for n in range(1, of + 1 if of > 1 else 1)
    ]
    collects = {KEY.format(n): part.name for n, part in enumerate(parts, 1)}
    joined = [replace(task, collects=collects) if task.component is PREPARE else task for task in tasks]
    return (*parts, *joined)


def taught(tasks: Sequence[Task], recipe: Recipe) -> tuple[Task, ...]:
    """The tasks, with one for each further teacher behind that of the first, whose artifacts go where its own goes."""
    further = {
        name: Task(name, TEACHER, "train", DATA, own_overrides=as_overrides(own_fields(model)))
        for name, model in further_teachers(recipe).items()
    }
    given = {name: name for name in further}
    result: list[Task] = []
    for task in tasks:
        reads = FIRST in task.inputs  # a model to be evaluated has another name
        result.append(replace(task, collects=given) if reads else task)
        result += further.values() if task.name == FIRST else ()
    return tuple(result)


def _without_teacher(task: Task) -> Task:
    if task.component is not TRAIN:
        return task
    return replace(task, inputs={name: source for name, source in task.inputs.items() if name != "teacher"})


def own_tasks(recipe: Recipe, roles: Sequence[str] = tuple(TASK_OF_ROLE)) -> tuple[Task, ...]:
    """Tasks that prepare the recipe's evaluation sets and run them, for the models in `roles`.

    The recipe's `evaluate.tasks` stay together in the tasks evaluate-*: they share the images' embeddings. A task
    refuses a model that was trained on pictures of its data set (cmapkd_core/stages/evaluation_leakage.py).
    """
    tasks: dict[str, Task] = {}
    own = recipe.evaluate.own()
    trained_on = {data for task, data in own if EVALUATIONS[task].trains}
    for task, data in own:
        shards = task_name(_called("prepare", data))
        if data:
            only = "" if data in trained_on else f"data.splits={recipe.evaluate.split}"
            tasks.setdefault(shards, Task(shards, PREPARE, "prepare", data=data, own_overrides=only))
        for role in EVALUATIONS[task].roles or tuple(TASK_OF_ROLE):
            if role in roles:
                made = _evaluation(task, data, shards, role)
                tasks[made.name] = made
    return tuple(tasks.values())


def _evaluation(task: str, data: str, shards: str, role: str) -> Task:
    model = TASK_OF_ROLE[role]
    inputs = {"shards": shards, **({"model": model} if model else {})}
    values = {"task": task, **({} if model else {"model": RECIPE_STUDENT})}
    return Task(task_name(_called(task, data), role), EVALUATE, "evaluate", inputs, values, data=data, role=role)


def _called(task: str, data: str) -> str:
    """TASK, or TASK-SOURCE on data of its own: what the report calls it."""
    return "-".join(part for part in (task, data.partition(":")[0]) if part)


def own_evaluations(tasks: Sequence[Task]) -> list[tuple[str, str, str]]:
    """TASK[-SOURCE], role and name of every evaluation of its own among the tasks."""
    return [(_called(task.values["task"], task.data), task.role, task.name) for task in tasks if task.role]


def timed(tasks: Sequence[Task], recipe: Recipe) -> tuple[str, ...]:
    """Names of the tasks that measure time."""
    evaluations = [task for task in tasks if task.component is EVALUATE]
    every = {task.name: [task.values["task"]] if task.role else recipe.evaluate.tasks for task in evaluations}
    return tuple(name for name, measured in every.items() if any(EVALUATIONS[one].timed for one in measured))


# ---- places ---------------------------------------------------------------------------------------


def own_recipe(task: Task, recipe: Recipe) -> Recipe:
    """A task's recipe, from its run's: with its own data and fields."""
    own: Recipe = override(recipe, data_fields(task.data) | parse_overrides(task.own_overrides))
    return own


def output_urls(tasks: Sequence[Task], recipe_of: Callable[[Task], Recipe], root: str, run: str) -> dict[str, str]:
    """URL of every task's artifact, by the functions that the stages themselves use.

    Args:
        recipe_of: what the task's stage resolves, its own fields among it (`own_recipe`).
    """
    urls: dict[str, str] = {}
    for task in tasks:
        recipe = recipe_of(task)
        given = task.values | {name: urls[source] for name, source in task.inputs.items()}
        urls[task.name] = PLACES.get(task.component, _stage_place)(root, recipe, given, run)
    return urls


def _stage_place(root: str, recipe: Recipe, given: Mapping[str, str], run: str) -> str:
    return stage_url(root, given["stage"], recipe)


# Component -> URL of its artifact, from the root, the recipe, what the task is given, and the run.
PLACES: dict[Component, Callable[[str, Recipe, Mapping[str, str], str], str]] = {
    PREPARE: lambda root, recipe, given, run: stage_url(root, "prepare", recipe),
    PREPARE_PART: lambda root, recipe, given, run: part_url(root, recipe, int(given["part"]), int(given["of"])),
    TEACHER: lambda root, recipe, given, run: stage_url(root, "teacher", recipe),
    EVALUATE: lambda root, recipe, given, run: evaluation_url(
        root, given["model"], given["shards"], recipe, given.get("task", "")
    ),
    EXPORT: lambda root, recipe, given, run: export_url(
        root, given["model"], given["shards"], recipe, given["evaluation"]
    ),
    LEVELS: lambda root, recipe, given, run: levels_url(root, recipe),
    REPORT: lambda root, recipe, given, run: report_url(root, run, given.get("expectations", "")),
}
