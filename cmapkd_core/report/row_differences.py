"""The rows of a suite against the full method with as many updates and captions, with both intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from cmapkd_core.recipes import FULL, ROWS
from cmapkd_core.report.read.results import (
    GEOMETRIC_RANK,
    MEAN_RECALL,
    RECALLS,
    SIDES,
    ModelResults,
    Results,
)
from cmapkd_core.report.read.suite_inputs import full_of
from cmapkd_core.report.resampling import DRAWN, Ends, draw, seeds_and_concepts
from cmapkd_core.report.significance import LEVEL, Interval, One, holm, p_value, paired, told_apart

EQUAL = "no_alsn"  # the row of equal weights for all levels


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
class Difference(Interval):
    """A mean over seeds with its paired t-interval, and its interval over seeds and test concepts, where one is known.

    With one seed `wider` is over the concepts alone.
    """

    wider: Ends | None = None


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


def differences(results: Results, base_of: Callable[[str], str] = full_of) -> dict[str, dict[str, Difference]]:
    """Row -> number -> the row minus its base, seed by seed, for the rows whose base is among them.

    Args:
        base_of: the row that a row is compared with; the full method with as many updates and captions.
    """
    rows = {row.name: row for row in results.trained}
    pairs = ((row, rows[base_of(row.name)]) for row in results.trained if base_of(row.name) in rows)
    return {row.name: dict(_to_base(results, row, base)) for row, base in pairs if row is not base}


def against_equal_weights(results: Results) -> dict[str, dict[str, Difference]]:
    """Row -> number -> the row minus equal weights, for the rows that are the full method but for their selector."""
    rows = tuple(row for row in results.trained if of_selector(row.name))
    return differences(replace(results, rows=rows), lambda _: EQUAL)


def of_selector(row: str) -> bool:
    """Whether a row is the full method but for its selector's fields."""
    return row == FULL or (row in ROWS and all(name.startswith("selector.") for name in ROWS[row]))


def _to_base(results: Results, row: ModelResults, base: ModelResults) -> Iterator[tuple[str, Difference]]:
    for key in compared([base]):
        values, others = row.values.get(key, {}), base.values.get(key, {})
        one = paired(values, others)
        if one is not None:
            seeds = [seed for seed in values if seed in others]
            wider = None if one.half == 0 else _wider(results, key, (row.name, base.name), seeds)
            yield key, Difference(one.mean, one.half, one.n, wider)


def _wider(results: Results, key: str, names: tuple[str, str], seeds: list[str]) -> Ends | None:
    """The interval over seeds and concepts; None where a seed keeps no ranks, or no classes."""
    task, _, metric = key.partition("/")
    if task not in results.concepts or metric not in DRAWN[results.concepts[task].of]:
        return None
    concepts = results.concepts[task]
    drawn = draw(concepts)
    if any((name, seed) not in drawn.measured for name in names for seed in seeds):
        return None
    row, base = names
    measured = [drawn.measured[row, s][metric] - drawn.measured[base, s][metric] for s in seeds]
    parts = [drawn.drawn[row, s][metric] - drawn.drawn[base, s][metric] for s in seeds]
    ends = seeds_and_concepts(np.array(measured), np.stack(parts, axis=1), drawn.concepts, LEVEL)
    return ends and replace(ends, of=concepts.of)


def wider_of(one: Interval | None) -> Ends | None:
    """A difference's interval over seeds and test concepts, where one is known."""
    return one.wider if isinstance(one, Difference) else None


@dataclass(frozen=True)
class Adjusted:
    """One of several differences, with the p of its paired t-test and Holm's; None of those that claim nothing."""

    interval: Interval
    p: float | None
    adjusted: float | None

    @property
    def significant(self) -> bool:
        """True where the two rows are told apart."""
        return told_apart(self.adjusted, self.interval.n)


def adjusted_differences(results: Results, key: str) -> dict[str, Adjusted]:
    """Row -> its difference to the full method in one number, for every row that has one."""
    return adjusted({name: row[key] for name, row in differences(results).items() if key in row})


def adjusted(intervals: Mapping[One, Interval]) -> dict[One, Adjusted]:
    """Differences with their p-values, and those by Holm's rule over all that have one."""
    ps = {name: p for name, one in intervals.items() if (p := p_value(one)) is not None}
    by_rule = holm(ps)
    return {name: Adjusted(one, ps.get(name), by_rule.get(name)) for name, one in intervals.items()}
