"""The small table that the stage prints, and all numbers for programs: table.json, suite.json, KFP's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cmapkd_core.report.read.results import KS, METRICS, SIDES, ModelResults, Results
from cmapkd_core.report.read.run_inputs import ROLES, RunInputs
from cmapkd_core.report.read.suite_inputs import MEAN, SuiteInputs, full_of, suite_urls
from cmapkd_core.report.row_differences import (
    Adjusted,
    Difference,
    adjusted,
    against_equal_weights,
    compared,
    differences,
)
from cmapkd_core.report.significance import Interval, over_seeds
from cmapkd_core.report.tables.table import NO_SPREAD, NO_SPREAD_NOTE, mean_cell

PRINTED_RECALLS = {side: [f"retrieval/{side}/R@{k}" for k in KS] for side in SIDES}
# Of a run, by their names in metrics.json.
KEYS = (
    *(key for side in SIDES for key in (*PRINTED_RECALLS[side], f"retrieval/{side}/median_rank")),
    *("zeroshot/top1", "zeroshot/top5", "parameters/image", "parameters/text"),
)
CHANCE_KEYS = (*PRINTED_RECALLS["i2t"], *PRINTED_RECALLS["t2i"], "zeroshot/top1", "zeroshot/top5")
FACTS = ("retrieval/images", "retrieval/captions", "zeroshot/images", "zeroshot/classes", "zeroshot/majority")
# Of a suite, with the headings of the printed table.
PRINTED = {
    "retrieval/i2t/R@1": "i2t R@1",
    "retrieval/t2i/R@1": "t2i R@1",
    MEAN: "mean recall",
    "zeroshot/top1": "zero-shot",
}


def values_of(row: ModelResults, keys: Iterable[str] = KEYS) -> dict[str, float]:
    """Those of a run's numbers that were measured."""
    estimates = ((key, over_seeds(row, key)) for key in keys)
    return {key: one.mean for key, one in estimates if one}


def run_text(results: Results) -> str:
    """The small table as aligned lines: R@1/5/10 both ways for each model, and chance."""
    keys = [key for side in SIDES for key in PRINTED_RECALLS[side]]
    lines = [["", *(f"R@{k}" for _ in SIDES for k in KS)]]
    for row in (*results.rows, results.chance):
        values = values_of(row, keys)
        lines.append([row.label, *(f"{values[key]:.1f}" if key in values else "-" for key in keys)])
    first = max(len(line[0]) for line in lines)
    head = " " * first + "".join(f"  {group:>{7 * len(KS) - 2}}" for group in SIDES.values())
    return "\n".join([head, *(f"{line[0]:<{first}}" + "".join(f"{cell:>7}" for cell in line[1:]) for line in lines)])


def run_as_json(inputs: RunInputs, results: Results) -> dict[str, Any]:
    """A run for programs: values in the units of metrics.json, chance, counts and where each row is from."""
    return {
        "run": inputs.run,
        "recipe": inputs.recipe.name,
        "ablation": inputs.ablation,
        "seed": inputs.recipe.seed,
        "rows": [_run_row(inputs, row) for row in results.rows],
        "chance": values_of(results.chance, CHANCE_KEYS),
        "facts": {key: results.facts[key] for key in FACTS if key in results.facts},
        "text": run_text(results),
    }


def _run_row(inputs: RunInputs, row: ModelResults) -> dict[str, Any]:
    source = inputs.source(ROLES[row.name].evaluation)
    facts = {"name": source.name, "label": row.label, "url": source.url}
    return facts | {"values": values_of(row), "missing": source.lack(METRICS)}


def run_metrics(results: Results) -> dict[str, float]:
    """The small numbers that the KFP UI shows, as `student/retrieval/i2t/R@1`."""
    return {f"{ROLES[row.name].short}/{key}": v for row in results.rows for key, v in values_of(row).items()}


def suite_as_json(inputs: SuiteInputs, results: Results) -> dict[str, Any]:
    """Everything for programs: values by seed, intervals, differences, and where each is from."""
    keys = list(compared_keys(results))
    return {
        "suite": inputs.suite,
        "run": inputs.run,
        "recipe": inputs.recipe.name,
        "overrides": inputs.overrides,
        "seeds": inputs.seeds,
        "columns": keys,
        "rows": [_suite_row(row) | {"means": _intervals_as_json(row, keys)} for row in results.trained],
        "teacher": _suite_row(results.teacher),
        "before": _suite_row(results.row("before")),
        "chance": values_of(results.chance, results.chance.values),
        "facts": results.facts,
        "compared_with": {row.name: full_of(row.name) for row in results.trained},
        "differences": _differences_as_json(differences(results)),
        "against_equal_weights": _differences_as_json(against_equal_weights(results)),
        "executions": {"shared": inputs.executions, "naive": inputs.naive},
        "urls": suite_urls(inputs),
        "text": suite_text(results),
    }


def _differences_as_json(changes: Mapping[str, Mapping[str, Difference]]) -> dict[str, Any]:
    """Row -> number -> the difference, its p-value adjusted over all of them."""
    ps = adjusted({(name, key): one for name, row in changes.items() for key, one in row.items()})
    return {
        name: {key: _difference_as_json(one, ps[name, key]) for key, one in row.items()}
        for name, row in changes.items()
    }


def compared_keys(results: Results) -> Sequence[str]:
    """The numbers that rows are compared by, as far as one was measured."""
    return list(compared((*results.trained, results.teacher)))


def _suite_row(row: ModelResults) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("name", "label", "values", "seeds", "missing", "reasons")}


def _intervals_as_json(row: ModelResults, keys: Iterable[str]) -> dict[str, Any]:
    estimates = {key: over_seeds(row, key) for key in keys}
    return {key: _interval_as_json(one) if one else None for key, one in estimates.items()}


def _interval_as_json(estimate: Interval) -> dict[str, Any]:
    ends = {"low": estimate.low, "high": estimate.high, "n": estimate.n, "excludes_zero": estimate.excludes_zero}
    return {"mean": estimate.mean, **ends}


def _difference_as_json(one: Difference, test: Adjusted) -> dict[str, Any]:
    """p_holm: adjusted over all of the suite's differences, as their table has it."""
    both = {"seeds_and_concepts": asdict(one.wider) if one.wider else None}
    return _interval_as_json(one) | {"p": test.p, "p_holm": test.adjusted} | both


def suite_text(results: Results) -> str:
    """The small table as aligned lines: R@1 both ways, the mean of the recalls and zero-shot top-1, by row's name."""
    keys = compared_keys(results)
    known = {key: head for key, head in PRINTED.items() if key in keys}
    rows = [[row.name, *_shown(row, known), str(len(row.seeds))] for row in (*results.trained, results.row("before"))]
    rows.append([results.teacher.name, *_shown(results.teacher, known), ""])
    lines = [["", *known.values(), "n"], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = (
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    )
    text = "\n".join("  ".join(line).rstrip() for line in aligned)
    return f"{text}\n{NO_SPREAD_NOTE}" if NO_SPREAD in text else text


def _shown(row: ModelResults, keys: Iterable[str]) -> list[str]:
    return [mean_cell(over_seeds(row, key), key, {}).text() for key in keys]


def suite_metrics(results: Results) -> dict[str, float]:
    """The small numbers that the KFP UI shows: every row's mean by `row/number`."""
    return {
        f"{row.name}/{key}": value
        for row in results.trained
        for key, value in values_of(row, compared_keys(results)).items()
    }
