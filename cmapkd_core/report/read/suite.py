"""A suite's artifacts, and its rows over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.recipes import FULL
from cmapkd_core.report.read.artifacts import Source
from cmapkd_core.report.read.names import label
from cmapkd_core.report.read.results import (
    EFFICIENCY,
    GEOMETRIC_RANK,
    MEAN_RECALL,
    Evaluation,
    ModelResults,
    Results,
    chance,
    efficiency_tools,
    facts,
    measure,
)

MEAN = f"retrieval/{MEAN_RECALL}"
RANK = f"retrieval/{GEOMETRIC_RANK}"
# How artifacts are called, by what stands first and how many parts follow; any other begins with its TASK[-DATASET].
FORMS = {"evaluation": 2, "training": 2, "before": 1, "teacher": 0}
WRITTEN = "evaluation/ROW/SEED, training/ROW/SEED, before/SEED, teacher, TASK/ROW/SEED, TASK/ROW, TASK/teacher"


@dataclass(frozen=True)
class Training:
    """One training: the joint stage's artifact, and the stages that led to it, first to last."""

    source: Source
    seconds: float = 0.0  # over its stages
    metrics: dict[str, float] = field(default_factory=dict)  # of the joint stage's manifest
    earlier: tuple[Source, ...] = ()


@dataclass(frozen=True)
class SuiteInputs:
    """A suite and its artifacts, any of which may be missing. Keys are (row, seed); of `more` as the stage has them."""

    suite: str
    run: str
    recipe: Recipe
    overrides: str
    rows: tuple[str, ...]
    seeds: tuple[str, ...]
    methods: dict[str, Recipe]  # every row's recipe, with the first seed
    evaluations: dict[tuple[str, str], Source]
    trainings: dict[tuple[str, str], Training]
    before: dict[str, Source]
    teacher: Source
    executions: int
    naive: int
    expectations: bool = False
    more: dict[str, Source] = field(default_factory=dict)


def check_suite_names(names: Iterable[str]) -> None:
    """Refuse an artifact whose name says nothing of a suite.

    Raises:
        InputError: a name of no form that is WRITTEN, a row that has no evaluation, or no evaluation at all.
    """
    parts = {name: name.split("/") for name in names}
    rows = [*(part[1] for part in parts.values() if part[0] == "evaluation" and len(part) == 3), "teacher"]
    for name, (kind, *of) in parts.items():
        if len(of) not in ((FORMS[kind],) if kind in FORMS else (1, 2)) or not all(of):
            raise InputError(f"--artifacts: {name} is none of {WRITTEN}")
        if kind not in FORMS and of[0] not in rows:
            raise InputError(f"--artifacts: {name} is of no row that has an evaluation: {nearest(of[0], rows)}")
    if len(rows) == 1:
        raise InputError("--artifacts has no evaluation/ROW/SEED: a report needs at least one row with one seed")


def suite_results(inputs: SuiteInputs) -> Results:
    """Teacher, untrained student and the suite's rows, over seeds; of what is not measured `missing` names the URL.

    Raises:
        InputError: evaluations of different data stand side by side.
    """
    teacher = _row(inputs, "teacher", "Teacher", {"": inputs.teacher}, "teacher")
    before = _row(inputs, "before", "Student before training", inputs.before)
    trained = [
        _row(inputs, name, label(name), {s: inputs.evaluations[name, s] for s in inputs.seeds}) for name in inputs.rows
    ]
    every, recipe = (*trained, teacher, before), inputs.recipe
    tools = efficiency_tools(source for task, _, _, source in _further(inputs) if task == EFFICIENCY)
    rows = (teacher, before, *trained)
    return Results(rows, chance(every), facts(every), recipe.data.source, recipe.evaluate.split, tools)


def _row(inputs: SuiteInputs, name: str, words: str, main: dict[str, Source], kind: str = "") -> ModelResults:
    evaluations = [Evaluation("", seed, source) for seed, source in main.items()]
    evaluations += [Evaluation(task, seed, source) for task, row, seed, source in _further(inputs) if row == name]
    return measure(name, words, evaluations, kind or ("ours" if name == FULL else ""))


def _further(inputs: SuiteInputs) -> Iterator[tuple[str, str, str, Source]]:
    """Task, row, seed ("" of what belongs to no seed) and source of every further evaluation."""
    for name, source in inputs.more.items():
        task, row, seed = (*name.split("/"), "")[:3]
        yield task, row, seed, source


def suite_urls(inputs: SuiteInputs) -> dict[str, str]:
    """Where every number is from: `evaluation ROW/SEED` and so on -> URL; what was not given is left out."""
    named = {"teacher": inputs.teacher.url}
    named |= {f"before/{seed}": source.url for seed, source in inputs.before.items()}
    for kind, sources in (
        ("evaluation", inputs.evaluations),
        ("training", {cell: one.source for cell, one in inputs.trainings.items()}),
    ):
        named |= {f"{kind} {row}/{seed}": source.url for (row, seed), source in sources.items()}
    named |= {name: source.url for name, source in inputs.more.items()}
    return {name: url for name, url in named.items() if url}
