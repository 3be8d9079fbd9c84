"""The pipeline: which stage runs after which, and what it is given.

    prepare -> teacher -> warmup -> alsn -> joint -> evaluate-student -> report
    prepare, teacher -> reference-warmup -> reference-joint -> evaluate-reference -> report
    teacher -> evaluate-teacher -> report;  the recipe's untrained student -> evaluate-before -> report

The tasks depend on no value of a recipe, so one compiled package serves every recipe, ablation and seed.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# No `from __future__ import annotations` here: KFP reads the types of the pipeline's parameters.
from kfp import compiler, dsl, kubernetes

from cmapkd_core.config import Recipe
from cmapkd_core.fields import choose
from cmapkd_core.places import RECIPE_STUDENT, evaluation_url, report_url, stage_url
from cmapkd_core.recipes import REFERENCE
from components.evaluate import evaluate
from components.prepare import prepare
from components.report import report
from components.teacher import teacher, teacher_alone
from components.train import train, train_alone
from pipelines.site import Pod, Site

PARAMETERS = ("recipe", "ablation", "overrides", "seed", "data", "root", "tracking_uri", "image")


@dataclass(frozen=True)
class Task:
    """One box of the DAG. `inputs` name the tasks whose artifacts it reads, `values` are constants."""

    name: str
    component: Any
    pod: str
    inputs: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    reference: bool = False  # of the branch without a teacher, the row recipes.REFERENCE


ALONE = {teacher: teacher_alone, train: train_alone}  # on a site that gives a stage one rank

DATA = {"shards": "prepare"}
TAUGHT = {**DATA, "teacher": "teacher"}

TASKS = (
    Task("prepare", prepare, "prepare"),
    Task("teacher", teacher, "train", DATA),
    Task("warmup", train, "train", TAUGHT, {"stage": "warmup", "init": ""}),
    Task("alsn", train, "train", {**TAUGHT, "init": "warmup"}, {"stage": "alsn"}),
    Task("joint", train, "train", {**TAUGHT, "init": "alsn"}, {"stage": "joint"}),
    Task("evaluate-student", evaluate, "evaluate", {**DATA, "model": "joint"}),
    Task("reference-warmup", train, "train", TAUGHT, {"stage": "warmup", "init": ""}, reference=True),
    Task("reference-joint", train, "train", {**TAUGHT, "init": "reference-warmup"}, {"stage": "joint"}, reference=True),
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


@dataclass(frozen=True)
class Plan:
    """Which tasks run, and the URLs of those that an earlier submission finished."""

    tasks: tuple[Task, ...] = TASKS
    finished: dict[str, str] = field(default_factory=dict)
    run: str = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
    redo: str = ""  # "yes": the tasks run again although their artifacts are complete


def select(only: str = "", start: str = "") -> tuple[Task, ...]:
    """The one task named `only`, or the one named `start` with all that follow from it; both empty: all.

    Raises:
        InputError: no such task; names the nearest one.
    """
    table = {task.name: task for task in TASKS}
    if only:
        return (choose("stage", only, table),)
    if not start:
        return TASKS
    chosen = {choose("stage", start, table).name}
    for task in TASKS:  # in order, so that what precedes a task is decided before it
        if chosen & set(task.inputs.values()):
            chosen.add(task.name)
    return tuple(task for task in TASKS if task.name in chosen)


def output_urls(recipe: Recipe, reference: Recipe, root: str, run: str) -> dict[str, str]:
    """URL of every task's artifact, by the functions that the stages themselves use."""
    urls: dict[str, str] = {}
    for task in TASKS:
        ours = reference if task.reference else recipe
        if task.component is evaluate:
            model = task.values.get("model") or urls[task.inputs["model"]]
            urls[task.name] = evaluation_url(root, model, urls["prepare"], ours)
        elif task.component is report:
            urls[task.name] = report_url(root, run)
        else:
            urls[task.name] = stage_url(root, task.values.get("stage", task.name), ours)
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
        request = {"recipe": recipe, "overrides": overrides, "seed": seed, "data": data, "root": root}
        request |= {"tracking_uri": tracking_uri, "run": plan.run, "redo": plan.redo}
        outputs: dict[str, Any] = dict(plan.finished)
        for task in plan.tasks:
            pod: Pod = getattr(site.pods, task.pod)
            inputs = {name: outputs[source] for name, source in task.inputs.items()}
            row = REFERENCE if task.reference else ablation
            component = ALONE.get(task.component, task.component) if pod.ranks == 1 else task.component
            step = component(**request, ablation=row, **inputs, **task.values, **_launch(task, pod, site))
            _place(step.set_display_name(task.name).set_container_image(image), pod, site)
            outputs[task.name] = step.outputs["artifact"]

    return cmapkd


def compile_package(site: Site, path: Path, plan: Plan, form: dict[str, str]) -> Path:
    """Write the compiled pipeline (IR and platform configuration, YAML)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build(site, plan, form), str(path))
    return path


def _launch(task: Task, pod: Pod, site: Site) -> dict[str, str]:
    if task.component not in (teacher, train):
        return {}
    return {"processes": str(pod.ranks), "shutdown_timeout": str(site.shutdown_timeout)}


def _place(step: Any, pod: Pod, site: Site) -> None:
    """Resources, retries, secrets and scheduling of one task."""
    step.set_caching_options(False)  # our manifests decide what is done; KFP's cache does not see S3
    step.set_cpu_request(pod.cpu).set_cpu_limit(pod.cpu)
    step.set_memory_request(pod.memory).set_memory_limit(pod.memory)
    if pod.gpus:
        step.set_accelerator_type(site.accelerator).set_accelerator_limit(pod.gpus)
    if pod.shm:
        kubernetes.empty_dir_mount(step, "shm", "/dev/shm", medium="Memory", size_limit=pod.shm)
    retry = site.retry
    step.set_retry(retry.count, retry.wait, retry.factor, retry.longest)
    kubernetes.set_timeout(step, round(pod.hours * 3600))
    kubernetes.set_image_pull_policy(step, site.image_pull_policy)
    if site.image_pull_secrets:
        kubernetes.set_image_pull_secrets(step, list(site.image_pull_secrets))
    for name, value in site.env.items():
        step.set_env_variable(name, value)
    for secret in site.secrets:
        for name, key in secret.env.items():
            kubernetes.use_secret_as_env(step, secret.name, {key: name})
    _schedule(step, pod)


def _schedule(step: Any, pod: Pod) -> None:
    for label, value in pod.node_selector.items():
        kubernetes.add_node_selector(step, label, value)
    for taint in pod.tolerations:
        given = {name: text for name, text in vars(taint).items() if text}
        kubernetes.add_toleration(step, **given)
