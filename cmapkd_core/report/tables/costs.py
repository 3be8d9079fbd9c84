"""What the rows of a suite take, and which terms move their students, from the artifacts of their training stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmapkd_core.config import STAGE_PHASES, Recipe
from cmapkd_core.fields import as_overrides
from cmapkd_core.method_specs import METHODS
from cmapkd_core.recipes import FULL, ROWS
from cmapkd_core.report.read.artifacts import Missing, Source
from cmapkd_core.report.read.history import Point
from cmapkd_core.report.read.results import ModelResults, Results
from cmapkd_core.report.read.suite_inputs import SuiteInputs
from cmapkd_core.report.significance import over_seeds

BASE = "kd"  # the row whose step time is 1, where a suite has measured it


@dataclass(frozen=True)
class RowCost:
    """What a row takes, as measured in its artifacts; None where they do not say."""

    row: str
    method: str
    deviations: str
    inference: float | None  # parameters of both towers
    trained: float | None  # parameters that were trained, the method's own among them
    updates: tuple[int, ...]  # of the student, each number that its seeds had
    seconds: float | None  # of training over all its stages, mean over seeds
    step: float | None  # seconds of an update, median of the last student phase, mean over seeds
    relative: float | None = None  # to the row that `base` names


def row_costs(inputs: SuiteInputs, results: Results) -> list[RowCost]:
    """One line a row."""
    costs = [_cost(inputs, results.row(row)) for row in inputs.rows]
    one = {cost.row: cost.step for cost in costs}.get(cost_base(costs))
    return [dataclasses.replace(c, relative=c.step / one if c.step and one else None) for c in costs]


def cost_base(costs: Iterable[RowCost]) -> str:
    """The row whose step takes 1: BASE where its steps were measured, or else the full method."""
    return BASE if any(cost.row == BASE and cost.step for cost in costs) else FULL


def _cost(inputs: SuiteInputs, row: ModelResults) -> RowCost:
    recipe = inputs.methods[row.name]
    trainings = [inputs.trainings[row.name, seed] for seed in inputs.seeds]
    whole = [training for training in trainings if training.seconds]
    size = over_seeds(row, "parameters/both")
    updates = {sum(_updates(source) for source in (*t.earlier, t.source)) for t in whole}
    return RowCost(
        row.name,
        recipe.method.name,
        METHODS[recipe.method.name].deviations,
        size.mean if size else None,
        _mean_of_known(t.metrics.get("parameters/trained") for t in trainings),
        tuple(sorted(updates)),
        _mean_of_known(t.seconds for t in whole),
        _mean_of_known(_step(t.source, recipe) for t in trainings),
    )


def gradient_shares(inputs: SuiteInputs) -> dict[str, dict[str, float]]:
    """Row -> term -> its share of the gradient in the last phase that has one, in percent, a mean over seeds."""
    by_row: dict[str, dict[str, float]] = {}
    for row in inputs.rows:
        terms: dict[str, list[float]] = {}
        for seed in inputs.seeds:
            trace = [point for point in _points(inputs.trainings[row, seed].source) if point.get("shares")]
            last = [point["shares"] for point in trace if point["phase"] == trace[-1]["phase"]]
            for term in {term for point in last for term in point}:
                terms.setdefault(term, []).append(100 * float(np.mean([point.get(term, 0.0) for point in last])))
        by_row[row] = {term: float(np.mean(values)) for term, values in sorted(terms.items()) if any(values)}
    return by_row


def costs_as_json(inputs: SuiteInputs, results: Results) -> dict[str, Any]:
    """For programs, beside `suite_as_json`: costs by row, and the terms' shares of the gradient in percent."""
    return {
        "costs": [dataclasses.asdict(cost) for cost in row_costs(inputs, results)],
        "shares": gradient_shares(inputs),
    }


def recipe_changes(row: str) -> str:
    """What a row changes in the recipe, as overrides."""
    return as_overrides(ROWS[row])


def _points(source: Source) -> list[Point]:
    try:
        points: list[Point] = source.json("history.json")["points"]
    except Missing:
        return []
    return points


def _updates(source: Source) -> int:
    """Optimiser updates of the student in one stage: the last step of those phases that are not the selector's."""
    steps = [p["step"] for p in _points(source) if p["phase"] not in STAGE_PHASES["alsn"]]
    return max(steps, default=0)


def _step(source: Source, recipe: Recipe) -> float | None:
    """Seconds of an update in the joint stage."""
    speeds = [p["samples_per_second"] for p in _points(source) if p.get("samples_per_second")]
    return recipe.optim.batch / float(np.median(speeds)) if speeds else None


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
