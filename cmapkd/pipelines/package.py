"""A plan of which tasks run, and the package that KFP gets of it: its form, and each task's edges, argv and pod."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kfp import compiler, dsl, kubernetes

from cmapkd.pipelines import ir, retries, trainjob
from cmapkd.pipelines.components import Launch, alone, collected_name, spread, torchrun
from cmapkd.pipelines.site import COMPONENT, PART_OF, Pod, Site
from cmapkd.pipelines.tasks import Task
from cmapkd_core.fields import as_overrides, choose
from cmapkd_core.recipes import data_fields
from cmapkd_core.request import DEFAULTS, FORM

LABEL = 63  # characters of a label's value
LAUNCHER = Pod(cpu="1", memory="4Gi")  # the pod that starts those pods and waits
# The run form: its parameters, and what is said of each.
PARAMETERS = FORM | {"image": "Container image of all stages, by digest."}
ABOUT = "Distils a small CLIP model from a large one on your pairs."


@dataclass(frozen=True)
class Plan:
    """Which tasks run, and the URLs of those that an earlier submission finished."""

    tasks: tuple[Task, ...]
    finished: dict[str, str] = field(default_factory=dict)
    run: str = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
    redo: str = ""  # "yes": the tasks run again although their artifacts are complete


def select(tasks: Sequence[Task], only: str = "", start: str = "") -> tuple[Task, ...]:
    """The one task named `only`, or the one named `start` with all that follow from it; both empty: all.

    With them come those whose artifacts they read and that are gone by then (`Task.passing`).

    Raises:
        InputError: no such task; names the nearest one.
    """
    table = {task.name: task for task in tasks}
    if not (only or start):
        return tuple(tasks)
    chosen = {choose("stage", only or start, table).name}
    for task in tasks if start else ():  # in order, so that what precedes a task is decided before it
        if chosen & task.sources():
            chosen.add(task.name)
    chosen |= {source for name in chosen for source in table[name].sources() if table[source].passing}
    return tuple(task for task in tasks if task.name in chosen)


def without(tasks: Iterable[Task], urls: Mapping[str, str], chosen: Sequence[Task]) -> dict[str, str]:
    """URLs of the tasks that are not chosen, by name."""
    running = {task.name for task in chosen}
    return {task.name: urls[task.name] for task in tasks if task.name not in running}


def defaults(site: Site) -> dict[str, str]:
    """The form's values before anyone edits it."""
    return {name: getattr(site, name, DEFAULTS.get(name, "")) for name in PARAMETERS}


def build(site: Site, plan: Plan, form: Mapping[str, str], fixed: Mapping[str, str] | None = None) -> Any:
    """The KFP pipeline of a plan.

    Args:
        form: a value for each of PARAMETERS before anyone edits it.
        fixed: values that are not on the form: of a suite those that decide which of its tasks are equal.
    """
    known = dict(fixed or {})
    names = [name for name in PARAMETERS if name not in known]

    def cmapkd(*values: Any) -> None:
        given = known | dict(zip(names, values, strict=True))
        image = given.pop("image")
        connect(plan, site, given, image)

    one = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter(name, one, default=form[name], annotation=str) for name in names]
    cmapkd.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    arguments = "".join(f"    {name}: {PARAMETERS[name]}\n" for name in names)
    cmapkd.__doc__ = f"{ABOUT}\n\nArgs:\n{arguments}"
    return dsl.pipeline(name="cmapkd", description=ABOUT)(cmapkd)


def write_package(pipeline: Any, path: Path) -> Path:
    """Write a compiled pipeline (IR and platform configuration, YAML).

    Raises:
        InputError: a task that KFP could not start (ir.refuse_unresolved); nothing is written.
    """
    ir.refuse_unresolved(pipeline.pipeline_spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path))
    return path


def connect(plan: Plan, site: Site, request: Mapping[str, Any], image: Any) -> None:
    """Make the plan's tasks inside a KFP pipeline function, each with its edges, pod and argv.

    Args:
        request: the strings of request.FORM, or pipeline parameters.
    """
    outputs: dict[str, Any] = dict(plan.finished)
    steps: dict[str, Any] = {}
    for task in plan.tasks:
        pod: Pod = getattr(site.pods, task.pod)
        given = {**request, "run": plan.run + task.part, "redo": plan.redo or task.redo, "check": task.check}
        given |= own_strings(task)
        inputs = {name: outputs[source] for name, source in task.inputs.items()}
        inputs |= {collected_name(key): outputs[source] for key, source in task.collects.items()}
        made = task.component.made(task.name, _launch(task, pod), (*task.inputs, *task.values), task.collects)
        step = made(**given, **inputs, **task.values, **_ranks(task, pod, site, image))
        step.after(*(steps[name] for name in task.after if name in steps))
        here = replace(LAUNCHER, hours=pod.hours) if _spreads(task, pod) else pod
        _place(step.set_display_name(task.name).set_container_image(image), here, site)
        for label, value in {**PART_OF, COMPONENT: label_of(task.name)}.items():
            kubernetes.add_pod_label(step, label, value)
        steps[task.name], outputs[task.name] = step, step.outputs["artifact"]


def label_of(name: str) -> str:
    """A name as a label's value, which Kubernetes ends at 63 characters: a longer one keeps its start, and a digest."""
    if len(name) <= LABEL:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LABEL - len(digest) - 1].rstrip('-_.')}-{digest}"


def own_strings(task: Task) -> dict[str, str]:
    """What a task is given otherwise than the run."""
    # Data of its own is given as overrides: as in `own_recipe`, it wins over the run's.
    alone = " ".join(filter(None, (as_overrides(data_fields(task.data)), task.own_overrides)))
    given = {"own_overrides": alone} | ({} if task.overrides is None else {"overrides": task.overrides})
    return given | {name: value for name, value in (("ablation", task.row), ("seed", task.seed)) if value}


def _spreads(task: Task, pod: Pod) -> bool:
    return pod.as_trainjob and task.component.ranks


def _launch(task: Task, pod: Pod) -> Launch:
    """The way in which this site starts the task's ranks."""
    if _spreads(task, pod):
        return spread
    return torchrun if task.component.ranks and pod.ranks > 1 else alone


def _ranks(task: Task, pod: Pod, site: Site, image: Any) -> dict[str, Any]:
    if not task.component.ranks:
        return {}
    job = trainjob.describe(site, pod) if _spreads(task, pod) else ""
    return {"processes": str(pod.ranks), "shutdown_timeout": str(site.shutdown_timeout), "job": job, "image": image}


def _place(step: Any, pod: Pod, site: Site) -> None:
    """Resources, retries, secrets and scheduling of one task."""
    step.set_caching_options(False)  # our manifests decide what is done; KFP's cache does not see S3
    step.set_cpu_request(pod.cpu).set_cpu_limit(pod.cpu)
    step.set_memory_request(pod.memory).set_memory_limit(pod.memory)
    if pod.gpus:
        step.set_accelerator_type(site.accelerator).set_accelerator_limit(pod.gpus)
    if pod.shm:
        kubernetes.empty_dir_mount(step, "shm", "/dev/shm", medium="Memory", size_limit=pod.shm)
    if pod.scratch:
        kubernetes.empty_dir_mount(step, "tmp", "/tmp", size_limit=pod.scratch)
    retry = site.retry
    step.set_retry(retry.count, f"{retry.seconds}s", retry.factor, f"{retries.total(retry, pod.hours)}s")
    kubernetes.set_timeout(step, round(pod.hours * 3600))
    kubernetes.set_image_pull_policy(step, site.image_pull_policy)
    kubernetes.set_security_context(step, run_as_non_root=True)  # Pod Security's other wishes are KFP's own defaults
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
