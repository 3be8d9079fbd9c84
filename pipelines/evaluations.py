"""Evaluations that are tasks of their own: what `evaluate.sets` of a recipe adds to the pipeline.

`evaluate.sets` holds TASK or TASK=SOURCE[:URL]. Each gives one task a model; a data set of its own is prepared once.
The recipe's `evaluate.tasks` stay together in the tasks evaluate-*: they share the images' embeddings. A task refuses a
model that was trained on pictures of its data set (cmapkd_core/stages/seen.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from cmapkd_core.config import Recipe
from cmapkd_core.places import RECIPE_STUDENT
from components import EVALUATE, PREPARE
from pipelines.graph import Task, task_name

# Role in the report -> the task whose artifact holds the model; what the recipe itself names has none.
MODELS = {"student": "joint", "reference": "reference-joint", "teacher": "teacher", "before": ""}
# The models that a task is run on, where not all are of interest: a probe trains for minutes a model, and the
# reference has the student's size and speed.
ROLES = {
    "vqa": ("student", "reference", "teacher"),
    "captioning": ("student", "reference", "teacher"),
    "efficiency": ("student", "teacher"),
}

PROBES = ("vqa", "captioning")  # tasks that train something on the training split; of other sets one split is prepared
TIMED = "efficiency"  # the task whose result is a time


def extra_tasks(recipe: Recipe, roles: Sequence[str] = tuple(MODELS)) -> tuple[Task, ...]:
    """Tasks that prepare the recipe's evaluation sets and run them, for the models in `roles`."""
    tasks: dict[str, Task] = {}
    own = recipe.evaluate.own()
    trained_on = {data for task, data in own if task in PROBES}
    for task, data in own:
        shards = task_name(_called("prepare", data))
        if data:
            only = "" if data in trained_on else f"data.splits={recipe.evaluate.split}"
            tasks.setdefault(shards, Task(shards, PREPARE, "prepare", data=data, own_overrides=only))
        for role in ROLES.get(task, tuple(MODELS)):
            if role in roles:
                made = _evaluation(task, data, shards, role)
                tasks[made.name] = made
    return tuple(tasks.values())


def _evaluation(task: str, data: str, shards: str, role: str) -> Task:
    model = MODELS[role]
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
    every = {task.name: [task.values["task"]] if task.values["task"] else recipe.evaluate.tasks for task in evaluations}
    return tuple(name for name, measured in every.items() if TIMED in measured)


def collected(tasks: Sequence[Task]) -> dict[str, str]:
    """`TASK[-SOURCE]/ROLE` -> task, for the report's `evaluations`."""
    return {f"{called}/{role}": name for called, role, name in own_evaluations(tasks)}
