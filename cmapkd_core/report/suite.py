"""A suite's numbers: rows over seeds, paired differences with the full method, gradient shares, costs. Pure data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cmapkd_core.config import METHODS, STAGE_PHASES, Recipe
from cmapkd_core.recipes import FULL, ROWS
from cmapkd_core.report.expectations import EXPECTED
from cmapkd_core.report.history import Point
from cmapkd_core.report.inputs import Missing, Source
from cmapkd_core.report.statistics import Interval, interval, paired
from cmapkd_core.report.table import COLUMNS, FACTS, KS, Column, Row, same

RECALLS = tuple(f"retrieval/{side}/R@{k}" for side in ("i2t", "t2i") for k in KS)
MEAN = Column("retrieval/mean", "Both ways", "mean of six")
TOP1 = "zeroshot/top1"
SHOWN = (*(c for c in COLUMNS if c.key in RECALLS), MEAN, *(c for c in COLUMNS if c.key == TOP1))
PLOTTED = {"retrieval/mean": "Mean of the six recalls", TOP1: "Zero-shot top-1"} | {
    f"retrieval/{side}/R@1": f"{title} R@1" for side, title in {"i2t": "Image to text", "t2i": "Text to image"}.items()
}
LABELS = {FULL: "full method"}
BASE = "kd"  # the row whose step time is 1, where a suite has it


@dataclass(frozen=True)
class Training:
    """One training: the joint stage's artifact, and the stages that led to it, first to last."""

    source: Source
    seconds: float = 0.0  # over its stages
    metrics: dict[str, float] = field(default_factory=dict)  # of the joint stage's manifest
    earlier: tuple[Source, ...] = ()


@dataclass(frozen=True)
class SuiteInputs:
    """A suite and its artifacts, any of which may be missing. Keys are (row, seed)."""

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


@dataclass(frozen=True)
class SuiteRow:
    """One row of the suite: column key -> seed -> value."""

    name: str
    label: str
    values: dict[str, dict[str, float]]
    seeds: tuple[str, ...]  # those that were measured
    missing: dict[str, str] = field(default_factory=dict)  # seed -> URL of the evaluation that is not complete

    def interval(self, key: str) -> Interval | None:
        """The mean over the row's seeds; None where nothing was measured."""
        values = list(self.values.get(key, {}).values())
        return interval(values) if values else None


@dataclass(frozen=True)
class SuiteTable:
    """All rows on the same images and captions. differences: row -> column key -> row minus the full method."""

    rows: list[SuiteRow]
    teacher: SuiteRow
    before: SuiteRow
    chance: Row
    facts: dict[str, float]
    columns: list[Column]
    differences: dict[str, dict[str, Interval]]

    def row(self, name: str) -> SuiteRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


def build(inputs: SuiteInputs) -> SuiteTable:
    """The table; an evaluation that is missing is a sentence of its row.

    Raises:
        InputError: evaluations of different splits or tasks stand side by side.
    """
    found: dict[str, dict[str, float]] = {}
    rows = [
        _row(name, LABELS.get(name, name), {s: inputs.evaluations[name, s] for s in inputs.seeds}, found)
        for name in inputs.rows
    ]
    teacher = _row("teacher", "teacher", {"": inputs.teacher}, found)
    before = _row("before", "student before training", inputs.before, found)
    facts = same({name: {k: m[k] for k in FACTS if k in m} for name, m in found.items()})
    chances = {name: {c.key: m[c.chance] for c in SHOWN if c.chance in m} for name, m in found.items()}
    chance = _with_mean(same(chances))
    columns = [c for c in SHOWN if any(c.key in row.values for row in (*rows, teacher, before))]
    return SuiteTable(rows, teacher, before, Row("chance", "chance", "", chance), facts, columns, _differences(rows))


def _row(name: str, label: str, sources: Mapping[str, Source], found: dict[str, dict[str, float]]) -> SuiteRow:
    """A row from its evaluations by seed; what was read is added to `found`."""
    values: dict[str, dict[str, float]] = {}
    missing, measured = {}, []
    for seed, source in sources.items():
        try:
            metrics = source.json("metrics.json")
        except Missing:
            missing[seed] = source.url
            continue
        found[f"{name} {seed}".strip()] = metrics
        measured.append(seed)
        for key, value in _with_mean(metrics).items():
            values.setdefault(key, {})[seed] = value
    return SuiteRow(name, label, values, tuple(measured), missing)


def _with_mean(metrics: Mapping[str, float]) -> dict[str, float]:
    """The numbers with the mean of the six recalls, where there are six."""
    recalls = [metrics[key] for key in RECALLS if key in metrics]
    return {**metrics, **({MEAN.key: float(np.mean(recalls))} if len(recalls) == len(RECALLS) else {})}


def _differences(rows: Iterable[SuiteRow]) -> dict[str, dict[str, Interval]]:
    rows = list(rows)
    base = next((row for row in rows if row.name == FULL), None)
    if base is None:
        return {}
    every = {}
    for row in rows:
        if row.name != FULL:
            pairs = {c.key: paired(row.values.get(c.key, {}), base.values.get(c.key, {})) for c in SHOWN}
            every[row.name] = {key: found for key, found in pairs.items() if found}
    return every


def shares(inputs: SuiteInputs) -> dict[str, dict[str, float]]:
    """Row -> term -> its share of the gradient in the last phase that has one, in percent, a mean over seeds."""
    found: dict[str, dict[str, float]] = {}
    for row in inputs.rows:
        terms: dict[str, list[float]] = {}
        for seed in inputs.seeds:
            trace = [point for point in _points(inputs.trainings[row, seed].source) if point.get("shares")]
            last = [point["shares"] for point in trace if point["phase"] == trace[-1]["phase"]]
            for term in {term for point in last for term in point}:
                terms.setdefault(term, []).append(100 * float(np.mean([point.get(term, 0.0) for point in last])))
        found[row] = {term: float(np.mean(values)) for term, values in sorted(terms.items()) if any(values)}
    return found


def _points(source: Source) -> list[Point]:
    try:
        points: list[Point] = source.json("history.json")["points"]
    except Missing:
        return []
    return points


@dataclass(frozen=True)
class Cost:
    """What a row takes, as measured in its artifacts; None where they do not say."""

    row: str
    method: str
    deviations: str
    inference: float | None  # parameters of both towers
    trained: float | None  # parameters that were trained, the method's own among them
    updates: tuple[int, ...]  # of the student, each number that its seeds had
    seconds: float | None  # of training over all its stages, mean over seeds
    step: float | None  # seconds of an update, median of the last student phase, mean over seeds
    relative: float | None = None  # to the row BASE, or else to the full method


def costs(inputs: SuiteInputs, table: SuiteTable) -> list[Cost]:
    """One line a row."""
    found = [_cost(inputs, table.row(row)) for row in inputs.rows]
    steps = {cost.row: cost.step for cost in found}
    base = steps.get(BASE) or steps.get(FULL)
    return [dataclasses.replace(c, relative=c.step / base if c.step and base else None) for c in found]


def _cost(inputs: SuiteInputs, row: SuiteRow) -> Cost:
    recipe = inputs.methods[row.name]
    trainings = [inputs.trainings[row.name, seed] for seed in inputs.seeds if inputs.trainings[row.name, seed].seconds]
    sizes = [row.interval(f"parameters/{tower}") for tower in ("image", "text")]
    updates = {sum(_updates(source, recipe) for source in (*t.earlier, t.source)) for t in trainings}
    return Cost(
        row.name,
        recipe.method.name,
        METHODS[recipe.method.name].deviations,
        sum(size.mean for size in sizes if size) if all(sizes) else None,
        _mean(t.metrics.get("parameters/trained") for t in trainings),
        tuple(sorted(updates)),
        _mean(t.seconds for t in trainings),
        _mean(_step(t.source, recipe) for t in trainings),
    )


def _updates(source: Source, recipe: Recipe) -> int:
    """Optimiser updates of the student in one stage: the last step of those phases that are not the selector's."""
    steps = [p["step"] for p in _points(source) if p["phase"] not in STAGE_PHASES["alsn"]]
    return max(steps, default=0) // recipe.optim.accumulate


def _step(source: Source, recipe: Recipe) -> float | None:
    """Seconds of an update in the joint stage."""
    speeds = [p["samples_per_second"] for p in _points(source) if p.get("samples_per_second")]
    return recipe.optim.batch / float(np.median(speeds)) if speeds else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def changes(row: str) -> str:
    """What a row changes in the recipe, as overrides."""
    return " ".join(f"{name}={_text(value)}" for name, value in ROWS[row].items())


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def expected(inputs: SuiteInputs) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]] | None:
    """The paper's expectations for the suite's rows, where they were asked for and there are any."""
    return EXPECTED.get(inputs.suite) if inputs.expectations else None


def as_json(inputs: SuiteInputs, table: SuiteTable, text: Callable[[SuiteTable], str]) -> dict[str, Any]:
    """Everything for programs: values by seed, intervals, differences, shares, costs, and where each is from."""
    keys = [column.key for column in table.columns]
    means = {row.name: {k: _plain(row.interval(k)) for k in keys} for row in table.rows}
    return {
        "suite": inputs.suite,
        "run": inputs.run,
        "recipe": inputs.recipe.name,
        "overrides": inputs.overrides,
        "seeds": inputs.seeds,
        "columns": keys,
        "rows": [dataclasses.asdict(row) | {"means": means[row.name]} for row in table.rows],
        "teacher": dataclasses.asdict(table.teacher),
        "before": dataclasses.asdict(table.before),
        "chance": table.chance.values,
        "facts": table.facts,
        "compared_with": FULL,
        "differences": {n: {k: _plain(d) for k, d in row.items()} for n, row in table.differences.items()},
        "gradient_shares": shares(inputs),
        "costs": [dataclasses.asdict(cost) for cost in costs(inputs, table)],
        "executions": {"shared": inputs.executions, "naive": inputs.naive},
        "urls": urls(inputs),
        "text": text(table),
    }


def urls(inputs: SuiteInputs) -> dict[str, str]:
    """Where every number is from: `evaluation ROW/SEED` and so on -> URL; what was not given is left out."""
    named = {"teacher": inputs.teacher.url}
    named |= {f"before/{seed}": source.url for seed, source in inputs.before.items()}
    for kind, sources in (
        ("evaluation", inputs.evaluations),
        ("training", {cell: one.source for cell, one in inputs.trainings.items()}),
    ):
        named |= {f"{kind} {row}/{seed}": source.url for (row, seed), source in sources.items()}
    return {name: url for name, url in named.items() if url}


def _plain(found: Interval | None) -> dict[str, Any] | None:
    if found is None:
        return None
    ends = {"low": found.low, "high": found.high, "n": found.n, "excludes_zero": found.excludes_zero}
    return {"mean": found.mean, **ends}
