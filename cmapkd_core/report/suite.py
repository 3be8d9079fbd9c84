"""A suite's numbers: rows over seeds, and paired differences with the full method. Pure data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.recipes import FULL
from cmapkd_core.report import efficiency, measured
from cmapkd_core.report.assemble import Report
from cmapkd_core.report.expectations import EXPECTED
from cmapkd_core.report.inputs import Source
from cmapkd_core.report.measured import GEOMETRIC_RANK, MEAN_RECALL, RECALLS, Evaluation, Measured
from cmapkd_core.report.names import label
from cmapkd_core.report.papertable import Head
from cmapkd_core.report.statistics import Interval, paired

MEAN = f"retrieval/{MEAN_RECALL}"
RANK = f"retrieval/{GEOMETRIC_RANK}"
SIDES = {"i2t": "Image to text", "t2i": "Text to image"}
# Numbers that rows are compared by: TASK, number -> group and heading of its column.
COMPARED = {("retrieval", key): (SIDES[key[:3]], key[4:]) for key in RECALLS}
COMPARED |= {("retrieval", MEAN_RECALL): ("Both ways", "mean recall")}
COMPARED |= {
    ("retrieval", GEOMETRIC_RANK): ("Both ways", "geometric mean rank"),
    ("zeroshot", "top1"): ("Zero-shot", "top-1"),
}
COMPARED |= {("vqa", "overall"): ("VQA", "overall"), ("captioning", "CIDEr"): ("Captioning", "CIDEr")}


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


@dataclass(frozen=True)
class SuiteTable:
    """All rows on the same images and captions. differences: row -> number -> row minus the full method."""

    rows: list[Measured]
    teacher: Measured
    before: Measured
    chance: Measured
    facts: dict[str, float]
    differences: dict[str, dict[str, Interval]]

    def row(self, name: str) -> Measured:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def compared(self) -> dict[str, Head]:
        """The numbers that rows are compared by, as far as one was measured."""
        return {key: head for row in (*self.rows, self.teacher) for key, head in compared(row).items()}


def check_names(names: Iterable[str]) -> None:
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


def build(inputs: SuiteInputs) -> SuiteTable:
    """The table; an evaluation that is missing is a sentence of its row.

    Raises:
        InputError: evaluations of different data stand side by side.
    """
    rows = [
        _row(inputs, name, label(name), {s: inputs.evaluations[name, s] for s in inputs.seeds}) for name in inputs.rows
    ]
    teacher = _row(inputs, "teacher", "Teacher", {"": inputs.teacher}, "teacher")
    before = _row(inputs, "before", "Student before training", inputs.before)
    every = (*rows, teacher, before)
    return SuiteTable(rows, teacher, before, measured.chance(every), measured.facts(every), _differences(rows))


def _row(inputs: SuiteInputs, name: str, words: str, main: dict[str, Source], kind: str = "") -> Measured:
    found = [Evaluation("", seed, source) for seed, source in main.items()]
    found += [Evaluation(task, seed, source) for task, row, seed, source in _further(inputs) if row == name]
    return measured.measure(name, words, found, kind or ("ours" if name == FULL else ""))


def _further(inputs: SuiteInputs) -> Iterator[tuple[str, str, str, Source]]:
    """Task, row, seed ("" of what belongs to no seed) and source of every further evaluation."""
    for name, source in inputs.more.items():
        task, row, seed = (*name.split("/"), "")[:3]
        yield task, row, seed, source


def as_report(inputs: SuiteInputs, table: SuiteTable) -> Report:
    """The rows as the paper's tables want them: teacher, untrained student, then the suite's own order."""
    recipe = inputs.recipe
    return Report(
        (table.teacher, table.before, *table.rows),
        table.chance,
        table.facts,
        recipe.data.source,
        recipe.evaluate.split,
        efficiency.tools(source for task, _, _, source in _further(inputs) if task == efficiency.TASK),
        table.differences,
    )


def compared(row: Measured) -> dict[str, Head]:
    """The row's numbers that rows are compared by, with the headings of their columns."""
    found = {}
    for (task, metric), (group, words) in COMPARED.items():
        for name in row.names(task):
            if f"{name}/{metric}" in row.values:
                dataset = name.partition("-")[2]
                unit = "ranks" if metric == GEOMETRIC_RANK else "points"
                found[f"{name}/{metric}"] = Head(f"{group}, {dataset}" if dataset else group, words, unit)
    return found


def _differences(rows: list[Measured]) -> dict[str, dict[str, Interval]]:
    base = next((row for row in rows if row.name == FULL), None)
    if base is None:
        return {}
    every = {}
    for row in rows:
        if row.name != FULL:
            pairs = {key: paired(row.values.get(key, {}), base.values.get(key, {})) for key in compared(base)}
            every[row.name] = {key: found for key, found in pairs.items() if found}
    return every


def expected(inputs: SuiteInputs) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]] | None:
    """The paper's expectations for the suite's rows, where they were asked for and there are any."""
    return EXPECTED.get(inputs.suite) if inputs.expectations else None


def as_json(inputs: SuiteInputs, table: SuiteTable, text: Callable[[SuiteTable], str]) -> dict[str, Any]:
    """Everything for programs: values by seed, intervals, differences, and where each is from."""
    keys = list(table.compared())
    return {
        "suite": inputs.suite,
        "run": inputs.run,
        "recipe": inputs.recipe.name,
        "overrides": inputs.overrides,
        "seeds": inputs.seeds,
        "columns": keys,
        "rows": [_as_json(row) | {"means": {k: _plain(row.interval(k)) for k in keys}} for row in table.rows],
        "teacher": _as_json(table.teacher),
        "before": _as_json(table.before),
        "chance": {key: value for key, values in table.chance.values.items() for value in values.values()},
        "facts": table.facts,
        "compared_with": FULL,
        "differences": {n: {k: _plain(d) for k, d in row.items()} for n, row in table.differences.items()},
        "executions": {"shared": inputs.executions, "naive": inputs.naive},
        "urls": urls(inputs),
        "text": text(table),
    }


def _as_json(row: Measured) -> dict[str, Any]:
    kept = ("name", "label", "values", "seeds", "missing", "reasons")
    return {name: value for name, value in dataclasses.asdict(row).items() if name in kept}


def _plain(found: Interval | None) -> dict[str, Any] | None:
    if found is None:
        return None
    ends = {"low": found.low, "high": found.high, "n": found.n, "excludes_zero": found.excludes_zero}
    return {"mean": found.mean, **ends}


def urls(inputs: SuiteInputs) -> dict[str, str]:
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
