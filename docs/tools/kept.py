"""What docs/results keeps of a suite, and how it grows: a row and seed at a time, over several machines.

NAME.json has the numbers of every row and seed, the place of each evaluation, and the differences; NAME.npz what every
test concept adds to them, from which differences are made again when rows join. An evaluation's place below its root
says all that decides it, so a row of one suite is taken over into another that has it too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cmapkd_core.report.read.artifacts import Source
from cmapkd_core.report.read.concept_sums import CLASSES, CONCEPTS, ConceptSums, RowSeed
from cmapkd_core.report.read.results import KS, ModelResults, Results
from cmapkd_core.report.read.suite_inputs import BY_CONCEPT
from cmapkd_core.report.row_differences import Difference, against_equal_weights, compared, differences
from cmapkd_core.report.significance import LEVEL, holm, p_value
from cmapkd_core.stages.artifact import find

Differences = Mapping[str, Mapping[str, Difference]]  # row -> number -> the row minus its base
AGAINST_FULL, AGAINST_EQUAL = "differences", "against_equal_weights"
FACTS = ("suite", "recipe", "overrides")
LINK = "evaluations"  # row -> seed -> place
WIDER = "seeds_and_concepts"
CLOSE = 1e-6  # of two means of the same numbers, which rounding alone makes different


@dataclass(frozen=True)
class Kept:
    """A suite's numbers.

    Attributes:
        facts: those of FACTS. labels: row -> its name in a table, in the suite's order. teacher: as suite.json has it.
        values: (row, seed) -> number -> value. places: (row, seed) -> where its evaluation lies below a root.
        concepts: task -> what its concepts add, of those (row, seed) of which it is known.
        written: as files have them, `differences` and `against_equal_weights`; they have intervals over concepts that
            are not known any more.
    """

    facts: dict[str, Any]
    labels: dict[str, str]
    teacher: dict[str, Any]
    values: dict[RowSeed, dict[str, float]] = field(default_factory=dict)
    places: dict[RowSeed, str] = field(default_factory=dict)
    concepts: dict[str, ConceptSums] = field(default_factory=dict)
    written: tuple[Mapping[str, Mapping[str, Any]], ...] = ()

    @property
    def results(self) -> Results:
        """The rows that have a number, as a suite's report holds them."""
        rows = [ModelResults(name, label, self._by_number(name)) for name, label in self.labels.items()]
        measured = tuple(row for row in rows if row.values)
        return Results(measured, ModelResults("chance", "Chance", {}), {}, "", "", concepts=self.concepts)

    def _by_number(self, name: str) -> dict[str, dict[str, float]]:
        by_number: dict[str, dict[str, float]] = {}
        for (row, seed), numbers in sorted(self.values.items(), key=lambda item: int(item[0][1])):
            for key, value in numbers.items() if row == name else ():
                by_number.setdefault(key, {})[seed] = value
        return by_number


def of_report(report: Path) -> Kept:
    """The numbers of a suite's report; its evaluations are read where they still lie, for what their concepts add."""
    suite = json.loads(report.read_text(encoding="utf-8"))
    sources: dict[RowSeed, Source] = {}
    places: dict[RowSeed, str] = {}
    for name, url in suite["urls"].items():
        kind, _, cell = name.partition(" ")
        if kind == "evaluation":
            row, seed = cell.split("/")
            places[row, seed] = "/".join(url.rsplit("/", 2)[1:])
            artifact = find(url)
            if artifact is not None:
                sources[row, seed] = Source(name, url, frozenset(artifact.files()), artifact.fetch)
    kept = _of_json(suite, places)
    made = {
        task: read({c: s for c, s in sources.items() if file in s.files}) for task, (file, read) in BY_CONCEPT.items()
    }
    return replace(kept, concepts={task: sums for task, sums in made.items() if sums})


def load(path: Path) -> Kept:
    """What is kept as NAME.json, with NAME.npz where there is one."""
    suite = json.loads(path.read_text(encoding="utf-8"))
    places = {(row, seed): place for row, of in suite.get(LINK, {}).items() for seed, place in of.items()}
    arrays = path.with_suffix(".npz")
    concepts = _concepts(np.load(arrays)) if arrays.exists() else {}
    return replace(_of_json(suite, places), concepts=concepts)


def _of_json(suite: Mapping[str, Any], places: dict[RowSeed, str]) -> Kept:
    values: dict[RowSeed, dict[str, float]] = {}
    numbers = compared([ModelResults("", "", row["values"]) for row in suite["rows"]])
    for row in suite["rows"]:
        for key in numbers:
            for seed, value in row["values"].get(key, {}).items():
                values.setdefault((row["name"], seed), {})[key] = value
    return Kept(
        {name: suite[name] for name in FACTS if name in suite},
        {row["name"]: row["label"] for row in suite["rows"]},
        {"name": "teacher", "label": suite["teacher"]["label"], "values": _of(numbers, suite["teacher"]["values"])},
        values,
        places,
        written=({name: suite.get(name, {}) for name in (AGAINST_FULL, AGAINST_EQUAL)},),
    )


def _of(numbers: Iterable[str], values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in numbers if key in values}


def grown(suite: Kept, others: Iterable[Kept]) -> Kept:
    """A suite with those rows and seeds that it lacks, or whose concepts it lacks, as far as others know their places.

    Raises:
        ValueError: another has a place of it with other test concepts.
    """
    values, concepts = dict(suite.values), dict(suite.concepts)
    written = suite.written
    for other in others:
        at = {place: cell for cell, place in other.places.items() if cell in other.values}
        for cell in (cell for cell, place in suite.places.items() if place in at):
            theirs = at[suite.places[cell]]
            if cell not in values or (_knows(other.concepts, theirs) and not _knows(concepts, cell)):
                values[cell] = other.values[theirs]
                concepts = _with(concepts, cell, other.concepts, theirs)
        written += other.written
    return replace(suite, values=values, concepts=concepts, written=written)


def _knows(concepts: Mapping[str, ConceptSums], cell: RowSeed) -> bool:
    return any(cell in one.sums for one in concepts.values())


def _with(
    mine: dict[str, ConceptSums], cell: RowSeed, theirs: Mapping[str, ConceptSums], at: RowSeed
) -> dict[str, ConceptSums]:
    for task, one in theirs.items():
        if at in one.sums:
            own = mine.get(task, replace(one, sums={}, lacking={}))
            if not np.array_equal(own.counts, one.counts):
                raise ValueError(f"{cell} was measured on other test concepts than {at}: keep them in two files")
            mine = {**mine, task: replace(own, sums={**own.sums, cell: one.sums[at]})}
    return mine


def write(suite: Kept, path: Path) -> None:
    """Write NAME.json and, where concepts are known, NAME.npz."""
    path.write_text(json.dumps(as_json(suite), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if suite.concepts:
        np.savez_compressed(path.with_suffix(".npz"), **_arrays(suite.concepts))


def as_json(suite: Kept) -> dict[str, Any]:
    """NAME.json's value: values by seed, differences with both intervals, and how many comparisons were made."""
    results = suite.results
    links: dict[str, dict[str, str]] = {}
    for (row, seed), place in suite.places.items():
        if (row, seed) in suite.values:
            links.setdefault(row, {})[seed] = place
    value: dict[str, Any] = {
        **suite.facts,
        "seeds": sorted({seed for _, seed in suite.values}, key=int),
        "teacher": suite.teacher,
        "rows": [{"name": row.name, "label": row.label, "values": row.values} for row in results.rows],
        LINK: links,
        "comparisons": {},
    }
    for name, changes in ((AGAINST_FULL, differences(results)), (AGAINST_EQUAL, against_equal_weights(results))):
        value[name], value["comparisons"][name] = _compared(changes, [one[name] for one in suite.written])
    return value


def _compared(changes: Differences, written: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, int]]:
    """Differences for JSON, and how many comparisons there are.

    Where a row keeps fewer numbers than others, those count as compared all the same, as if nothing was found in them:
    that makes Holm's p of the others larger.
    """
    width = max((len(row) for row in changes.values()), default=0)
    ps = {
        (name, key): p for name, row in changes.items() for key, one in row.items() if (p := p_value(one)) is not None
    }
    lost = {("", str(i)): 1.0 for i in range(sum(width - len(row) for row in changes.values()))}
    by_rule = holm({**ps, **lost})
    made: dict[str, Any] = {}
    for name, row in changes.items():
        for key, one in row.items():
            earlier = [of[name][key] for of in written if key in of.get(name, {})]
            tests = {"p": ps.get((name, key)), "p_holm": by_rule.get((name, key))}
            made.setdefault(name, {})[key] = {**_ends(one), **tests, WIDER: _wider(one, earlier)}
    told = sum(by_rule[one] < 1 - LEVEL for one in ps)
    return made, {"made": len(ps) + len(lost), "told": told}


def _ends(one: Difference) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("mean", "low", "high", "n", "excludes_zero")}


def _wider(one: Difference, written: Sequence[Mapping[str, Any]]) -> Any:
    """The interval over seeds and concepts; where concepts are not known, as it was written of the same difference."""
    if one.wider:
        return asdict(one.wider)
    same = (of for of in written if of["n"] == one.n and math.isclose(of["mean"], one.mean, abs_tol=CLOSE))
    return next((of[WIDER] for of in same), None)


def _arrays(concepts: Mapping[str, ConceptSums]) -> dict[str, np.ndarray]:
    """Hits as whole numbers; sums of logarithms, where there are any, as they are, in 32 bits."""
    arrays = {}
    for task, one in concepts.items():
        arrays[f"{task}/counts"] = one.counts.astype(np.uint16)
        for (row, seed), sums in one.sums.items():
            hits = sums[..., : len(KS)]
            arrays[f"{task}/{row}/{seed}/hits"] = np.rint(hits).astype(np.uint16)
            if sums.shape[-1] > len(KS):
                arrays[f"{task}/{row}/{seed}/logs"] = sums[..., -1].astype(np.float32)
    return arrays


def _concepts(arrays: Mapping[str, np.ndarray]) -> dict[str, ConceptSums]:
    sums: dict[str, dict[RowSeed, np.ndarray]] = {}
    for name in arrays:
        task, *cell = name.split("/")
        if len(cell) == 3 and cell[2] == "hits":
            row, seed = cell[:2]
            parts = [arrays[name].astype(float)]
            if f"{task}/{row}/{seed}/logs" in arrays:
                parts.append(arrays[f"{task}/{row}/{seed}/logs"][..., None].astype(float))
            sums.setdefault(task, {})[row, seed] = np.concatenate(parts, axis=-1)
    of = {task: CLASSES if task == "zeroshot" else CONCEPTS for task in sums}
    return {task: ConceptSums(arrays[f"{task}/counts"].astype(float), one, of=of[task]) for task, one in sums.items()}
