"""Retrieval examples: what the model found for some of the test images and captions, failures included."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.run_inputs import MAIN_EVALUATIONS, ROLES, RunInputs, origins
from cmapkd_core.report.read.samples import thumbnails
from cmapkd_core.report.sections.section import Section

Queries = dict[str, dict[str, Any]]  # i2t or t2i of retrieval.json
# Place of the best correct answer -> name of the group: its lowest and its highest place.
GROUPS: dict[str, tuple[int, float]] = {
    "Right answer first": (1, 1),
    "Right answer second to fifth": (2, 5),
    "Right answer not among the first five": (6, float("inf")),
}
OTHERS = ("teacher", "before", "reference")


@dataclass(frozen=True)
class Answer:
    """One answer in a ranking."""

    answer: str  # a caption, or an image's key
    correct: bool
    picture: str = ""  # data URL


@dataclass(frozen=True)
class Example:
    """One query with the answers found, best first, and the place of the right one for each model."""

    query: str
    answers: list[Answer]
    rank: int
    correct: list[str]
    ranks: dict[str, int]
    picture: str = ""


@dataclass
class Group:
    """Examples of one kind, and how often the kind occurs."""

    name: str
    share: float  # percent of all queries
    examples: list[Example] = field(default_factory=list)


def choose_examples(queries: Queries, count: int) -> dict[str, tuple[float, list[str]]]:
    """Per group of GROUPS its share in percent and `count` queries of it, in the order of the queries' SHA-256.

    The order has nothing to do with how good an example looks, and is the same for every model.
    """
    order = sorted(queries, key=lambda query: hashlib.sha256(query.encode()).digest())
    chosen = {}
    for name, (low, high) in GROUPS.items():
        members = [query for query in order if low <= queries[query]["rank"] <= high]
        chosen[name] = (100 * len(members) / len(queries), members[:count])
    return chosen


def collect(inputs: RunInputs, side: str, count: int) -> list[Group]:
    """Groups of examples of the distilled student, for side `i2t` or `t2i`.

    Raises:
        Missing: no retrieval.json of the student, or no shards to take the pictures from.
    """
    queries: Queries = inputs.source("student_eval").json("retrieval.json")[side]
    others = _others(inputs, side)
    show = thumbnails(inputs)
    groups = []
    for name, (share, members) in choose_examples(queries, count).items():
        group = Group(name, share)
        for query in members:
            ranking, picture = queries[query], (show if side == "i2t" else _none)(query)
            correct = set(ranking["correct"])
            answers = [Answer(a, a in correct, (_none if side == "i2t" else show)(a)) for a, _ in ranking["top"]]
            ranks = {label: table[query]["rank"] for label, table in others.items() if query in table}
            group.examples.append(Example(query, answers, ranking["rank"], sorted(correct), ranks, picture))
        groups.append(group)
    return groups


def _others(inputs: RunInputs, side: str) -> dict[str, Queries]:
    """The other models' rankings; one that was not evaluated is left out here, and the main table says so."""
    tables = {}
    for name in OTHERS:
        try:
            tables[ROLES[name].short] = inputs.source(ROLES[name].evaluation).json("retrieval.json")[side]
        except Missing:
            continue
    return tables


def _none(key: str) -> str:
    return ""


EXAMPLES = {"i2t": 4, "t2i": 2}  # per group of GROUPS
CHOICE = (
    "Test queries in an order by hash, not by looks, so many of each kind. Right answers are bold with a tick; below "
    "stands the place of the best right answer for the student, and for the other models in brackets."
)


def examples_section(inputs: RunInputs) -> Section:
    """Pictures with the captions found, and captions with the pictures found."""
    groups = {side: collect(inputs, side, count) for side, count in EXAMPLES.items()}
    return Section(CHOICE, urls=origins(inputs, "shards", *MAIN_EVALUATIONS), content=groups)
