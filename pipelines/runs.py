"""The runs of Kubeflow Pipelines that a suite is made of: what rows share, then a run for every row, last the report.

One workflow cannot hold a suite: Argo ends a workflow of more than a mebibyte, and the UI's Retry answers only for
one of about thirty finished tasks (pipelines/size.py). So no run has more than TASKS. What a run reads of others it
takes from their places, and its first task, a gate, waits until it is there (cmapkd_core/stages/gate.py).

Over all runs as many tasks work at a time as the site allows: what is shared uses all of them, then the rows' runs
stand in lanes, in each of which one follows the other.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from components import GATE
from pipelines.suite import REPORT, Shared, Suite, in_lanes
from pipelines.tasks import Task

TASKS = 25  # of a run at most, its gate among them
WAIT = "gate"
SHARED, LAST = "shared", "report"
GATES = Task(WAIT, GATE, "gate", values={"waits": "", "follows": ""})


@dataclass(frozen=True)
class Run:
    """One run of a suite. lanes: tasks of it at a time. follows: the run that ends before it begins, well or not."""

    name: str
    shared: tuple[Shared, ...]
    lanes: int = 1
    follows: str = ""

    @property
    def urls(self) -> dict[str, str]:
        """URLs of its artifacts by task."""
        return {one.task.name: one.url for one in self.shared}


def split(suite: Suite, parallel: int) -> tuple[Run, ...]:
    """The runs of a suite, each after those that it reads from; which they are does not depend on what is finished."""
    common = [one for one in suite.shared if one.stage != REPORT and len(_rows(one)) > 1]
    firsts = _chain(_pieces(SHARED, common), parallel)
    rows = [run for row in suite.rows for run in _pieces(row, _by_seed(suite, row))]
    last = Run(LAST, tuple(one for one in suite.shared if one.stage == REPORT))
    return (*firsts, *_side_by_side(rows, parallel, firsts[-1].name if firsts else ""), last)


def _rows(one: Shared) -> set[str]:
    return {row for row, _ in one.cells}


def _by_seed(suite: Suite, row: str) -> list[Shared]:
    """The tasks of one row alone: those of several seeds first, then seed by seed, so that a cut leaves seeds whole.

    What a task reads is needed by all that need the task: the order stays a valid one.
    """
    own = [one for one in suite.shared if _rows(one) == {row}]

    def place(one: Shared) -> int:
        seeds = {seed for _, seed in one.cells}
        return suite.seeds.index(min(seeds, key=suite.seeds.index)) if len(seeds) == 1 else -1

    return sorted(own, key=place)


def _pieces(name: str, tasks: Sequence[Shared]) -> list[Run]:
    """The tasks in runs of at most TASKS with their gates, cut between seeds where a seed fits into one."""
    room = TASKS - 1
    groups: list[list[Shared]] = []
    for one in tasks:
        if not groups or len(groups[-1]) == room or (one.cells != groups[-1][-1].cells):
            groups.append([])
        groups[-1].append(one)
    pieces: list[list[Shared]] = []
    for group in groups:
        if not pieces or len(pieces[-1]) + len(group) > room:
            pieces.append([])
        pieces[-1] += group
    return [Run(name if n == 0 else f"{name}-{n + 1}", tuple(piece)) for n, piece in enumerate(pieces)]


def _chain(runs: Sequence[Run], lanes: int) -> tuple[Run, ...]:
    """One after the other, each with all lanes."""
    names = ["", *(run.name for run in runs)]
    return tuple(replace(run, lanes=lanes, follows=before) for run, before in zip(runs, names, strict=False))


def _side_by_side(runs: Sequence[Run], parallel: int, after: str) -> tuple[Run, ...]:
    """The runs in lanes after `after`: the lane that gets free first takes the next one.

    Where there are fewer runs than tasks at a time, runs have several tasks at a time.
    """
    if not runs:
        return ()
    lanes = min(parallel, len(runs))
    width = [parallel // lanes + (lane < parallel % lanes) for lane in range(lanes)]
    free = [(0.0, lane, after) for lane in range(lanes)]  # a heap: when, which, behind which run
    placed = []
    for run in runs:
        begin, lane, before = heapq.heappop(free)
        placed.append(replace(run, lanes=width[lane], follows=before))
        cost = sum(one.cost for one in run.shared) / width[lane]
        heapq.heappush(free, (begin + cost, lane, run.name))
    return tuple(placed)


def makers(run: Run, runs: Sequence[Run], left: Collection[str]) -> dict[str, tuple[str, ...]]:
    """URLs that a run reads of other runs, by the run that makes them; of tasks that are `left` to do alone."""
    read = {name for one in run.shared if one.task.name in left for name in one.task.sources()}
    found = {}
    for other in runs:
        urls = [url for name, url in other.urls.items() if name in read and name in left]
        if urls and other.name != run.name:
            found[other.name] = tuple(dict.fromkeys(urls))
    return found


def tasks(
    run: Run, runs: Sequence[Run], left: Collection[str], root: str, ids: Mapping[str, str], suite: str
) -> tuple[Task, ...]:
    """The tasks of a run that are left, in its lanes, behind its gate where it waits for another run.

    Args:
        ids: KFP's ids of the runs that were started, by name.
        suite: the suite's run name, before the run's name.
    """
    ordered = in_lanes([one for one in run.shared if one.task.name in left], run.lanes)
    waits = [_entry(name, urls, root, ids, suite) for name, urls in makers(run, runs, left).items()]
    before = next((other for other in runs if other.name == run.follows and _left(other, left)), None)
    follows = "" if before is None else _dumped(_entry(before.name, _ends(before, left), root, ids, suite))
    if not waits and not follows:
        return ordered
    gate = replace(GATES, values={"waits": _dumped(waits), "follows": follows})
    here = {task.name for task in ordered}
    return (gate, *(task if _behind(task, here) else replace(task, after=(WAIT,)) for task in ordered))


def _behind(task: Task, here: Collection[str]) -> bool:
    """Whether it waits for another task of its run, and so for what that one waits for."""
    return bool({*task.sources(), *task.after} & set(here))


def _left(run: Run, left: Collection[str]) -> list[Shared]:
    return [one for one in run.shared if one.task.name in left]


def _ends(run: Run, left: Collection[str]) -> list[str]:
    """URLs of a run's tasks that are left: all of them there, it has nothing more to do."""
    return [one.url for one in _left(run, left)]


def _entry(name: str, urls: Sequence[str], root: str, ids: Mapping[str, str], suite: str) -> list[object]:
    return [called(suite, name), ids.get(name, ""), [url.removeprefix(root.rstrip("/") + "/") for url in urls]]


def called(suite: str, name: str) -> str:
    """What a run of a suite is called in Kubeflow Pipelines."""
    return f"{suite}.{name}"


def _dumped(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
