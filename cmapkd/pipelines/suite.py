"""The tasks of a suite: the recipes of one table, each with several seeds, every equal stage once.

Each row and seed is laid out as the run that it would be alone. Tasks whose artifacts have the same URL (which
follows from what a stage reads of the recipe) are one task; a stage that hands its predecessor's artifact on has
its URL and so vanishes. All ends in one report. Which tasks are equal depends on recipe, overrides and data, so
these are fixed in a suite's package, and a suite is compiled for each submission.

KFP 2.17 limits parallelism in loops alone (`dsl.ParallelFor`), and a loop's body cannot depend on its item. So the
tasks of a run are put into as many lanes as it may have (`in_lanes`): a task waits for the one before it in its lane.
A failed task stops its lane, which costs nothing: KFP starts no new task of a run once one has failed
(kubeflow/pipelines#7330). The suite submitted again goes on from what is finished. Which runs it has in a cluster
says runs.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cmapkd.pipelines.components import REPORT as REPORTS
from cmapkd.pipelines.components import TEACHER
from cmapkd.pipelines.tasks import TASKS, Task, output_urls, own_evaluations, own_recipe, task_name, tasks_of_cell
from cmapkd_core.catalog import EVALUATIONS
from cmapkd_core.config import STAGE_PHASES, Recipe
from cmapkd_core.data.threads import in_order
from cmapkd_core.errors import InputError
from cmapkd_core.fields import as_overrides, choose, flatten
from cmapkd_core.models.named import embed_dim
from cmapkd_core.places import report_url
from cmapkd_core.recipes import FULL, OF_OTHER_WIDTHS, SUITE_NEEDS, SUITES, resolve, row_overrides
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.identities import changed

REPORT = "suite-report"
ASKS = 16  # manifests asked for at a time: a suite has hundreds, each a round trip
STAGES_OF_A_CELL = tuple(task.name for task in TASKS if task.suite)

Cell = tuple[str, str]  # row, seed


@dataclass(frozen=True)
class Shared:
    """A task of a suite. stage: its name in a run, or REPORT. cells: who needs it. cost: see in_lanes."""

    task: Task
    stage: str
    url: str
    cells: tuple[Cell, ...] = ()
    cost: float = 1.0


@dataclass(frozen=True)
class Suite:
    """A suite laid out; `shared` has each task once, after those that it reads, the report last."""

    name: str
    rows: tuple[str, ...]
    seeds: tuple[str, ...]
    shared: tuple[Shared, ...]
    stages: tuple[str, ...] = STAGES_OF_A_CELL  # what a row with a seed takes alone

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The pipeline's tasks."""
        return tuple(one.task for one in self.shared)

    @property
    def urls(self) -> dict[str, str]:
        """URLs of the artifacts by task."""
        return {one.task.name: one.url for one in self.shared}

    @property
    def naive(self) -> dict[str, int]:
        """Executions by stage if every cell were a run of its own, with one report for all."""
        return {**dict.fromkeys(self.stages, len(self.rows) * len(self.seeds)), REPORT: 1}


def seeds_of(request: Mapping[str, str]) -> range:
    """The seeds of a suite, from what is recorded of it: so many, from its recipe's on."""
    first = resolve(request["recipe"], FULL, request["overrides"], "", request["data"]).seed
    return range(first, first + int(request["seeds"]))


def check_rows(request: Mapping[str, str], check: Callable[[Recipe], None]) -> None:
    """Try every row of a suite.

    Args:
        check: raises InputError for a recipe that cannot run.

    Raises:
        InputError: no such suite, a field of 0 that the suite is about, or widths that leave it nothing to ask; a row
            that cannot run, which it names.
    """
    rows: tuple[str, ...] = choose("suite", request["suite"], SUITES)
    full = _row_recipe(FULL, request)
    for field, usual in SUITE_NEEDS.get(request["suite"], {}).items():
        if not (found := flatten(full)[field]):
            here, wanted = (as_overrides({field: value}) for value in (found, usual))
            raise InputError(f"suite {request['suite']} asks what {field} does, and has {here} here: --set {wanted}")
    if request["suite"] in OF_OTHER_WIDTHS and (width := _shared_width(full)):
        raise InputError(
            f"suite {request['suite']} is of a student whose embedding is not as wide as its teacher's, and both have "
            f"{width} numbers here: give another student, such as --set student.model=lite0-minilm3-narrow with recipe "
            "bench"
        )
    for row in rows:
        try:
            check(_row_recipe(row, request))
        except InputError as error:
            raise InputError(f"row {row} of suite {request['suite']}: {error}") from None


def _shared_width(recipe: Recipe) -> int:
    """Numbers of the embedding that student and teacher both have; 0 where they differ, or nothing here says it."""
    width = embed_dim(recipe.student.model)
    return width if width == embed_dim(recipe.teacher.model) and not recipe.teachers else 0


def _row_recipe(row: str, request: Mapping[str, str]) -> Recipe:
    """A row of a suite with the recipe's own seed."""
    return resolve(request["recipe"], row, row_overrides(row, request["overrides"]), "", request["data"])


def lay_out(
    name: str, request: Mapping[str, str], seeds: Sequence[int], root: str, run: str, expectations: str = ""
) -> Suite:
    """The suite's tasks for a recipe.

    Args:
        request: the strings recipe, overrides and data.
        expectations: "yes" puts the paper's expected numbers into a section of the report that says so.

    Raises:
        InputError: no such suite, or a row that the recipe cannot have.
    """
    rows: tuple[str, ...] = choose("suite", name, SUITES)
    cells = [(row, str(seed)) for seed in seeds for row in rows]
    overrides = {row: row_overrides(row, request["overrides"]) for row in rows}
    recipes = {(r, s): resolve(request["recipe"], r, overrides[r], s, request["data"]) for r, s in cells}
    places = {cell: _places(recipe, root) for cell, recipe in recipes.items()}
    users: dict[str, list[tuple[Cell, Task]]] = {}  # URL -> who needs it, the first one first
    for cell in cells:
        for task in tasks_of_cell(recipes[cell]):
            users.setdefault(places[cell][task.name], []).append((cell, task))
    names = {url: _name(needs[0][1].name, [cell for cell, _ in needs], cells) for url, needs in users.items()}
    shared = []
    for url, needs in users.items():
        cell, task = needs[0]
        who = tuple(dict.fromkeys(cell for cell, _ in needs))
        ours = replace(_as_first_asked(task, cell, names, places[cell]), overrides=overrides[cell[0]])
        shared.append(Shared(ours, task.name, url, who, _cost(task, recipes[cell])))
    first = tasks_of_cell(recipes[cells[0]])
    stages = tuple(task.name for task in first)
    report = _report(rows, [str(seed) for seed in seeds], names, places, own_evaluations(first))
    shared = _needed([*shared, Shared(report, REPORT, report_url(root, run, expectations))])
    suite = Suite(name, rows, tuple(str(seed) for seed in seeds), tuple(shared), stages)
    counts = {"executions": str(len(shared)), "naive": str(sum(suite.naive.values()))}
    report = replace(report, values={"suite": name, "expectations": expectations, **counts})
    return replace(suite, shared=(*shared[:-1], replace(shared[-1], task=report)))


def equal_rows(name: str, request: Mapping[str, str]) -> dict[str, str]:
    """Row -> the earlier row of the suite that has the same recipe here, so that the two would be one row twice."""
    found: dict[str, str] = {}
    seen: list[tuple[str, Recipe]] = []
    for row in SUITES[name]:
        recipe = _row_recipe(row, request)
        same = next((other for other, one in seen if one == recipe), "")
        if same:
            found[row] = same
        seen.append((row, recipe))
    return found


def _places(recipe: Recipe, root: str) -> dict[str, str]:
    """URL of every stage of one row with one seed."""
    return output_urls(tasks_of_cell(recipe), lambda task: own_recipe(task, recipe), root, run="")


def _name(stage: str, users: Sequence[Cell], cells: Sequence[Cell]) -> str:
    """The stage, with the first row and seed that need it unless all rows or all seeds do."""
    rows, seeds = ({cell[i] for cell in cells} for i in (0, 1))
    row, seed = users[0]
    parts = [stage]
    if {r for r, _ in users} != rows:
        parts.append(row)
    if {s for _, s in users} != seeds:
        parts.append(f"s{seed}")
    return task_name(*parts)


def _as_first_asked(task: Task, cell: Cell, names: Mapping[str, str], places: Mapping[str, str]) -> Task:
    """A run's task as the first cell that needs it gives it."""
    row, seed = cell
    inputs = {argument: names[places[source]] for argument, source in task.inputs.items()}
    collects = {key: names[places[source]] for key, source in task.collects.items()}
    name = names[places[task.name]]
    return replace(task, name=name, inputs=inputs, collects=collects, row=row, seed=seed, part=f".{row}-s{seed}")


def _report(
    rows: Sequence[str],
    seeds: Sequence[str],
    names: Mapping[str, str],
    places: Mapping[Cell, dict[str, str]],
    extra: Sequence[tuple[str, str, str]],
) -> Task:
    """The report reads every cell's evaluation and training; teacher and untrained student as the full method's.

    Args:
        extra: the evaluations of their own, as `own_evaluations` gives them.
    """
    base = FULL if FULL in rows else rows[0]

    def each(kind: str, stage: str) -> dict[str, str]:
        return {f"{kind}/{row}/{seed}": names[places[row, seed][stage]] for row in rows for seed in seeds}

    collects = each("evaluation", "evaluate-student") | each("training", "joint")
    collects |= {f"before/{seed}": names[places[base, seed]["evaluate-before"]] for seed in seeds}
    collects["teacher"] = names[places[base, seeds[0]]["evaluate-teacher"]]
    for called, role, stage in extra:
        if role == "teacher":
            collects[f"{called}/teacher"] = names[places[base, seeds[0]][stage]]
        elif called in EVALUATIONS and EVALUATIONS[called].once:
            collects |= {f"{called}/{row}": names[places[row, seeds[0]][stage]] for row in rows}
        else:
            collects |= each(called, stage)
    return Task(REPORT, REPORTS, "report", collects=collects)


def _needed(shared: Sequence[Shared]) -> list[Shared]:
    """The last task with all that it reads, directly or not."""
    wanted = {shared[-1].task.name}
    for one in reversed(shared):
        if one.task.name in wanted:
            wanted |= one.task.sources()
    return [one for one in shared if one.task.name in wanted]


def _cost(task: Task, recipe: Recipe) -> float:
    """Epochs over pairs, and one for starting: enough to balance lanes."""
    if task.component is TEACHER:
        fit = own_recipe(task, recipe).teacher_fit
        return 1.0 + fit.space.epochs + fit.pyramid.epochs
    phases = STAGE_PHASES.get(task.values.get("stage", ""), ())
    result: float = 1.0 + sum(getattr(recipe.schedule, phase).epochs for phase in phases if phase != "alsn")
    return result


def in_lanes(shared: Sequence[Shared], parallel: int) -> tuple[Task, ...]:
    """The tasks in `parallel` lanes, each task after the one before it in its lane; the order stays a valid one.

    List scheduling by the costs: the lane that gets free first takes the task that can begin first. Wrong costs make
    lanes wait, never more tasks run at a time.
    """
    lanes: list[tuple[float, int]] = [(0.0, lane) for lane in range(parallel)]  # a heap: when free, which
    names = {one.task.name for one in shared}
    last: dict[int, str] = {}
    ends: dict[str, float] = {}
    waiting, ordered = list(shared), []
    while waiting:
        free, lane = heapq.heappop(lanes)
        ready = [one for one in waiting if all(source in ends for source in one.task.sources() & names)]
        begins = [max([free, *(ends[source] for source in one.task.sources() & names)]) for one in ready]
        begin, chosen = min(zip(begins, ready, strict=True), key=lambda pair: pair[0])  # among equals the first
        waiting.remove(chosen)
        ordered.append(replace(chosen.task, after=(last[lane],) if lane in last else ()))
        last[lane], ends[chosen.task.name] = chosen.task.name, begin + chosen.cost
        heapq.heappush(lanes, (ends[chosen.task.name], lane))
    return tuple(ordered)


def standing(suite: Suite) -> tuple[dict[str, str], dict[str, str]]:
    """URLs of the tasks whose artifacts are complete and were made from what their inputs and files are now.

    What the stages would find out themselves, each in a process or pod of its own.

    Returns:
        them, and by URL the digests of manifests that are there and will be replaced.
    """
    digests: dict[str, str] = {}
    remade: set[str] = set()
    urls = suite.urls
    complete = manifests(urls)
    passing = {task.name for task in suite.tasks if task.passing}
    for task in suite.tasks:
        sources = task.sources() - passing
        if task.passing:
            continue
        if task.name not in complete or sources & remade:
            remade.add(task.name)
            continue
        if not sources <= set(digests):
            continue
        current, others = _read(task, complete[task.name].manifest["inputs"], digests)
        files = complete[task.name].manifest.get("files", {})
        if not current or changed(files, {name: one["url"] for name, one in files.items()})[0]:
            remade.add(task.name)
        elif all(_digest_at(made["url"]) == made["digest"] for made in others):
            digests[task.name] = complete[task.name].digest
    wanted = {source for task in suite.tasks if task.name not in digests for source in task.sources()}
    done = [*digests, *(passing - wanted)]  # what is gone by now was joined
    return {n: urls[n] for n in done}, {urls[n]: artifact.digest for n, artifact in complete.items() if n in remade}


def manifests(urls: Mapping[str, str]) -> dict[str, Artifact]:
    """Those of the artifacts by task that are complete."""
    artifacts = in_order(urls.values(), find, ASKS)
    return {name: one for name, one in zip(urls, artifacts, strict=True) if one is not None}


def _read(
    task: Task, read: Mapping[str, dict[str, str]], digests: Mapping[str, str]
) -> tuple[bool, list[dict[str, str]]]:
    """Whether an artifact was made from what the tasks' are now, and what it read that no task makes."""
    if task.component is REPORTS:  # under names of its own, and nothing else
        return {made["digest"] for made in read.values()} == {digests[source] for source in task.sources()}, []
    current = all(read[name]["digest"] == digests[of] for name, of in task.inputs.items() if name in read)
    return current, [made for name, made in read.items() if name not in task.inputs]


def _digest_at(url: str) -> str:
    """Of an input that no task makes, such as a data set of `data.against`; "" where it is gone."""
    artifact = find(url)
    return artifact.digest if artifact else ""
