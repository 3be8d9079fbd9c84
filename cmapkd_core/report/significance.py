"""Every interval that a report shows: means over seeds, paired differences, sampling errors. Pure functions.

One t-interval serves all: over seeds for a model's numbers and for a suite's differences, over queries for the gain of
a run's student. The quantiles are scipy's; what is paired with what, the note below each table says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student_t

from cmapkd_core.recipes import FULL
from cmapkd_core.report.read.results import (
    GEOMETRIC_RANK,
    MEAN_RECALL,
    RECALLS,
    SIDES,
    ModelResults,
    Results,
)

LEVEL = 0.95
ROUNDING = 1e-9  # relative; far above that of a difference of percentages, far below one query in millions


@dataclass(frozen=True)
class Compared:
    """A number that rows are compared by, with group, heading and unit of its column."""

    task: str
    metric: str
    group: str
    label: str
    unit: str = "points"


COMPARED = (
    *(Compared("retrieval", key, SIDES[key[:3]], key[4:]) for key in RECALLS),
    Compared("retrieval", MEAN_RECALL, "Both ways", "mean recall"),
    Compared("retrieval", GEOMETRIC_RANK, "Both ways", "geometric mean rank", "ranks"),
    Compared("zeroshot", "top1", "Zero-shot", "top-1"),
    Compared("vqa", "overall", "VQA", "overall"),
    Compared("captioning", "CIDEr", "Captioning", "CIDEr"),
)


@dataclass(frozen=True)
class Interval:
    """A mean over n values, one a seed or one a query; `half` is half the width of its interval, None of one value."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        """The interval's lower end."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """The interval's upper end."""
        return None if self.half is None else self.mean + self.half

    @property
    def excludes_zero(self) -> bool:
        """True where 0 lies outside of the interval.

        Never of one value, and never where all values are the very same: that is no spread of 0 but one that the
        seeds at hand do not show (accuracies are counts, and few seeds agree by chance).
        """
        return self.half is not None and self.half > 0 and abs(self.mean) > self.half


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean and two-sided t-interval with n - 1 degrees of freedom: mean +- t * s / sqrt(n).

    Args:
        values: one number a seed, or one a query; taken as independent, their mean as about normal.

    Raises:
        ValueError: no value.
    """
    if not values:
        raise ValueError("an interval of no values")
    data = np.asarray(values, dtype=float)
    n = len(data)
    if n == 1:
        return Interval(float(data[0]), None, 1)
    # Equal values must have a spread of exactly 0, also where they are differences that round in the last bits.
    spread = 0.0 if np.ptp(data) <= ROUNDING * np.abs(data).max() else float(data.std(ddof=1))
    return Interval(float(data.mean()), float(student_t.ppf((1 + level) / 2, n - 1)) * spread / math.sqrt(n), n)


def paired(minuend: Mapping[str, float], subtrahend: Mapping[str, float], level: float = LEVEL) -> Interval | None:
    """The mean of minuend minus subtrahend over the pairs that both have, with its paired t-interval; None of no pair.

    The interval is that of `scipy.stats.ttest_rel(minuend, subtrahend).confidence_interval(level)`.

    Args:
        minuend, subtrahend: what makes a pair -> value. Over seeds: two runs with one seed share data order, crops and
            untrained student. Over queries: two models were asked the same. What both share leaves the difference.
    """
    shared = [pair for pair in minuend if pair in subtrahend]
    return interval([minuend[pair] - subtrahend[pair] for pair in shared], level) if shared else None


def over_seeds(row: ModelResults, key: str) -> Interval | None:
    """A model's number as its mean over the seeds; None where nothing was measured.

    What was measured of the row and not of a seed counts only where no seed has a value.
    """
    values = row.values.get(key, {})
    seeds = [value for seed, value in values.items() if seed] or list(values.values())
    return interval(seeds) if seeds else None


def compared(rows: Iterable[ModelResults]) -> dict[str, Compared]:
    """The numbers that rows are compared by, as far as one of them has it."""
    numbers: dict[str, Compared] = {}
    for row in rows:
        for one in COMPARED:
            for name in row.names(one.task):
                if f"{name}/{one.metric}" in row.values:
                    dataset = name.partition("-")[2]
                    group = f"{one.group}, {dataset}" if dataset else one.group
                    numbers.setdefault(f"{name}/{one.metric}", replace(one, group=group))
    return numbers


def differences(results: Results) -> dict[str, dict[str, Interval]]:
    """Row -> number -> the row minus the full method, seed by seed; {} where the full method is not among the rows."""
    base = next((row for row in results.trained if row.name == FULL), None)
    if base is None:
        return {}
    every = {}
    for row in results.trained:
        if row.name != FULL:
            pairs = {key: paired(row.values.get(key, {}), base.values.get(key, {})) for key in compared([base])}
            every[row.name] = {key: change for key, change in pairs.items() if change}
    return every


def counted(ns: Iterable[int]) -> str:
    """Numbers of seeds as a table prints them: "5", "3 to 5" where they differ, "0" where there are none."""
    numbers = sorted(set(ns)) or [0]
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"


def standard_error(percent: float, n: float) -> float:
    """Binomial standard error, in points, of a share in percent over n independent queries."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / n)
