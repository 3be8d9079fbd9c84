"""Intervals over seeds and test concepts together. Pure functions.

What a suite measures differs by seed and by test concept, and both are samples. With n seeds and C concepts the
variance of a mean over both has three parts, `seeds / n + concepts / C + both / (n C)`, of which `both` is what a
concept gains with one seed and not with another (two crossed random effects; Owen 2007, The pigeonhole bootstrap).

Concepts are drawn with replacement, the same ones for all rows and seeds. Seeds are not drawn: a bootstrap over five
of them is too narrow. Their part is Student's t with n - 1 degrees of freedom. The variance between seeds and the one
between draws each hold `both / (n C)`, so it is taken out of the draws. Few seeds agree by chance; so no interval is
narrower than the one over concepts alone, with the seeds as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import t as student_t

from cmapkd_core.report.read.concept_sums import CLASSES, CONCEPTS, ConceptSums, RowSeed
from cmapkd_core.report.read.results import GEOMETRIC_RANK, KS, MEAN_RECALL, RECALLS

DRAWS, AT_ONCE = 4000, 500
SEED = 0  # of all draws, so that the same run gives the same page
LEAST = 20  # concepts; fewer are no sample
# The numbers that ranks of queries give, and those that classes do.
DRAWN = {CONCEPTS: frozenset((*RECALLS, MEAN_RECALL, GEOMETRIC_RANK)), CLASSES: frozenset(("top1",))}
SAME = 1e-9  # a spread this small is rounding, as a share of the values


@dataclass(frozen=True)
class Ends:
    """An interval over test concepts and, where n is above 1, over n seeds too.

    of: what the concepts are, CONCEPTS or CLASSES.
    """

    low: float
    high: float
    n: int
    concepts: int
    of: str = CONCEPTS


@dataclass(frozen=True)
class Drawn:
    """The numbers of every (row, seed): as measured, and with concepts drawn, [DRAWS]."""

    concepts: int
    measured: dict[RowSeed, dict[str, float]]
    drawn: dict[RowSeed, dict[str, np.ndarray]]


@lru_cache(maxsize=8)  # a report asks many times, of as many data sets
def draw(concepts: ConceptSums) -> Drawn:
    """Every number of an evaluation on DRAWS samples of as many concepts, drawn with replacement."""
    cells, numbers = list(concepts.sums), NUMBERS[concepts.of]
    flat = np.stack([concepts.sums[cell] for cell in cells], axis=1)  # [C,cells,2,4]
    whole = _means(np.ones((1, len(concepts))), concepts.counts, flat)
    parts = np.concatenate([_means(weights, concepts.counts, flat) for weights in samples(len(concepts))])
    return Drawn(
        len(concepts),
        {cell: {key: float(value[0]) for key, value in numbers(whole[:, i]).items()} for i, cell in enumerate(cells)},
        {cell: numbers(parts[:, i]) for i, cell in enumerate(cells)},
    )


def samples(concepts: int) -> Iterator[np.ndarray]:
    """How often each concept is in a sample, [AT_ONCE,C], until there are DRAWS samples."""
    generator = np.random.default_rng(SEED)
    for _ in range(DRAWS // AT_ONCE):
        chosen = generator.integers(concepts, size=(AT_ONCE, concepts)) + concepts * np.arange(AT_ONCE)[:, None]
        yield np.bincount(chosen.ravel(), minlength=AT_ONCE * concepts).reshape(AT_ONCE, concepts).astype(float)


def _means(weights: np.ndarray, counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Means over the queries, [draws,cells,2,4], of weights [draws,C], counts [C,2] and sums [C,cells,2,4].

    Of classes with 1 in place of 2, and 1 in place of 4.
    """
    total = weights @ sums.reshape(len(sums), -1)
    means: np.ndarray = total.reshape(len(weights), *sums.shape[1:]) / (weights @ counts)[:, None, :, None]
    return means


def of_queries(means: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of a retrieval below its name, [draws] each, from means over queries, [draws,2,4]."""
    recalls = 100 * means[:, :, : len(KS)].reshape(len(means), -1)
    named = dict(zip(RECALLS, recalls.T, strict=True))
    return {**named, MEAN_RECALL: recalls.mean(axis=1), GEOMETRIC_RANK: np.exp(means[:, :, -1].mean(axis=1))}


def of_classes(means: np.ndarray) -> dict[str, np.ndarray]:
    """Top-1 accuracy in percent, [draws], from means over pictures, [draws,1,1]."""
    return {"top1": 100 * means[:, 0, 0]}


NUMBERS = {CONCEPTS: of_queries, CLASSES: of_classes}


def seeds_and_concepts(measured: np.ndarray, drawn: np.ndarray, concepts: int, level: float) -> Ends | None:
    """The interval of the mean over seeds; None of fewer than LEAST concepts.

    Args:
        measured: a row's difference with each seed, [n]. drawn: the same with drawn concepts, [draws,n].
    """
    draws, n = drawn.shape
    if concepts < LEAST:
        return None
    moved = drawn - measured
    scale, ends = math.sqrt(concepts / (concepts - 1)), ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(scale * moved.mean(axis=1), ends, method="hazen")  # with these seeds
    if n > 1 and np.ptp(measured) > SAME * np.abs(measured).max():
        by_seed = measured.std(ddof=1) / math.sqrt(n) * turns(draws, n)
        both = np.quantile(scale * _less_both(moved) + by_seed, ends, method="hazen")
        low, high = min(low, both[0]), max(high, both[1])
    middle = float(measured.mean())
    return Ends(middle + float(low), middle + float(high), n, concepts)


def _less_both(moved: np.ndarray) -> np.ndarray:
    """What a draw moves the mean over seeds by, [draws], less the part by which it moves one seed and not another.

    Args:
        moved: by draw and seed, [draws,n].
    """
    mean: np.ndarray = moved.mean(axis=1)
    n, whole = moved.shape[1], float(mean.var())
    if n == 1 or not whole:
        return mean
    both = float((moved - mean[:, None]).var(axis=0).sum()) / (n - 1) / n
    return mean * math.sqrt(max(0.0, 1 - both / whole))


def turns(draws: int, n: int) -> np.ndarray:
    """Student's t with n - 1 degrees of freedom, [draws]: one from each of as many equal shares, in random order."""
    shares = (np.random.default_rng(SEED).permutation(draws) + 0.5) / draws
    return np.asarray(student_t.ppf(shares, n - 1))
