"""A suite in a cluster: its runs started, retried and followed as one. Which they are says pipelines/runs.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmapkd_core.errors import InputError
from pipelines import client, endpoint, size
from pipelines.endpoint import Client
from pipelines.runs import LAST, Run, called, makers
from pipelines.site import Site
from pipelines.submission import Submission

WAY_OUT = "Leave evaluations of their own out of evaluate.sets, and give them to a suite of another name (--run)."


def start(api: Client, job: Submission) -> dict[str, str]:
    """Start what is missing of a suite; returns KFP's ids by the name of its runs that go on.

    A run that still works is left alone, unless it waits for one that is started anew: then it can only fail, has
    done nothing yet, and is started anew too.

    Raises:
        InputError: a part is to run again that still works, or a package too large.
        EndpointError: the endpoint does not answer or refuses.
    """
    known = client.of_experiment(api, job.site, job.run)
    left = [name for run in job.runs for name in job.left(run)]
    ids: dict[str, str] = {}
    anew: set[str] = set()
    for run in job.runs:
        old: Any = known.get(called(job.run, run.name))
        works = old is not None and old.state not in client.FINAL
        done = run.name == LAST and not ids and old is not None and old.state == "SUCCEEDED" and not job.plan.redo
        if not job.left(run) or done:
            continue
        if works and job.plan.redo:
            raise InputError(f"run {old.display_name} still works: wait for its end, or end it in the UI")
        if works and not anew & set(makers(run, job.runs, left)):
            ids[run.name] = str(old.run_id)
            continue
        if works:
            client.stop(api, job.site, str(old.run_id))
        ids[run.name] = _start(api, job, run, ids)
        anew.add(run.name)
    _tell(job, ids, anew)
    return ids


def _start(api: Client, job: Submission, run: Run, ids: Mapping[str, str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        package = job.package(Path(folder) / "pipeline.yaml", plan=job.plan_of(run, ids))
        size.refuse_too_large(package, WAY_OUT)
        name = called(job.run, run.name)
        return client.start(api, job.site, name, package, job.arguments, keep=False, experiment=job.run)


def _tell(job: Submission, ids: Mapping[str, str], anew: set[str]) -> None:
    if not ids:
        print(f"suite {job.run}: nothing is missing", flush=True)
        return
    for run in job.runs:
        if run.name in ids:
            what = f"{len(job.left(run))} tasks" if run.name in anew else "goes on"
            print(f"run {called(job.run, run.name)}: {what}: {client.link(job.site, ids[run.name])}", flush=True)
    print(f"the suite goes on without this command; the same one again adds what is missing: {job.run}", flush=True)


def packages(job: Submission, folder: Path) -> dict[str, Path]:
    """The packages of all runs that have something to do, by name."""
    doing = [run for run in job.runs if job.left(run)]
    return {run.name: job.package(folder / f"{run.name}.yaml", plan=job.plan_of(run, {})) for run in doing}


def retry(api: Client, site: Site, name: str) -> dict[str, str]:
    """Retry all failed runs of a suite, in the order in which they were started; returns the ids of all that go on.

    Raises:
        InputError: no such suite, or none of its runs has failed.
    """
    found = client.of_experiment(api, site, name)
    if not found:
        raise InputError(f"no run and no suite '{name}' at {endpoint.address(site)}: give the name that the UI shows")
    failed = [run for run in found.values() if run.state in client.RETRIED]
    if not failed:
        states = ", ".join(f"{run.display_name} {(run.state or 'not started').lower()}" for run in found.values())
        raise InputError(f"no run of suite {name} has failed: {states}")
    for run in failed:
        client.retry(api, site, str(run.run_id))
        print(f"run {run.display_name} is retried: {client.link(site, run.run_id)}", flush=True)
    going = [run for run in found.values() if run.state != "SUCCEEDED"]
    return {run.display_name.removeprefix(f"{name}."): str(run.run_id) for run in going}


@dataclass
class Progress:
    """A suite as one table: for each run its state and how many of its tasks are done.

    Kubeflow Pipelines says which tasks are done while it has their details; it has none of larger runs. Then the
    artifacts' manifests say it. urls: of the artifacts by run and task; empty where they are not known here.
    """

    name: str
    ids: Mapping[str, str]
    urls: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    done: dict[str, set[str]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)

    def look(self, api: Client, site: Site) -> bool:
        """Ask for every run that has not ended, print the lines that changed; False once all have ended."""
        for run, run_id in self.ids.items():
            if self.states.get(run) not in client.FINAL:
                with endpoint.speaking_to(endpoint.address(site)):
                    found = api.get_run(run_id)
                self.states[run] = found.state or "PENDING"
                self.done.setdefault(run, set()).update(self._done(run, found))
            line = self.line(run)
            if self.told.get(run) != line:
                self.told[run] = line
                print(f"  {time.strftime('%H:%M:%S')} {line}", flush=True)
        return any(self.states[run] not in client.FINAL for run in self.ids)

    def line(self, run: str) -> str:
        """A run's line."""
        width = max(map(len, self.ids))
        every = len(self.urls.get(run, ()))
        count = f"{len(self.done[run]):3} of {every} tasks" if every else ""
        return f"{run:{width}}  {self.states[run].lower():10}{count}".rstrip()

    def _done(self, run: str, found: Any) -> set[str]:
        names = self.urls.get(run, {})
        if found.state == "SUCCEEDED":
            return set(names)
        if details := client.details_of(found):
            return set(names) & {one.display_name for one in details if one.state in ("SUCCEEDED", "SKIPPED")}
        if found.state == "PENDING":
            return set()
        return {name for name, url in names.items() if name not in self.done[run] and client.is_there(url)}


def follow(api: Client, site: Site, progress: Progress, interval: float = 15.0) -> dict[str, str]:
    """Print the progress until every run has ended; returns their last states by name.

    Raises:
        EndpointError: the endpoint failed for a while; the runs go on without us.
    """
    failures = 0
    while True:
        try:
            going = progress.look(api, site)
            failures = 0
        except endpoint.EndpointError as error:
            failures += 1
            if failures == client.PATIENCE or not error.passing:
                raise
            print(f"  {error}; asking again", flush=True)
            going = True
        if not going:
            return progress.states
        time.sleep(interval)
