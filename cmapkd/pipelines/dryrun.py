"""What a submission would do, in words: tasks, phases, parameters, pods, output URLs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from cmapkd.pipelines import runs, size, suite_runs
from cmapkd.pipelines.components import TEACHER
from cmapkd.pipelines.own_data import size_notes
from cmapkd.pipelines.site import Pod
from cmapkd.pipelines.submission import NO_ROOT, Submission
from cmapkd.pipelines.suite import Suite
from cmapkd.pipelines.tasks import Task, own_recipe
from cmapkd_core import temporary
from cmapkd_core.catalog import EVALUATIONS
from cmapkd_core.config import STAGE_PHASES, Phase, Recipe, learns_policy
from cmapkd_core.fields import as_overrides
from cmapkd_core.fingerprints import trains
from cmapkd_core.folders import reads_folder
from cmapkd_core.method_specs import METHODS
from cmapkd_core.recipes import FULL, REFERENCE, ROWS
from cmapkd_core.request import recipe_of


def describe(job: Submission) -> str:
    """The text of `submit.py --dry-run`."""
    return describe_suite(job, job.suite) if job.suite else describe_run(job)


def describe_suite(job: Submission, suite: Suite) -> str:
    """Rows, the executions of each stage, and every task that runs with what it reads and who shares it."""
    full = recipe_of(job.request | {"ablation": FULL, "seed": ""})
    lines = [f"run {job.run}", "", *_parameters(job.request | job.arguments), *_root(job)]
    lines += [*_pairs(full, job), "", "rows"]
    for row in suite.rows:
        changes = as_overrides(ROWS[row])
        lines.append(f"  {row:24}{changes or 'the full method'}")
    lines += ["", counts(job)]
    if job.runs:
        lines += ["", f"runs in experiment {job.run}", *_runs(job)]
    lines += ["", "tasks, in order"]
    run_of = {name: run.name for run in job.runs for name in run.urls}
    for number, task in enumerate(job.plan.tasks, 1):
        users = next(one.cells for one in suite.shared if one.task.name == task.name)
        shared = f", shared by {len(users)}" if len(users) > 1 else ""
        where = f", run {run_of[task.name]}" if job.runs else ""
        lines += [f"  {number:3} {task.name}{where}{shared}", f"        reads {_reads(task, task.inputs.values())}"]
        lines += [f"        to    {job.urls[task.name]}"]
    return "\n".join(lines)


def _runs(job: Submission) -> Iterator[str]:
    """A suite's runs: what each waits for, how many tasks at a time, and what it comes to in a cluster."""
    now = job.now({})
    with temporary.folder() as folder:
        packages = suite_runs.packages(job, Path(folder))
        sizes = {name: size.measure(package) for name, package in packages.items()}
    for run in job.runs:
        if run.name not in sizes:
            yield f"  {run.name:24}nothing left to do"
            continue
        waits = list(runs.makers(run, job.runs, now.left))
        several = waits if len(waits) < 4 else [f"{len(waits)} runs"]
        before = ", ".join(one.name for one in runs.behind(run, job.runs, now))
        behind = f"; behind {before}" if before else ""
        waiting = f"; waits for {', '.join(several)}" if waits else ""
        yield f"  {run.name:24}{run.lanes} at a time{behind}{waiting}"
        yield f"  {'':24}{sizes[run.name]}" + ("" if sizes[run.name].fits else "  TOO LARGE FOR ONE RUN")


def counts(job: Submission) -> str:
    """A table of stage executions: what the suite takes, what is left of it, and one run for each row and seed."""
    suite = job.suite
    assert suite is not None
    running = {task.name for task in job.plan.tasks}
    every = Counter(one.stage for one in suite.shared)
    left = Counter(one.stage for one in suite.shared if one.task.name in running)
    rows = [(stage, every[stage], left[stage], naive) for stage, naive in suite.naive.items()]
    rows.append(("all", every.total(), left.total(), sum(suite.naive.values())))
    at_a_time = "one task at a time" if job.site.parallel == 1 else f"at most {job.site.parallel} tasks at a time"
    head = f"{suite.name}: {len(suite.rows)} rows x {len(suite.seeds)} seeds, {at_a_time}"
    titles = f"  {'stage executions':20}{'shared':>8}{'to do':>8}{'naive':>8}"
    note = "  naive: every row with every seed as a run of its own, one report for all"
    return "\n".join([head, titles, *(f"  {n:20}{a:8}{b:8}{c:8}" for n, a, b, c in rows), note])


def describe_run(job: Submission) -> str:
    """Parameters, what the row changes, and every stage."""
    row = job.arguments["ablation"]
    lines = [f"run {job.run}", "", *_parameters(job.arguments), *_root(job), *_pairs(job.recipes["run"], job)]
    lines += ["", f"changed by {row}", *_changes(row), "", "stages, in order"]
    for number, task in enumerate(job.plan.tasks, 1):
        note = f" (row {REFERENCE})" if task.row else ""
        note += ", again although complete" if job.plan.redo else ""
        lines.append(f"  {number:2} {task.name}{note}")
        lines += [f"       {line}" for line in _about(task, job)]
    if not job.local:
        lines += ["", f"in a cluster: {_size(job)}"]
    return "\n".join(lines)


def _pairs(recipe: Recipe, job: Submission) -> list[str]:
    lines = size_notes(recipe, job.pairs)
    return ["", "your pictures", *(f"  {line}" for line in lines)] if lines else []


def _size(job: Submission) -> str:
    with temporary.folder() as folder:
        measured = size.measure(job.package(Path(folder) / "pipeline.yaml"))
    return str(measured) if measured.fits else f"{measured}: TOO LARGE FOR ONE RUN"


def _about(task: Task, job: Submission) -> Iterator[str]:
    yield from _work(task, job.recipes["reference" if task.row else "run"])
    pod: Pod = getattr(job.site.pods, task.pod)
    inputs = [*task.inputs.values(), *(value for name, value in task.values.items() if name == "model")]
    yield f"reads {_reads(task, inputs)}"
    ranks = f", torchrun with {pod.ranks}" if task.pod == "train" and pod.ranks > 1 else ""
    ranks += f", on {pod.nodes} such pods as a TrainJob" if task.pod == "train" and pod.nodes > 1 else ""
    ranks += ", as a TrainJob" if task.pod == "train" and pod.trainjob and pod.nodes == 1 else ""
    yield f"runs  {'on this machine' if job.local else _pod(pod)}{ranks}"
    yield f"to    {job.urls[task.name]}"


def _reads(task: Task, inputs: Iterable[str]) -> str:
    """What a task reads, in words; of one that only collects the number of artifacts."""
    if task.collects and not task.inputs:
        return f"{len(task.collects)} artifacts"
    return ", ".join([*inputs, *task.collects.values()]) or "the source"


def _parameters(strings: dict[str, str]) -> list[str]:
    return ["parameters", *(f"  {name:13}{value or '(empty)'}" for name, value in strings.items())]


def _root(job: Submission) -> list[str]:
    """What stands in the places below where no root is given."""
    if job.arguments["root"]:
        return []
    return [
        "",
        f"{NO_ROOT} below is the root, which nothing names yet: give --root s3://bucket/prefix, fill in `root` in",
        "site.toml (site.example.toml explains it), or run it on this machine with --local",
    ]


def _changes(row: str) -> list[str]:
    return [f"  {name} = {value}" for name, value in ROWS[row].items()] or ["  nothing"]


def _pod(pod: Pod) -> str:
    mounts = f", /dev/shm {pod.shm}" if pod.shm else ""
    mounts += f", /tmp {pod.scratch}" if pod.scratch else ""
    return f"{pod.gpus} GPU, {pod.cpu} cores, {pod.memory}{mounts}, at most {pod.hours:g} h"


def _work(task: Task, recipe: Recipe) -> Iterator[str]:
    """One line per phase, or what the task does."""
    if task.pod == "prepare":
        limit = f", its first {recipe.data.size} rows" if recipe.data.size and not task.data else ""
        part = "part {part} of {of} of ".format(**task.values) if task.passing else ""
        yield f"{part}source {task.data or f'{recipe.data.source} {recipe.data.url}'}".rstrip() + limit
    elif task.component is TEACHER:
        model, fit = own_recipe(task, recipe).teacher, own_recipe(task, recipe).teacher_fit
        yield f"teacher {model.model} ({model.weights}), batch {fit.batch}"
        yield _phase("space", fit.space, ("heads",), "")
        yield _phase("pyramid", fit.pyramid, ("pyramid",), "all")
    elif "stage" in task.values:
        yield from _training(task.values["stage"], recipe)
    elif task.name == "levels":
        yield f"levels of teacher and student on split {recipe.evaluate.split}"
    elif task.pod == "evaluate":
        yield from _evaluations(task, recipe)


def _evaluations(task: Task, recipe: Recipe) -> Iterator[str]:
    """What is measured; of a folder that nobody has opened yet also what may turn out to have nothing to be asked."""
    named = task.values.get("task")
    yield f"{named or ', '.join(recipe.evaluate.tasks)} on split {recipe.evaluate.split}"
    for one in () if named or not reads_folder(recipe.data.source) else recipe.evaluate.tasks:
        if wants := EVALUATIONS[one].wants:
            yield f"{one} is left out where the pictures have no {wants}"


def _training(stage: str, recipe: Recipe) -> Iterator[str]:
    groups = METHODS[recipe.method.name].groups
    if not learns_policy(recipe):
        groups = tuple(group for group in groups if group != "selector")
    if stage == "warmup":
        lift = f", image tokens lifted to {recipe.student.lift} channels" if recipe.student.lift else ""
        yield f"student {recipe.student.model} ({recipe.student.weights}){lift}"
        yield f"method {recipe.method.name}, batch {recipe.optim.batch}"
    if not trains(recipe, stage):
        yield "hands the warm-up's artifact on: no policy of level weights to train"
        return
    for name in STAGE_PHASES[stage]:
        phase: Phase = getattr(recipe.schedule, name)
        trained = ("selector",) if stage == "alsn" else groups
        yield _phase(name, phase, trained, _levels(phase, recipe) if "pyramid" in groups else "")


def _phase(name: str, phase: Phase, groups: tuple[str, ...], levels: str) -> str:
    if not phase.epochs:
        return f"{name}: no epochs"
    rates = {group: rate for group, rate in vars(phase.lr).items() if group in groups and rate > 0}
    text = ", ".join(f"{group} at {rate:g}" for group, rate in rates.items()) or "nothing"
    return f"{name}: {phase.epochs} epochs; trains {text}" + (f"; levels {levels}" if levels else "")


def _levels(phase: Phase, recipe: Recipe) -> str:
    known = recipe.pyramid.vision_levels + recipe.pyramid.text_levels
    return " ".join(level for level in phase.levels if level in known)
