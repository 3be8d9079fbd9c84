"""Intervals of means over seeds, of paired differences and of shares. Pure functions.

One t-interval serves all means: over seeds for a model's numbers and for a suite's differences, over queries for the
gain of a run's student. Shares have Wilson's interval, several comparisons Holm's p-values. The quantiles are scipy's;
what is paired with what, the note below each table says. Intervals over test concepts too are in resampling.py.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from cmapkd_core.report.read.results import ModelResults

One = TypeVar("One", bound=Hashable)  # what is asked, such as a query, or compared
LEVEL = 0.95
FEW_SEEDS = 2  # agree by chance: recalls and accuracies are counts, and one difference is all their spread rests on
ROUNDING = 1e-9  # relative; far above that of a difference of percentages, far below one query in millions


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


def signed(value: float | None, digits: int = 1) -> str:
    """`+1.4`; what rounds to zero has no sign, which would say more than the digits do. "" of what is not known."""
    if value is None:
        return ""
    text = f"{value:+.{digits}f}"
    return text if text.strip("+-0.") else text[1:]


def counted(ns: Iterable[int]) -> str:
    """Numbers of seeds as a table prints them: "5", "3 to 5" where they differ, "0" where there are none."""
    numbers = sorted(set(ns)) or [0]
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"


def wilson(percent: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Both ends of the interval of a share, in percent, over n independent queries; never of width 0.

    Wilson (1927): those shares that a test of the normal approximation does not refuse. It holds for few queries and
    for shares of 0 and 1, where the standard error of the share is 0 and says nothing.
    """
    share, z = percent / 100, float(norm.ppf((1 + level) / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = middle - half, middle + half
    # Exactly 0 and 1 at the ends, where rounding leaves the last bits.
    return (0.0 if percent <= 0 else 100 * low), (100.0 if percent >= 100 else 100 * high)


def mean_of_means(sets: Sequence[Mapping[One, float]], group_of: Mapping[One, One], level: float = LEVEL) -> Interval:
    """The mean of the means of several sets of values, with its t-interval over groups of values.

    Values of one group may depend on each other in any way, across the sets too; groups are taken as independent. The
    variance is that of the groups' sums of influence, G / (G - 1) * sum_g u_g^2 with u_g the sum of
    (value - mean of its set) / (size of its set * number of sets). Where every group has one value in each set this is
    `interval` of the groups' means.

    Args:
        sets: such as the queries of both directions, query -> value; none is empty.
        group_of: query -> its group.
    """
    influence: dict[One, float] = defaultdict(float)
    means = [float(np.mean(list(values.values()))) for values in sets]
    for values, mean in zip(sets, means, strict=True):
        for query, value in values.items():
            influence[group_of[query]] += (value - mean) / (len(values) * len(sets))
    groups, mean = len(influence), float(np.mean(means))
    if groups == 1:
        return Interval(mean, None, 1)
    spread = math.sqrt(groups / (groups - 1) * sum(one**2 for one in influence.values()))
    spread = 0.0 if spread <= ROUNDING * max(map(abs, means)) else spread
    return Interval(mean, float(student_t.ppf((1 + level) / 2, groups - 1)) * spread, groups)


def p_value(estimate: Interval, level: float = LEVEL) -> float | None:
    """The two-sided p of the t-test whose interval this is, against 0; None where the interval claims nothing."""
    if not estimate.half:
        return None
    turns = float(student_t.ppf((1 + level) / 2, estimate.n - 1)) * abs(estimate.mean) / estimate.half
    return float(2 * student_t.sf(turns, estimate.n - 1))


def told_apart(adjusted: float | None, seeds: int, level: float = LEVEL) -> bool:
    """Whether a difference over more than FEW_SEEDS seeds is told apart by its p after Holm's rule."""
    return adjusted is not None and adjusted < 1 - level and seeds > FEW_SEEDS


def holm(ps: Mapping[One, float]) -> dict[One, float]:
    """Holm's adjusted p-values (1979): below 5 % they are false for any of the comparisons in 5 % of cases at most."""
    adjusted: dict[One, float] = {}
    least = 0.0
    for place, (name, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(ps) - place) * p))
        adjusted[name] = least
    return adjusted
