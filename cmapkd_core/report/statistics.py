"""What several seeds say of a number: its mean with a t-interval, and paired differences. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

LEVEL = 0.95
ROUNDING = 1e-9  # relative; far above that of a difference of percentages, far below one query in millions


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds; `half` is half the width of its interval, None of a single seed."""

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

        Never of a single seed, and never where all seeds gave the very same value: that is no spread of 0 but one
        that the seeds at hand do not show (accuracies are counts, and few seeds agree by chance).
        """
        return self.half is not None and self.half > 0 and abs(self.mean) > self.half


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean and two-sided t-interval with n - 1 degrees of freedom: mean +- t * s / sqrt(n).

    Args:
        values: one number a seed, taken as independent and about normal.

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


def paired(ours: Mapping[str, float], theirs: Mapping[str, float], level: float = LEVEL) -> Interval | None:
    """Ours minus theirs, seed by seed, over the seeds that both have; None where there is no such seed.

    Two runs with the same seed share data order, crops and untrained student, so their difference varies less than
    either does.
    """
    shared = [seed for seed in ours if seed in theirs]
    return interval([ours[seed] - theirs[seed] for seed in shared], level) if shared else None


def counted(ns: Iterable[int]) -> str:
    """Numbers of seeds as a table prints them: "5", "3 to 5" where they differ, "0" where there are none."""
    found = sorted(set(ns)) or [0]
    return f"{found[0]} to {found[-1]}" if len(found) > 1 else f"{found[0]}"
