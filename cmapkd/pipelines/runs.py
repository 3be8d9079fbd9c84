"""The runs of Kubeflow Pipelines that a suite is made of: what rows share, then a run for every row, last the report.

One workflow cannot hold a suite: Argo ends a workflow of more than a mebibyte, and the UI's Retry answers only for
one of about thirty finished tasks (size.py). So no run has more than TASKS_OF_A_RUN. What a run reads of
others it takes from their places, and its first task, a gate, waits until it is there (cmapkd_core/stages/gate.py).

Over all runs as many tasks work at a time as the site allows: what is shared uses all of them, then the rows' runs
stand in lanes, in each of which one follows the other.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cmapkd.pipelines.components import GATE
from cmapkd.pipelines.suite import REPORT, Shared, Suite, in_lanes
from cmapkd.pipelines.tasks import Task

TASKS_OF_A_RUN = 25  # of a run at most, its gate among them
WAIT = "gate"
SHARED, LAST = "shared", "report"
ALONE, DIGITS = -1, 12
GATES = Task(WAIT, GATE, "gate", values={"waits": "", "follows": ""})


@dataclass(frozen=True)
class Run:
    """One run of a suite. lanes: tasks of it at a time. follows: the run that ends before it begins, well or not.

    lane: of the runs that follow one another; ALONE has none beside it.
    """

    name: str
    shared: tuple[Shared, ...]
    lanes: int = 1
    follows: str = ""
    lane: int = ALONE

    @property
    def urls(self) -> dict[str, str]:
        """URLs of its artifacts by task."""
        return {one.task.name: one.url for one in self.shared}


@dataclass(frozen=True)
class Now:
    """What is known when runs are made.

    left: tasks that are to be done. ids: KFP's of the runs that were started, by name. going: those of them that work
    since an earlier submission. old: digests of the manifests that are to be replaced, by URL.
    """

    left: Collection[str]
    ids: Mapping[str, str] = field(default_factory=dict)
    going: Collection[str] = ()
    old: Mapping[str, str] = field(default_factory=dict)


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
    """The tasks in runs of at most TASKS_OF_A_RUN with their gates, cut between seeds where a seed fits into one."""
    room = TASKS_OF_A_RUN - 1
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
        placed.append(replace(run, lanes=width[lane], follows=before, lane=lane))
        cost = sum(one.cost for one in run.shared) / width[lane]
        heapq.heappush(free, (begin + cost, lane, run.name))
    return tuple(placed)


def makers(run: Run, runs: Sequence[Run], left: Collection[str]) -> dict[str, tuple[str, ...]]:
    """URLs that a run reads of other runs, by the run that makes them; of tasks that are `left` to do alone."""
    read = {name for one in run.shared if one.task.name in left for name in one.task.sources()}
    by_run = {}
    for other in runs:
        urls = [url for name, url in other.urls.items() if name in read and name in left]
        if urls and other.name != run.name:
            by_run[other.name] = tuple(dict.fromkeys(urls))
    return by_run


def behind(run: Run, runs: Sequence[Run], now: Now) -> list[Run]:
    """Runs that have ended before a run begins.

    The last one before it in its lane that has something to do, and those of its lane that work since an earlier
    submission.
    """
    table = {other.name: other for other in runs}
    before = table.get(run.follows)
    while before is not None and not _left(before, now):
        before = table.get(before.follows)
    beside = [one for one in runs if one.name in now.going and _one_lane(one, run)]
    return list({one.name: one for one in ([before] if before else []) + beside}.values())


def _one_lane(one: Run, other: Run) -> bool:
    return LAST not in (one.name, other.name) and (one.lane == other.lane or ALONE in (one.lane, other.lane))


def tasks(run: Run, runs: Sequence[Run], now: Now, root: str, suite: str) -> tuple[Task, ...]:
    """The tasks of a run that are left, in its lanes, behind its gate where it waits for another run.

    Args:
        suite: the suite's run name, before the run's name.
    """
    ordered = in_lanes(_left(run, now), run.lanes)

    def entries(urls: Mapping[str, Sequence[str]]) -> str:
        below = [[called(suite, n), now.ids.get(n, ""), [_place(url, root, now) for url in urls[n]]] for n in urls]
        return json.dumps(below, separators=(",", ":")) if below else ""

    waits = entries(makers(run, runs, now.left))
    follows = entries({one.name: [made.url for made in _left(one, now)] for one in behind(run, runs, now)})
    if not waits and not follows:
        return ordered
    gate = replace(GATES, values={"waits": waits, "follows": follows})
    here = {task.name for task in ordered}
    return (gate, *(task if _behind(task, here) else replace(task, after=(WAIT,)) for task in ordered))


def _place(url: str, root: str, now: Now) -> str:
    """Below the root; with # and its digest where the manifest there is not the one that is waited for."""
    old = now.old.get(url, "")
    return url.removeprefix(root.rstrip("/") + "/") + (f"#{old[:DIGITS]}" if old else "")


def _behind(task: Task, here: Collection[str]) -> bool:
    """Whether it waits for another task of its run, and so for what that one waits for."""
    return bool({*task.sources(), *task.after} & set(here))


def _left(run: Run, now: Now) -> list[Shared]:
    return [one for one in run.shared if one.task.name in now.left]


def called(suite: str, name: str) -> str:
    """What a run of a suite is called in Kubeflow Pipelines."""
    return f"{suite}.{name}"
