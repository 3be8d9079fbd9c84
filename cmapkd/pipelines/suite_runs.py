"""A suite in a cluster: its runs started and followed as one. Which they are says runs.py."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from cmapkd.pipelines import client, endpoint, size
from cmapkd.pipelines.endpoint import Client
from cmapkd.pipelines.runs import Now, Run, called, makers
from cmapkd.pipelines.site import Site
from cmapkd.pipelines.submission import Submission
from cmapkd_core import temporary
from cmapkd_core.errors import InputError

WAY_OUT = (
    "Leave some out of evaluate.sets, and submit the same with those in evaluate.sets under another name (--run): what "
    "is trained stands, and is only evaluated."
)

DELETED = "DELETED"  # of a run that was taken away in the UI meanwhile
ENDS = (*client.FINAL, DELETED)


def start(api: Client, job: Submission) -> dict[str, str]:
    """Start what is missing of a suite; returns KFP's ids by the name of its runs that go on.

    A run that still works is left alone, unless it waits for one that is started anew: then it can only fail, has
    done nothing yet, and is started anew too.

    Raises:
        InputError: a part is to run again that still works, a run that works does not make all that is missing of it
            or works at another root, or a package too large; then nothing was started.
        EndpointError: the endpoint does not answer or refuses.
    """
    known = _here(client.of_suite(api, job.site, job.run), job)
    job = job if job.readable else _as_kfp_says(api, job, known)
    doing = [run for run in job.runs if job.left(run)]
    going = _going(api, job, doing, known)
    ids = {run.name: str(going[run.name].run_id) if run.name in going else _later(run.name) for run in doing}
    with temporary.folder() as folder:
        made = packages(job, Path(folder), job.now(ids, set(going)))
        for package in made.values():
            size.refuse_too_large(package, WAY_OUT)
        for run in doing:
            what = "goes on"
            if run.name in made:
                what = f"{len(job.left(run))} tasks"
                old: Any = known.get(run.name)
                if _works(old):
                    client.stop(api, job.site, str(old.run_id))
                ids[run.name] = _start(api, job, run, made[run.name], ids)
            print(f"run {called(job.run, run.name)}: {what}: {client.link(job.site, ids[run.name])}", flush=True)
    more = "the suite goes on without this command; the same one again adds what is missing"
    print(f"{more}: {job.run}" if doing else f"suite {job.run}: nothing is missing", flush=True)
    return ids


def _works(run: Any) -> bool:
    return run is not None and run.state not in (*client.FINAL, client.ENDING)


def root_of(run: Any) -> str:
    """The root that a run was started with."""
    given = run.runtime_config.parameters if run.runtime_config else None
    return str((given or {}).get("root", ""))


def _here(known: Mapping[str, Any], job: Submission) -> dict[str, Any]:
    """The runs at the submission's root.

    Raises:
        InputError: one works at another root, where it would be taken for one of this suite.
    """
    root = job.arguments["root"].rstrip("/")
    other = {name: run for name, run in known.items() if root_of(run).rstrip("/") != root}
    for run in filter(_works, other.values()):
        raise InputError(
            f"run {run.display_name} works at root {root_of(run)}: give this suite another name with --run"
        )
    return {name: run for name, run in known.items() if name not in other}


def _as_kfp_says(api: Client, job: Submission, known: Mapping[str, Any]) -> Submission:
    """The submission without the tasks of runs that succeeded: of a root that cannot be read KFP knows so much."""
    done = {task for run in known.values() if run.state == "SUCCEEDED" for task in _tasks(api, job.site, run)}
    left = tuple(task for task in job.plan.tasks if task.name not in done)
    if left and job.plan.tasks[-1] not in left:  # the report was made without what is missing
        left = (*left, job.plan.tasks[-1])
    return replace(job, plan=replace(job.plan, tasks=left))


def _tasks(api: Client, site: Site, run: Any) -> set[str]:
    with endpoint.speaking_to(endpoint.address(site)):
        return set(client.tasks_of(api, run).values())


def _going(api: Client, job: Submission, doing: Sequence[Run], known: Mapping[str, Any]) -> dict[str, Any]:
    """The runs that still work, and make what is missing, by name."""
    left = [name for run in doing for name in job.left(run)]
    going: dict[str, Any] = {}
    anew: set[str] = set()
    way = "wait for its end, or end it in the UI"
    for run in doing:
        old: Any = known.get(run.name)
        if _works(old) and job.plan.redo:
            raise InputError(f"run {old.display_name} still works: {way}")
        if not _works(old) or anew & set(makers(run, job.runs, left)):
            anew.add(run.name)
            continue
        made = _tasks(api, job.site, old)
        if rest := [name for name in job.left(run) if name not in made]:
            raise InputError(f"run {old.display_name} still works, and will not make {', '.join(rest)}: {way}")
        going[run.name] = old
    return going


def _later(name: str) -> str:
    """Stands in a package for the id of a run that is started before it."""
    return f"id.of.{name}."


def _start(api: Client, job: Submission, run: Run, package: Path, ids: Mapping[str, str]) -> str:
    text = package.read_text()
    for name, run_id in ids.items():
        text = text.replace(_later(name), run_id)
    package.write_text(text)
    return client.start(
        api, job.site, called(job.run, run.name), package, job.arguments, keep=False, experiment=job.run
    )


def packages(job: Submission, folder: Path, now: Now | None = None) -> dict[str, Path]:
    """The packages of all runs that have something to do and do not go on, by name."""
    now = now or job.now({})
    doing = [run for run in job.runs if job.left(run) and run.name not in now.going]
    return {run.name: job.package(folder / f"{run.name}.yaml", plan=job.plan_of(run, now)) for run in doing}


def state_of(run: Any) -> str:
    """A run's state in words."""
    return str(run.state or "not started").lower()


def current_run(api: Client, site: Site, run_id: str) -> Any:
    """A run as it is now; None where it was deleted."""
    try:
        with endpoint.speaking_to(endpoint.address(site)):
            return api.get_run(run_id)
    except endpoint.EndpointError as error:
        if error.status != 404:
            raise
        return None


class InTurn(Protocol):
    """Runs of a suite that are started while it is followed."""

    left: list[str]

    def take(self) -> list[str]:
        """Start what there is room for; returns their names."""

    def again(self) -> str:
        """What to do about those that are left."""


@dataclass
class SuiteProgress:
    """A suite as one table: for each run its state and how many of its tasks are done.

    Kubeflow Pipelines says which tasks are done while it has their details; it has none of larger runs. Then the
    artifacts' manifests say it. urls: of the artifacts by run and task; "" where they are not known here. old: of
    manifests that are replaced, as Submission.old. turns: of a retry, which runs of it are still to be retried.
    """

    name: str
    ids: Mapping[str, str]
    urls: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    old: Mapping[str, str] = field(default_factory=dict)
    turns: InTurn | None = None
    done: dict[str, set[str]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    printed: dict[str, str] = field(default_factory=dict)

    def look(self, api: Client, site: Site) -> bool:
        """Ask for every run that has not ended, print the lines that changed; False once all have ended."""
        for run in self.turns.take() if self.turns else ():
            self.states.pop(run, None)
        for run, run_id in self.ids.items():
            if self.states.get(run) not in ENDS:
                self._ask(api, site, run, run_id)
            line = self.line(run)
            if self.printed.get(run) != line:
                self.printed[run] = line
                print(f"  {time.strftime('%H:%M:%S')} {line}", flush=True)
        return any(self.states[run] not in ENDS for run in self.ids) or bool(self.turns and self.turns.left)

    def _ask(self, api: Client, site: Site, run: str, run_id: str) -> None:
        done = self.done.setdefault(run, set())
        current = current_run(api, site, run_id)
        self.states[run] = (current.state or "PENDING") if current else DELETED
        done.update(self._done(run, current) if current else ())

    def line(self, run: str) -> str:
        """A run's line."""
        width = max(map(len, self.ids))
        every = len(self.urls.get(run, ()))
        count = f"{len(self.done[run]):3} of {every} tasks" if every else ""
        return f"{run:{width}}  {self.states[run].lower():10}{count}".rstrip()

    def _done(self, run: str, current: Any) -> set[str]:
        names = self.urls.get(run, {})
        if current.state == "SUCCEEDED":
            return set(names)
        if details := client.details_of(current):
            return set(names) & {one.display_name for one in details if one.state in ("SUCCEEDED", "SKIPPED")}
        if current.state == "PENDING":
            return set()
        return {
            name
            for name, url in names.items()
            if url and name not in self.done[run] and client.is_there(url, self.old.get(url, ""))
        }


def follow(api: Client, site: Site, progress: SuiteProgress, interval: float = 15.0) -> dict[str, str]:
    """Print the progress until every run has ended; returns their last states by name.

    Raises:
        EndpointError: the endpoint failed for a while; the runs go on without us.
    """
    client.until_ended(lambda: progress.look(api, site), interval)
    return progress.states
