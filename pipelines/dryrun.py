"""What a submission would do, in words: tasks, phases, parameters, pods, output URLs."""

from __future__ import annotations

from collections.abc import Iterator

from cmapkd_core.config import METHODS, STAGE_PHASES, Phase, Recipe
from cmapkd_core.recipes import REFERENCE, ROWS
from pipelines.distill import Task
from pipelines.site import Pod
from pipelines.submission import Submission


def describe(job: Submission) -> str:
    """The text of `submit.py --dry-run`."""
    row = job.arguments["ablation"]
    lines = [f"run {job.run}", "", "parameters"]
    lines += [f"  {name:13}{value or '(empty)'}" for name, value in job.arguments.items()]
    lines += ["", f"changed by {row}", *_changes(row), "", "stages, in order"]
    for number, task in enumerate(job.plan.tasks, 1):
        note = f" (row {REFERENCE})" if task.reference else ""
        note += ", again although complete" if job.plan.redo else ""
        lines.append(f"  {number:2} {task.name}{note}")
        lines += [f"       {line}" for line in _about(task, job)]
    return "\n".join(lines)


def _about(task: Task, job: Submission) -> Iterator[str]:
    yield from _work(task, job.recipes["reference" if task.reference else "run"])
    pod: Pod = getattr(job.site.pods, task.pod)
    inputs = [*task.inputs.values(), *(value for name, value in task.values.items() if name == "model")]
    yield f"reads {', '.join(inputs) or 'the source'}"
    ranks = f", torchrun with {pod.ranks}" if task.pod == "train" and pod.ranks > 1 else ""
    yield f"runs  {'on this machine' if job.local else _pod(pod)}{ranks}"
    yield f"to    {job.urls[task.name]}"


def _changes(row: str) -> list[str]:
    return [f"  {name} = {value}" for name, value in ROWS[row].items()] or ["  nothing"]


def _pod(pod: Pod) -> str:
    shm = f", /dev/shm {pod.shm}" if pod.shm else ""
    return f"{pod.gpus} GPU, {pod.cpu} cores, {pod.memory}{shm}, at most {pod.hours:g} h"


def _work(task: Task, recipe: Recipe) -> Iterator[str]:
    """One line per phase, or what the task does."""
    if task.name == "prepare":
        yield f"source {recipe.data.source} {recipe.data.url}".rstrip()
    elif task.name == "teacher":
        yield f"teacher {recipe.teacher.model} ({recipe.teacher.weights}), batch {recipe.teacher_fit.batch}"
        yield _phase("space", recipe.teacher_fit.space, ("heads",), "")
        yield _phase("pyramid", recipe.teacher_fit.pyramid, ("pyramid",), "all")
    elif "stage" in task.values:
        yield from _training(task.values["stage"], recipe)
    elif task.pod == "evaluate":
        yield f"{', '.join(recipe.evaluate.tasks)} on split {recipe.evaluate.split}"


def _training(stage: str, recipe: Recipe) -> Iterator[str]:
    groups = METHODS[recipe.method.name].groups
    if recipe.selector.kind == "fixed":
        groups = tuple(group for group in groups if group != "selector")
    if stage == "warmup":
        yield f"student {recipe.student.model} ({recipe.student.weights})"
        yield f"method {recipe.method.name}, batch {recipe.optim.batch}"
    if stage == "alsn" and "selector" not in groups:
        yield "passes its model on: nothing chooses levels by sample"
        return
    for name in STAGE_PHASES[stage]:
        phase: Phase = getattr(recipe.schedule, name)
        trains = ("selector",) if stage == "alsn" else groups
        yield _phase(name, phase, trains, _levels(phase, recipe) if "pyramid" in groups else "")


def _phase(name: str, phase: Phase, groups: tuple[str, ...], levels: str) -> str:
    if not phase.epochs:
        return f"{name}: no epochs"
    rates = {group: rate for group, rate in vars(phase.lr).items() if group in groups and rate > 0}
    text = ", ".join(f"{group} at {rate:g}" for group, rate in rates.items()) or "nothing"
    return f"{name}: {phase.epochs} epochs; trains {text}" + (f"; levels {levels}" if levels else "")


def _levels(phase: Phase, recipe: Recipe) -> str:
    known = recipe.pyramid.vision_levels + recipe.pyramid.text_levels
    return " ".join(level for level in phase.levels if level in known)
