"""What every test concept adds to the numbers of an evaluation, row by row and seed by seed.

A concept is a group of queries that hang together by right answers: a picture with its captions, and all pictures and
captions of one thing where those are right for each other. Zero-shot accuracy is a mean over pictures of classes, and
of these the evaluations keep one number each, so classes stand there for concepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cmapkd_core.errors import InputError
from cmapkd_core.report.read.artifacts import Missing, Source
from cmapkd_core.report.read.concept_sums import CLASSES, ConceptSums, RowSeed
from cmapkd_core.report.read.results import KS, SIDES

QUERIES, BY_CLASS = "retrieval.json", "zeroshot.json"  # of an evaluation
Queries = Mapping[str, Mapping[str, Any]]  # i2t or t2i -> query -> {"rank": .., "correct": [..]}
Query = tuple[str, str]  # direction and query
Kept = TypeVar("Kept")


def concept_sums(sources: Mapping[RowSeed, Source]) -> ConceptSums | None:
    """The sums of those evaluations that keep the ranks of single queries; None where none does.

    Raises:
        InputError: two evaluations asked different queries, or have different right answers.
    """
    sums: dict[RowSeed, np.ndarray] = {}
    lacking: dict[RowSeed, str] = {}
    asked: _Asked | None = None
    for cell, name, queries in _kept(sources, _queries, lacking):
        asked = asked or _Asked.of(name, queries)
        sums[cell] = asked.sums(name, queries)
    return ConceptSums(asked.counts, sums, lacking) if asked else None


def class_sums(sources: Mapping[RowSeed, Source]) -> ConceptSums | None:
    """The same of zero-shot classification by class, without classes that have no picture.

    Raises:
        InputError: two evaluations have different classes, or other numbers of their pictures.
    """
    sums: dict[RowSeed, np.ndarray] = {}
    lacking: dict[RowSeed, str] = {}
    first: tuple[str, dict[str, int]] | None = None
    for cell, name, rows in _kept(sources, _classes, lacking):
        pictures = {row["class"]: row["images"] for row in rows}
        first = first or (name, pictures)
        if pictures != first[1]:
            raise InputError(
                f"{first[0]} and {name} have different classes, or other numbers of their pictures: evaluate "
                "both on the same shards and split"
            )
        hits = {row["class"]: row["images"] * row["top1"] / 100 for row in rows}
        sums[cell] = np.array([hits[one] for one in first[1]])[:, None, None]
    if first is None:
        return None
    return ConceptSums(np.array(list(first[1].values()), dtype=float)[:, None], sums, lacking, CLASSES)


def _kept(
    sources: Mapping[RowSeed, Source], read: Callable[[Source], Kept], lacking: dict[RowSeed, str]
) -> Iterator[tuple[RowSeed, str, Kept]]:
    """Row and seed, name and content of the evaluations that keep what is read; the others go into `lacking`."""
    for cell, source in sources.items():
        try:
            content = read(source)
        except Missing as reason:
            lacking[cell] = str(reason)
            continue
        yield cell, source.name, content


def _classes(source: Source) -> list[dict[str, Any]]:
    rows = [row for row in source.json(BY_CLASS).get("classes", []) if row["images"]]
    if not rows:
        raise Missing(f"Missing: the {source.name} artifact {source.url} has no classes in {BY_CLASS}.")
    return rows


def _queries(source: Source) -> Queries:
    queries = source.json(QUERIES)
    if not all(queries.get(side) for side in SIDES):
        raise Missing(f"Missing: the {source.name} artifact {source.url} has no ranks in {QUERIES}.")
    return {side: queries[side] for side in SIDES}


@dataclass(frozen=True)
class _Asked:
    """The queries of the first evaluation, whose name is `by`; answers: direction -> query -> its right answers."""

    by: str
    answers: dict[str, dict[str, Any]]
    places: dict[str, np.ndarray]  # direction -> the concept of each query, [Q]
    counts: np.ndarray

    @classmethod
    def of(cls, by: str, queries: Queries) -> _Asked:
        leaders = answer_groups(queries)
        numbers: dict[Query, int] = {}
        places = {
            side: np.array([numbers.setdefault(leaders[side, query], len(numbers)) for query in queries[side]])
            for side in SIDES
        }
        counts = np.stack([np.bincount(places[side], minlength=len(numbers)) for side in SIDES], axis=1)
        return cls(by, {side: _answers(queries[side]) for side in SIDES}, places, counts.astype(float))

    def sums(self, name: str, queries: Queries) -> np.ndarray:
        """[C,2,4] of an evaluation of the same queries."""
        if any(_answers(queries[side]) != self.answers[side] for side in SIDES):
            raise InputError(
                f"{self.by} and {name} have different queries or right answers: evaluate both on the same shards and "
                "split, with the same evaluate.answers"
            )
        return np.stack([self._of_side(side, queries[side]) for side in SIDES], axis=1)

    def _of_side(self, side: str, queries: Mapping[str, Any]) -> np.ndarray:
        ranks = np.array([queries[query]["rank"] for query in self.answers[side]], dtype=float)
        parts = (*(ranks <= k for k in KS), np.log(ranks))
        return np.stack([np.bincount(self.places[side], part, len(self.counts)) for part in parts], axis=1)


def _answers(queries: Mapping[str, Any]) -> dict[str, Any]:
    return {query: row.get("correct", []) for query, row in queries.items()}


def answer_groups(answers: Queries) -> dict[Query, Query]:
    """(direction, query) -> the group of its concept: what is linked by a right answer is in one group."""
    leader: dict[Query, Query] = {}

    def lead(query: Query) -> Query:
        while (above := leader.setdefault(query, query)) != query:
            leader[query] = leader[above]
            query = above
        return query

    for side, other in (("i2t", "t2i"), ("t2i", "i2t")):
        for query, row in answers.get(side, {}).items():
            for answer in row.get("correct", ()):
                leader[lead((other, answer))] = lead((side, query))
            lead((side, query))
    return {query: lead(query) for query in leader}
