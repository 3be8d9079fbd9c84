"""What `submit.py --check` runs in the cluster: the very components of runs and suites, each in its kind of pod.

Every input and output of theirs is used, but the stage only looks whether it could work (stages/check.py): what KFP
makes of them, image, identity, network and GPUs are then those of a real run.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cmapkd.pipelines import client, endpoint, runs, suite
from cmapkd.pipelines.check_retries import Retries
from cmapkd.pipelines.cluster import Cluster, Unreadable
from cmapkd.pipelines.components import Component
from cmapkd.pipelines.ir import display_names
from cmapkd.pipelines.package import Plan, build, defaults, write_package
from cmapkd.pipelines.retries import Retry
from cmapkd.pipelines.site import Site
from cmapkd.pipelines.tasks import Task, tasks_of
from cmapkd_core import storage, temporary
from cmapkd_core.errors import DamagedInput, InputError
from cmapkd_core.places import OF_ITSELF, check_url
from cmapkd_core.recipes import resolve

TASK = "check-"  # before the stage
ARGUMENTS = "arguments"  # the line that is of a stage and not of its kind of pod
LINE = re.compile(rf"(?P<state>ok|failed) +(?P<name>image|root|{ARGUMENTS}|MLflow|GPUs|ranks|runs) +(?P<text>\S.*)")
ERROR = re.compile(r"(?P<usage>.*: )?error: (?!not ok: )(?P<text>\S.*)")  # a stage's own, or argparse's after its usage
OTHER_CODE = "; the image is not of this code: make images, and its line into the site file"
LOOKS = 3  # at a run that has ended and has tasks that seem to go on
MORE = "evaluate.sets=efficiency data.partitions=2"  # so that reports have something to collect, and data has parts


def tasks(site: Site) -> tuple[Task, ...]:
    """One task for each component that a run, or a suite with two rows, of the site's recipe has.

    Those that collect artifacts read what the others write, so that outputs are tried too; the others read nothing:
    each kind of pod is tried whatever becomes of the rest. In each kind one runs at a time, or two TrainJobs could
    wait for each other's half of the GPUs.

    Raises:
        InputError: no such recipe.
    """
    every = _every(site)
    tried = {task.name: _name(task.component) for task in every}
    last: dict[str, str] = {}  # of a kind of pod
    made = []
    for task in one_a_component([runs.GATES, *every]):
        after = (last[task.pod],) if task.pod in last else ()
        made.append(dataclasses.replace(_tried(task, site, tried), after=after))
        last[task.pod] = made[-1].name
    return tuple(made)


def _every(site: Site) -> list[Task]:
    """The tasks of a run, and those of a suite with two rows."""
    request = {"recipe": site.recipe, "overrides": MORE, "data": site.data}
    run = tasks_of(resolve(site.recipe, overrides=MORE, data=site.data))
    return [*run, *suite.lay_out("smoke", request, range(1), site.root, "").tasks]


def one_a_component(every: Iterable[Task]) -> list[Task]:
    """For each component one task, with all that any of its tasks gives: a report, say, of runs and suites."""
    firsts: dict[Component, Task] = {}
    for task in every:
        known = firsts.setdefault(task.component, task)
        given = {name: getattr(task, name) | getattr(known, name) for name in ("inputs", "values", "collects")}
        firsts[task.component] = dataclasses.replace(known, **given)
    return list(firsts.values())


def _name(component: Component) -> str:
    return TASK + component.stage.replace("_", "-")


def _tried(task: Task, site: Site, tried: Mapping[str, str]) -> Task:
    """A task with check in place of work; `tried` names for every task the one that has its component here."""
    component, name = task.component, _name(task.component)
    collects = {key: tried[of] for key, of in task.collects.items()}
    values = {argument: OF_ITSELF + argument for argument in (*task.inputs, *task.values)}
    check = f"{name}:{getattr(site.pods, task.pod).gpus}:{len(values) + len(collects)}"
    return Task(name, component, task.pod, values=values, collects=collects, check=check)


def pipeline(site: Site, minutes: float) -> Any:
    """The pipeline of a run with these tasks, without retries; a pod ends after `minutes`."""
    kinds = {field.name: getattr(site.pods, field.name) for field in dataclasses.fields(site.pods)}
    short = {kind: dataclasses.replace(pod, hours=minutes / 60) for kind, pod in kinds.items()}
    brief = dataclasses.replace(site, retry=Retry(count=0), pods=dataclasses.replace(site.pods, **short))
    return build(brief, Plan(tasks(site)), defaults(site))


class CheckRun:
    """The run in the cluster: started, followed to its end, printed."""

    def __init__(
        self,
        say: Callable[[str, str, str], None],
        api: endpoint.Client,
        site: Site,
        cluster: Cluster | None,
        interval: float,
    ) -> None:
        """`say` prints a line: its state (ok, failed or unknown), its name and its text."""
        self.say, self.api, self.site, self.cluster, self.interval = say, api, site, cluster, interval
        self.name = time.strftime("check-%Y%m%d-%H%M%S")
        self.id = ""
        self.names: dict[str, str] = {}  # display name by key in the package

    def whole(self, minutes: float) -> str:
        """Start it, wait, and print what each task found; returns how it ended.

        Raises:
            InputError: it did not succeed.
        """
        with temporary.folder() as folder:
            package = write_package(pipeline(self.site, minutes), Path(folder) / "check.yaml")
            self.names = display_names(package)
            self.id = client.start(self.api, self.site, self.name, package, {}, keep=False)
        page = client.link(self.site, self.id)
        print(f"{'':29}{self.name}: {page}", flush=True)
        retries = Retries(self.api, self.site, self.cluster, self.interval, self.name)
        retries.start(minutes)
        states, ended, reasons = self._follow(minutes)
        tried = tasks(self.site)
        if ended == "SUCCEEDED":  # the API has no tasks any more once Argo compresses their states
            states = {task.name: ended for task in tried} | states
        for kind in (field.name for field in dataclasses.fields(self.site.pods)):
            self._tell(kind, [task for task in tried if task.pod == kind], states, reasons)
        self.say(*retries.answer(wait=ended in client.FINAL))
        if ended != "SUCCEEDED":
            raise InputError(f"{self.name} {ended.lower()}: mend the failed lines; logs at {page}")
        return f"{self.name} succeeded"

    def _follow(self, minutes: float) -> tuple[dict[str, str], str, dict[str, str]]:
        """States of the tasks, of the run, and what keeps pods from running; a run that cannot end is ended."""
        deadline, looks = time.monotonic() + minutes * 60, 0
        while True:
            with endpoint.speaking_to(endpoint.address(self.site)):
                run = self.api.get_run(self.id)
            states = client.states(run, self.names)
            ended = run.state in client.FINAL
            if ended and (looks == LOOKS or not {"PENDING", "RUNNING"} & set(states.values())):
                return states, run.state, {}
            looks += ended  # KFP writes the tasks' states after the run's
            reasons, hopeless = ({}, False) if ended else self._stuck()
            if not ended and (hopeless or time.monotonic() > deadline):
                with endpoint.speaking_to(endpoint.address(self.site)):
                    self.api.terminate_run(self.id)
                return states, f"was ended after {minutes:g} minutes" if not hopeless else "was ended", reasons
            time.sleep(self.interval)

    def _stuck(self) -> tuple[dict[str, str], bool]:
        """Task or pod -> what keeps it from running, and whether one of them never will."""
        try:
            stuck = list(self.cluster.stuck(self.id)) if self.cluster else []
        except Unreadable:
            return {}, False
        return {pod: reason for pod, reason, _ in stuck}, any(never for *_, never in stuck)

    def _tell(self, kind: str, of_kind: list[Task], states: Mapping[str, str], reasons: Mapping[str, str]) -> None:
        """What the tasks of a kind of pod wrote, else logged, else what is known without that; equal lines once.

        A line that is not ok names its tasks, unless it is that of all.
        """
        lines: dict[tuple[str, str, str], list[str]] = {}
        for task in of_kind:
            logged = self._lines_of(task.name)
            for line in logged:
                own = line["name"] == ARGUMENTS
                label = f"stage {task.name.removeprefix(TASK)}" if own else f"pod {kind}"
                key = ("ok" if line["ok"] else "failed", label, f"{line['name']}: {line['text']}")
                lines.setdefault(key, []).append("" if own else task.name)
            if not (logged and _says_all(logged, states.get(task.name))):
                answer, text = self._beside(bool(logged), task, states, reasons)
                lines.setdefault((answer, f"pod {kind}", text), []).append(task.name)
        for (answer, label, text), names in sorted(
            lines.items(), key=lambda one: one[0][1]
        ):  # the pod, then its stages
            some = answer != "ok" and len(names) < len(of_kind)
            self.say(answer, label, f"{', '.join(names)} {text}".lstrip() if some else text)

    def _lines_of(self, name: str) -> list[dict[str, Any]]:
        try:
            return list(storage.read_object(check_url(self.site.root, self.name, name), {"lines": list})["lines"])
        except (FileNotFoundError, DamagedInput, storage.StorageError):
            return list(self._logged(name))

    def _beside(
        self, has_lines: bool, task: Task, states: Mapping[str, str], reasons: Mapping[str, str]
    ) -> tuple[str, str]:
        """ok, failed or unknown, and why, of a task whose lines are not there or do not say it all."""
        state = states.get(task.name, "not started")
        if state == "SUCCEEDED":
            return "ok", "succeeded; its lines are in its log"
        log = f"see {self._command('logs')}"
        if has_lines:
            return "failed", f"{state.lower()} though its stage was well: did KFP's own store take its outputs? {log}"
        if state == client.REFUSED:
            return "failed", f"{state.lower()}; {log}"
        others = [reason for name, reason in reasons.items() if not name.startswith(TASK)]
        if reason := reasons.get(task.name) or "; ".join(others):
            return "failed", f"{state.lower()}; {reason}"
        if missing := sorted(name for name in {*task.sources(), *task.after} if states.get(name) != "SUCCEEDED"):
            return "unknown", f"{state.lower()}: it waits for {', '.join(missing)}"
        return "failed", f"{state.lower()}; see its log, and: {self._command('describe pods')}"

    def _logged(self, name: str) -> Iterator[dict[str, Any]]:
        """The stage's lines from its pod's log, where Kubernetes shows it."""
        try:
            lines = self.cluster.log_lines(self.id, name) if self.cluster else []
        except Unreadable:
            return
        for line in lines:
            if match := LINE.match(line):
                yield {"ok": match["state"] == "ok", "name": match["name"], "text": match["text"]}
            elif match := ERROR.match(line):
                yield {"ok": False, "name": ARGUMENTS, "text": match["text"] + (OTHER_CODE if match["usage"] else "")}

    def _command(self, verb: str) -> str:
        more = " -c main --prefix --tail 3" if verb == "logs" else ""
        return f"kubectl {verb} -l pipeline/runid={self.id}{more} -n {self.site.namespace or 'kubeflow'}"


def _says_all(lines: Iterable[Mapping[str, Any]], state: str | None) -> bool:
    """Whether lines tell the end of a task: one that did not end well has a line that is not."""
    return state in ("SUCCEEDED", None) or not all(line["ok"] for line in lines)
