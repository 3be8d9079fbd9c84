"""What failed of a suite's runs, retried in turns: no more tasks work at a time than those that it was started with.

A retry keeps what succeeded, gates too. So a run whose gate is done works at once, beside runs that it once followed
(runs.py). What each was started behind its gate says, in the package that KFP keeps: of two runs of which
one was behind the other both go on together only where the later one's gate runs again and holds it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cmapkd.pipelines import client, endpoint, suite
from cmapkd.pipelines.endpoint import Client
from cmapkd.pipelines.runs import LAST, WAIT, called
from cmapkd.pipelines.site import Site
from cmapkd.pipelines.started import to_paste
from cmapkd.pipelines.submission import finished
from cmapkd.pipelines.suite_runs import DELETED, ENDS, SuiteProgress, current_run, root_of, state_of
from cmapkd_core.errors import InputError
from cmapkd_core.records import read_record
from cmapkd_core.storage import StorageError


@dataclass
class Turns:
    """The runs of a suite, of which those that are `left` are retried when there is room for them.

    runs: as KFP last gave them; tasks: of each its tasks, as its package has them; both by the run's name.
    """

    api: Client
    site: Site
    name: str
    runs: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    left: list[str]
    printed: set[str] = field(default_factory=set)
    refused: list[endpoint.EndpointError] = field(default_factory=list)

    @property
    def ids(self) -> dict[str, str]:
        """KFP's ids of all runs that have not succeeded."""
        return {name: str(run.run_id) for name, run in self.runs.items() if run.state != "SUCCEEDED"}

    def take(self) -> list[str]:
        """Retry what there is room for now, each run once; returns their names."""
        if not self.left:
            return []
        for name, run_id in self.ids.items():
            self.runs[name].state = DELETED
            if run := current_run(self.api, self.site, run_id):
                self.runs[name] = run
        self.left = [name for name in self.left if self.runs[name].state in client.RETRIED]  # else by somebody else
        named = {name: self._named(name) for name in self.runs}
        held = {name for name, run in self.runs.items() if self._at_gate(name, run)}
        active = {name for name, run in self.runs.items() if run.state not in ENDS}
        taken = []
        for name in tuple(self.left):
            awaited = self._of_gate(name, "waits")
            if makers := [one for one in self.left if one in awaited]:  # its gate would close at once
                self._tell(name, makers, "it waits for what they make")
                continue
            if beside := [other for other in self.runs if other in active and clash(name, other, active, named, held)]:
                self._tell(name, beside, "together they would be more tasks at a time than the suite was started with")
                continue
            self.left.remove(name)
            if self._retry(name):
                active.add(name)
                taken.append(name)
        return taken

    def _named(self, name: str) -> set[str]:
        """The runs that a run's gate waits for, and those that it follows."""
        return self._of_gate(name, "waits") | self._of_gate(name, "follows")

    def _of_gate(self, name: str, given: str) -> set[str]:
        """The runs in what a run's gate is given as `waits`, who make what it waits for, or as `follows`."""
        entries = json.loads(constant(self.tasks[name], WAIT, given) or "[]")
        return {run.removeprefix(f"{self.name}.") for run, _, _ in entries} & set(self.runs)

    def _at_gate(self, name: str, run: Any) -> bool:
        """Whether its gate is still to be done; where KFP has no details any more it is taken for done."""
        keys = {key: WAIT for key, task in self.tasks[name].items() if client.display_name(key, task) == WAIT}
        if not client.details_of(run):
            return bool(keys) and run.state == "PENDING"
        return bool(keys) and client.states(run, keys).get(WAIT) not in ("SUCCEEDED", "SKIPPED")

    def _retry(self, name: str) -> bool:
        run, what = self.runs[name], "retried"
        try:
            client.retry(self.api, self.site, str(run.run_id))
        except endpoint.EndpointError as error:
            self.refused.append(error)
            what = f"{state_of(run)}, and not retried: {error}"
        except InputError as error:  # somebody else has retried it
            what = f"{state_of(run)}, and not retried: {error}"
        print(f"run {run.display_name} is {what}: {client.link(self.site, run.run_id)}", flush=True)
        return what == "retried"

    def _tell(self, name: str, others: Collection[str], why: str) -> None:
        if name not in self.printed:
            self.printed.add(name)
            after = ", ".join(called(self.name, other) for other in others)
            print(
                f"run {called(self.name, name)} is {state_of(self.runs[name])}, and has its turn after {after}: {why}",
                flush=True,
            )

    def again(self) -> str:
        """What to do about those that are left; "" where none is."""
        names = ", ".join(called(self.name, name) for name in self.left)
        return f"not retried yet: {names}; then: {to_paste('--retry', self.name)}" if names else ""

    def progress(self) -> SuiteProgress:
        """All that go on, or will, as one table. Of which tasks are done KFP has the details, else the manifests."""
        urls, old = self._places()
        counted = {
            name: [one for one in (client.display_name(*item) for item in self.tasks[name].items()) if one != WAIT]
            for name in self.ids
        }
        places = {name: {task: urls.get(task, "") for task in tasks} for name, tasks in counted.items()}
        return SuiteProgress(self.name, self.ids, places, old, turns=self)

    def _places(self) -> tuple[dict[str, str], dict[str, str]]:
        """URLs of the artifacts by task, and digests of those that are replaced; none where the record is not seen."""
        root = root_of(next(iter(self.runs.values())))
        try:
            record = read_record(root, self.name)
            seeds = suite.seeds_of(record)
            asked = constant(self.tasks.get(LAST, {}), suite.REPORT, "expectations")
            laid = suite.lay_out(record["suite"], record, seeds, root, self.name, asked)
        except (InputError, StorageError, KeyError):  # the submit command could not write it, or is not where it is
            return {}, {}
        return laid.urls, (finished(laid) or ({}, {}))[1]


def clash(one: str, other: str, active: Collection[str], named: Mapping[str, set[str]], held: Collection[str]) -> bool:
    """Whether two runs would work side by side of which one was started behind the other.

    Args:
        active: runs that go on, beside `one`. named: by run those that its gate names. held: those that have a gate
            which is still to be done.
    """
    going = {*active, one}

    def reaches(later: str, earlier: str, within: Collection[str], through: Collection[str]) -> bool:
        """Whether a way leads from the one to the other over the runs `within`, each step from a run of `through`."""
        visited: set[str] = set()
        todo = [later]
        while todo:
            here = todo.pop()
            steps = named[here] & set(within) if here in through else set()
            if earlier in steps:
                return True
            todo += steps - visited
            visited |= steps
        return False

    return any(
        reaches(later, earlier, named, named) and not reaches(later, earlier, going, held)
        for later, earlier in ((one, other), (other, one))
    )


def retry(api: Client, site: Site, name: str) -> Turns:
    """Retry the failed runs of a suite for which there is room, in the order in which they were started.

    Raises:
        InputError: no such suite, or none of its runs has failed.
        EndpointError: a run was refused; the others are retried.
    """
    runs = client.of_suite(api, site, name)
    if not runs:
        raise InputError(f"no run and no suite '{name}' at {endpoint.address(site)}: give the name that the UI shows")
    left = [called_ for called_, run in runs.items() if run.state in client.RETRIED]
    if not left:
        states = ", ".join(f"{run.display_name} {state_of(run)}" for run in runs.values())
        raise InputError(
            f"no run of suite {name} has failed: {states}; what is missing beside them the command that started the "
            "suite adds when it is given again"
        )
    with endpoint.speaking_to(endpoint.address(site)):
        tasks = {called_: client.spec_of(api, run) for called_, run in runs.items()}
    turns = Turns(api, site, name, runs, tasks, left)
    turns.take()
    for called_, run in turns.runs.items():
        if called_ not in left and run.state != "SUCCEEDED":
            print(f"run {run.display_name} is {state_of(run)}: {client.link(site, run.run_id)}", flush=True)
    if turns.refused:
        raise turns.refused[0]
    return turns


def constant(tasks: Mapping[str, Any], name: str, given: str) -> str:
    """A constant that the task of that name is given; "" where there is none."""
    task: Mapping[str, Any] = next((one for key, one in tasks.items() if client.display_name(key, one) == name), {})
    value = task.get("inputs", {}).get("parameters", {}).get(given, {})
    return str(value.get("runtimeValue", {}).get("constant", ""))
