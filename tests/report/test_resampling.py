"""Intervals over seeds and test concepts: against closed forms and scipy's bootstrap, and what they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from cmapkd_core.report.read.concept_sums import ConceptSums
from cmapkd_core.report.resampling import DRAWS, Ends, draw, samples, seeds_and_concepts
from cmapkd_core.report.significance import interval

SEEDS, CONCEPTS = 5, 100


@pytest.fixture(scope="module")
def shares() -> np.ndarray:
    """The share that each concept has of a sample, [DRAWS,CONCEPTS]."""
    found = np.concatenate(list(samples(CONCEPTS))) / CONCEPTS
    assert found.shape == (DRAWS, CONCEPTS)
    assert np.allclose(found.sum(axis=1), 1)
    return found


def ends(values: np.ndarray, shares: np.ndarray) -> Ends:
    """Of values by concept and seed, [CONCEPTS,n]."""
    found = seeds_and_concepts(values.mean(axis=0), shares @ values, len(values), 0.95)
    assert found is not None
    return found


def test_concepts_that_do_not_differ_leave_the_paired_t_interval(shares: np.ndarray) -> None:
    for n in (2, 3, SEEDS):
        seeds = np.random.default_rng(n).normal(1, 2, n)
        found, expected = ends(np.tile(seeds, (CONCEPTS, 1)), shares), interval(list(seeds))
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.01)
        assert (found.n, found.concepts) == (n, CONCEPTS)


def test_seeds_that_do_not_differ_leave_the_bootstrap_over_concepts(shares: np.ndarray) -> None:
    values = np.random.default_rng(0).exponential(3, CONCEPTS)
    found = ends(np.tile(values[:, None], (1, SEEDS)), shares)
    scipys = bootstrap((values,), np.mean, method="percentile", n_resamples=DRAWS, random_state=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((scipys.low, scipys.high), rel=0.03)
    half = norm.ppf(0.975) * values.std(ddof=1) / math.sqrt(CONCEPTS)  # and what the mean of many has
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)


def test_one_seed_is_the_bootstrap_over_concepts(shares: np.ndarray) -> None:
    values = np.random.default_rng(0).normal(3, 1, (CONCEPTS, 1))
    found, same = ends(values, shares), ends(np.tile(values, (1, SEEDS)), shares)
    assert (found.low, found.high) == pytest.approx((same.low, same.high))
    assert found.n == 1


def test_what_differs_by_seed_and_concept_counts_once(shares: np.ndarray) -> None:
    """Noise of single answers is in the seeds' spread and in that of the draws: together they would be 1.4 times it."""
    values = np.random.default_rng(3).normal(0, 10, (CONCEPTS, SEEDS))
    found, alone = ends(values, shares), interval(list(values.mean(axis=0)))
    assert found.high - found.low == pytest.approx(2 * alone.half, rel=0.1)


def test_seeds_that_agree_by_chance_do_not_hide_what_other_concepts_would_change(shares: np.ndarray) -> None:
    """Two seeds with one mean, of which each answers other concepts well; the plain draws say how far that may go."""
    values = np.random.default_rng(3).normal(0, 10, (CONCEPTS, 2))
    values[:, 1] += values[:, 0].mean() - values[:, 1].mean() + 1e-3
    found, given = ends(values, shares), np.quantile((shares @ values).mean(axis=1), (0.025, 0.975))
    assert interval(list(values.mean(axis=0))).half < 0.01
    assert found.high - found.low == pytest.approx(given[1] - given[0], rel=0.02)


@pytest.mark.parametrize("spreads", [(1.0, 10.0, 10.0), (0.3, 10.0, 3.0), (1.0, 0.0, 10.0)])
def test_it_covers_what_it_says(spreads: tuple[float, float, float], shares: np.ndarray) -> None:
    """All is drawn anew 400 times around 0; the share of intervals that hold 0 is within 3.3 errors of 95 %."""
    generator, held, plain = np.random.default_rng(7), 0, 0
    of_seeds, of_concepts, of_both = spreads
    for _ in range(400):
        values = generator.normal(0, of_seeds, SEEDS) + generator.normal(0, of_concepts or 1e-9, (CONCEPTS, 1))
        values = values + generator.normal(0, of_both, (CONCEPTS, SEEDS))
        found = ends(values, shares)
        held += found.low <= 0 <= found.high
        plain += not interval(list(values.mean(axis=0))).excludes_zero
    assert 0.914 <= held / 400 <= 0.986
    if of_concepts:
        assert plain / 400 < 0.85  # what the seeds alone hold, of 95 %


def test_few_concepts_are_no_sample() -> None:
    assert seeds_and_concepts(np.ones(2), np.ones((DRAWS, 2)), 19, 0.95) is None


def sums(hits: np.ndarray) -> ConceptSums:
    """Concepts of one picture and one caption: found first, or fourth."""
    ranks = np.where(hits, 1, 4)
    parts = np.stack([ranks <= 1, ranks <= 5, ranks <= 10, np.log(ranks)], axis=1)
    return ConceptSums(np.ones((len(hits), 2)), {("none", "0"): np.stack([parts, parts], axis=1).astype(float)})


def test_the_numbers_of_drawn_concepts() -> None:
    hits = np.arange(200) % 5 == 0
    drawn = draw(sums(hits))
    measured, numbers = drawn.measured["none", "0"], drawn.drawn["none", "0"]
    assert measured["i2t/R@1"] == pytest.approx(20)
    assert measured["t2i/R@5"] == pytest.approx(100)
    assert measured["mean_recall"] == pytest.approx((20 + 100 + 100) / 3)
    assert measured["geometric_rank"] == pytest.approx(4**0.8)
    assert {len(values) for values in numbers.values()} == {DRAWS}
    assert numbers["i2t/R@1"].mean() == pytest.approx(20, abs=0.2)
    assert numbers["i2t/R@1"].std() == pytest.approx(100 * math.sqrt(0.2 * 0.8 / 200), rel=0.05)  # of a share
    assert np.all(numbers["i2t/R@1"] == numbers["t2i/R@1"])  # a picture is drawn with its caption


def test_the_same_concepts_give_the_same_draws() -> None:
    hits = np.arange(50) % 3 == 0
    one, other = (draw(sums(hits)).drawn["none", "0"]["mean_recall"] for _ in range(2))
    assert np.array_equal(one, other)


def test_a_lower_level_gives_a_narrower_interval() -> None:
    draw = np.random.default_rng(0)
    measured = draw.normal(0, 1, 5)
    drawn = measured + draw.normal(0, 1, (1000, 5))
    narrow, wide = (seeds_and_concepts(measured, drawn, CONCEPTS, level) for level in (0.5, 0.95))
    assert narrow
    assert wide
    assert narrow.high - narrow.low < 0.6 * (wide.high - wide.low)
