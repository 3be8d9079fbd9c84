"""Means over seeds, t-intervals and paired differences, against hand values and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from cmapkd_core.report.significance import interval, paired, signed


def test_two_seeds_by_hand() -> None:
    # s = sqrt(2), s / sqrt(2) = 1, and t(0.975, 1) = tan(0.475 pi) = 12.706.
    found = interval([1.0, 3.0])
    assert (found.mean, found.n) == (2.0, 2)
    assert found.half == pytest.approx(math.tan(0.475 * math.pi))
    assert not found.excludes_zero


def test_three_seeds_by_hand() -> None:
    # s = 1, and t(0.975, 2) = 0.95 * sqrt(2 / (1 - 0.95 ** 2)).
    found = interval([9.0, 10.0, 11.0])
    assert found.half == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3))
    assert (found.low, found.high) == pytest.approx((10 - found.half, 10 + found.half))
    assert found.excludes_zero


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_any_number_of_seeds_against_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(1, 2, n)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = interval(list(values))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.excludes_zero == (ttest_1samp(values, 0).pvalue < 0.05)


def test_one_seed_has_no_interval() -> None:
    found = interval([5.0])
    assert (found.mean, found.half, found.low, found.high, found.n) == (5.0, None, None, None, 1)
    assert not found.excludes_zero


def test_no_spread_decides_nothing() -> None:
    found = interval([0.1, 0.1, 0.1])
    assert found.half == 0.0
    assert not found.excludes_zero


def test_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_pairs_go_by_seed_and_only_over_common_ones() -> None:
    found = paired({"2": 5.0, "0": 1.0, "1": 4.0}, {"0": 0.0, "2": 2.0, "3": 9.0})
    assert (found.mean, found.n) == (2.0, 2)  # 1 - 0 and 5 - 2
    assert paired({"0": 1.0}, {"1": 1.0}) is None


def test_pairing_is_the_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    seeds = draw.normal(50, 5, 6)  # what a seed does to both
    ours, theirs = seeds + draw.normal(1, 0.3, 6), seeds + draw.normal(0, 0.3, 6)
    expected = ttest_rel(ours, theirs).confidence_interval(0.95)
    found = paired(*({str(i): float(v) for i, v in enumerate(side)} for side in (ours, theirs)))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.excludes_zero
    assert not interval(list(ours)).low > interval(list(theirs)).high  # unpaired intervals overlap


def test_differences_that_are_equal_but_for_rounding_have_no_spread() -> None:
    ours, theirs = {"0": 5.075187969924812, "1": 3.7593984962406015}, {"0": 4.699248120300752, "1": 3.3834586466165413}
    found = paired(ours, theirs)
    assert found is not None
    assert found.half == 0
    assert not found.excludes_zero


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [
        (0.04, 1, "0.0"),
        (-0.04, 1, "0.0"),
        (0.05, 2, "+0.05"),
        (-0.06, 1, "-0.1"),
        (10.0, 1, "+10.0"),
        (-100.2, 0, "-100"),
    ],
)
def test_what_rounds_to_zero_has_no_sign(value: float, digits: int, written: str) -> None:
    assert signed(value, digits) == written
