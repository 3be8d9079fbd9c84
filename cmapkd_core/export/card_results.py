"""The card's table of results: every metric of an evaluation, with an interval where the single answers are kept.

Over test queries it is a percentile bootstrap: another test set of the same kind. Over seeds (a suite's report) it
is a t-interval: another training. The two answer different questions, and the card says which one it shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 1000
LEVEL = 0.95
DETAILS = ("retrieval", "zeroshot")  # tasks whose JSON has every single answer, in one form or another
_BATCH = 50  # resamples at a time: 10 MB for 25,000 queries

Statistic = Callable[..., Any]  # (values, axis) -> percent or rank


@dataclass(frozen=True)
class Result:
    """One number. low, high: None where its answers are not kept. chance: None where there is no such thing."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0  # queries or seeds behind the interval
    chance: float | None = None

    @property
    def interval(self) -> str:
        """As it stands in the table."""
        return "" if self.low is None else f"{self.low:.1f} to {self.high:.1f}"


def of_run(metrics: Mapping[str, float], details: Mapping[str, Any]) -> list[Result]:
    """One evaluation's metrics; `details` has each task's JSON by its name."""
    answers = dict([*_ranks(details.get("retrieval", {})), *_hits(details.get("zeroshot", {}))])
    results = []
    for name, value in metrics.items():
        if "/chance/" in name or name.startswith("parameters/"):  # both have their own place in the card
            continue
        head, _, last = name.rpartition("/")
        chance = metrics.get(f"{head}/chance/{last}")
        values = answers.get(name if name in answers else head)
        statistic = _statistic(last) if values is not None and len(values) > 1 else None
        low, high, n = _bootstrap(values, statistic) if values is not None and statistic else (None, None, 0)
        results.append(Result(name, value, low, high, n, chance))
    return results


def of_suite(table: Mapping[str, Any], row: str) -> list[Result]:
    """Means and t-intervals over seeds of one row of a suite's suite.json; [] where it has no such row."""
    rows = [entry["means"] for entry in table["rows"] if entry["name"] == row]
    chance = table["chance"]
    return [
        Result(name, mean["mean"], mean["low"], mean["high"], mean["n"], chance.get(name))
        for means in rows
        for name, mean in means.items()
        if mean is not None
    ]


def _ranks(detail: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """`retrieval/i2t` -> the place of every query's best correct answer, [n]."""
    for side in ("i2t", "t2i"):
        if side in detail:
            yield f"retrieval/{side}", np.array([query["rank"] for query in detail[side].values()])


def _hits(detail: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """`zeroshot/top1` -> 1 (a hit, which has rank 1) or 2 for every image, [n], from the classes' counts."""
    rows = [row for row in detail.get("classes", []) if row["images"]]
    if rows:
        hits = [round(row["images"] * row["top1"] / 100) for row in rows]
        places = [[1] * hit + [2] * (row["images"] - hit) for hit, row in zip(hits, rows, strict=True)]
        yield "zeroshot/top1", np.concatenate(places)


def _statistic(name: str) -> Statistic | None:
    """What a metric's last name computes from ranks; None of one that is no function of them."""
    if match := re.fullmatch(r"(?:R@|top)(\d+)", name):
        return lambda ranks, axis: 100 * (ranks <= int(match[1])).mean(axis=axis)
    known: dict[str, Statistic] = {"median_rank": np.median, "mean_rank": np.mean}
    return known.get(name)


def _bootstrap(ranks: np.ndarray, statistic: Statistic) -> tuple[float, float, int]:
    """The interval of a statistic of ranks [n], and n."""
    settings = {"n_resamples": RESAMPLES, "batch": _BATCH, "confidence_level": LEVEL, "method": "percentile"}
    result = bootstrap((ranks,), statistic, vectorized=True, rng=np.random.default_rng(0), **settings)
    return float(result.confidence_interval.low), float(result.confidence_interval.high), len(ranks)
