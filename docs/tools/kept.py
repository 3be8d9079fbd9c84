"""What docs/results keeps of a suite, and how it grows: a row and seed at a time, over several machines.

NAME.json has the numbers of every row and seed, the places of their evaluations below a root, and the differences;
NAME.npz what every test concept adds to the numbers, from which differences are made again when rows join. A place
says all that decides an evaluation, so what one suite has is taken over into another that has the same row.

Another machine's floating point gives slightly other numbers, from the teacher on. So each number is of a *fit* of the
teacher, and a row is compared, seed by seed, with the full method of the same fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cmapkd_core.report.read.artifacts import Source
from cmapkd_core.report.read.concept_sums import CLASSES, CONCEPTS, ConceptSums, RowSeed
from cmapkd_core.report.read.results import KS, ModelResults, Results
from cmapkd_core.report.read.suite_inputs import BY_CONCEPT, RANK, full_of
from cmapkd_core.report.row_differences import Difference, against_equal_weights, compared, differences
from cmapkd_core.report.significance import LEVEL, holm, p_value
from cmapkd_core.stages.artifact import find

Cell = tuple[str, str, str]  # row, seed, fit
Numbers = Mapping[str, float]
Differences = Mapping[str, Mapping[str, Difference]]  # row -> number -> the row minus its base
AGAINST_FULL, AGAINST_EQUAL = "differences", "against_equal_weights"
FACTS = ("suite", "recipe", "overrides")
WIDER = "seeds_and_concepts"
CLOSE = 1e-6  # of two means of the same numbers, which rounding alone makes different


@dataclass(frozen=True)
class Kept:
    """A suite's numbers.

    Attributes:
        facts: those of FACTS. labels: row -> its name in a table, in the suite's order. teachers: fit -> the teacher's
            numbers; the first counts where a seed was measured with several.
        values: the numbers of every cell. places: (row, seed) -> where its evaluation lies below a root.
        concepts: task -> what its concepts add, of those cells of which it is known, as (row, SEED@FIT).
        written: differences as files have them, with intervals over concepts that are not known any more.
    """

    facts: dict[str, Any]
    labels: dict[str, str]
    teachers: dict[str, Numbers]
    values: dict[Cell, Numbers]
    places: dict[RowSeed, str]
    concepts: dict[str, ConceptSums] = field(default_factory=dict)
    written: tuple[Mapping[str, Any], ...] = ()

    @property
    def results(self) -> Results:
        """The rows that have a number, as a suite's report holds them, with SEED@FIT for a seed."""
        rows = (ModelResults(row, label, self._numbers(row)) for row, label in self.labels.items())
        measured = tuple(row for row in rows if row.values)
        return Results(measured, ModelResults("chance", "Chance", {}), {}, "", "", concepts=self.concepts)

    def _numbers(self, row: str) -> dict[str, dict[str, float]]:
        """The row's numbers by SEED@FIT: of the full method all, of another one a fit each."""
        cells = [cell for cell in self.values if cell[0] == row]
        if full_of(row) != row:
            fits = {seed: self._fit(row, seed) for _, seed, _ in cells}
            cells = [cell for cell in cells if fits[cell[1]] == cell[2]]
        by_number: dict[str, dict[str, float]] = {}
        for _, seed, fit in sorted(cells, key=lambda cell: (int(cell[1]), [*self.teachers].index(cell[2]))):
            for key, value in self.values[row, seed, fit].items():
                by_number.setdefault(key, {})[f"{seed}@{fit}"] = value
        return by_number

    def _fit(self, row: str, seed: str) -> str:
        """The first fit that has the row; one where the full method was measured too goes before."""
        fits = [fit for fit in self.teachers if (row, seed, fit) in self.values]
        return min(fits, key=lambda fit: (full_of(row), seed, fit) not in self.values)


def fit_of(teacher: Numbers) -> str:
    """What a fit of the teacher is called: its rank on the test split, to more digits than two fits share.

    Raises:
        ValueError: the teacher was not evaluated.
    """
    if RANK not in teacher:
        raise ValueError("the report has no numbers of the teacher, by which its fit is known: evaluate it first")
    return f"{teacher[RANK]:.6f}"


def of_report(report: Path) -> Kept:
    """The numbers of a suite's report; its evaluations are read where they still lie, for what their concepts add."""
    suite = json.loads(report.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in suite["rows"]}
    keys = [*compared([ModelResults(name, "", row["values"]) for name, row in rows.items()])]
    teacher = {key: of[""] for key, of in suite["teacher"]["values"].items() if key in keys}
    fit, values = fit_of(teacher), {}
    for name, row in rows.items():
        for key in keys:
            for seed, value in row["values"].get(key, {}).items():
                values.setdefault((name, seed, fit), {})[key] = value
    urls = {name.partition(" ")[2]: url for name, url in suite["urls"].items() if name.startswith("evaluation ")}
    return Kept(
        {name: suite[name] for name in FACTS if name in suite},
        {name: row["label"] for name, row in rows.items()},
        {fit: teacher},
        values,
        {(row, seed): "/".join(url.split("/")[-2:]) for cell, url in urls.items() for row, seed in [cell.split("/")]},
        _read(urls, fit),
    )


def _read(urls: Mapping[str, str], fit: str) -> dict[str, ConceptSums]:
    """What concepts add, from the evaluations that are complete; urls: ROW/SEED -> URL."""
    found = {cell: (url, artifact) for cell, url in urls.items() if (artifact := find(url))}
    concepts: dict[str, ConceptSums] = {}
    for task, (file, read) in BY_CONCEPT.items():
        sources = {}
        for cell, (url, artifact) in found.items():
            row, seed = cell.split("/")
            if file in artifact.files():
                sources[row, f"{seed}@{fit}"] = Source(cell, url, frozenset(artifact.files()), artifact.fetch)
        if sums := read(sources):
            concepts[task] = sums
    return concepts


def load(path: Path) -> Kept:
    """What is kept as NAME.json, with NAME.npz where there is one."""
    suite = json.loads(path.read_text(encoding="utf-8"))
    arrays = path.with_suffix(".npz")
    return Kept(
        {name: suite[name] for name in FACTS if name in suite},
        {row["name"]: row["label"] for row in suite["rows"]},
        {fit_of(teacher): teacher for teacher in suite["teachers"]},
        {(row["name"], *key.split("@")): numbers for row in suite["rows"] for key, numbers in row["measured"].items()},
        {(row["name"], seed): place for row in suite["rows"] for seed, place in row["evaluations"].items()},
        _concepts(np.load(arrays)) if arrays.exists() else {},
        (suite[AGAINST_FULL], suite[AGAINST_EQUAL]),
    )


def joined(suite: Kept, others: Iterable[Kept]) -> Kept:
    """A suite with what others have of its rows and seeds; their fits go before its own.

    Raises:
        ValueError: another's evaluations have other test concepts.
    """
    teachers: dict[str, Numbers] = {}
    values, concepts, written = dict(suite.values), dict(suite.concepts), suite.written
    for other in others:
        at = {place: cell for cell, place in other.places.items()}
        taken = {at[place]: cell for cell, place in suite.places.items() if place in at}
        for (row, seed, fit), numbers in other.values.items():
            if (row, seed) in taken:
                cell = (*taken[row, seed], fit)
                teachers[fit] = other.teachers[fit]
                values[cell] = numbers
                concepts = _with(concepts, cell, other.concepts, (row, seed, fit))
        written += other.written
    return replace(suite, teachers=teachers | suite.teachers, values=values, concepts=concepts, written=written)


def _with(
    mine: dict[str, ConceptSums], cell: Cell, theirs: Mapping[str, ConceptSums], at: Cell
) -> dict[str, ConceptSums]:
    (row, *key), (their_row, *their_key) = cell, at
    for task, one in theirs.items():
        if (sums := one.sums.get((their_row, "@".join(their_key)))) is not None:
            own = mine.get(task, replace(one, sums={}, lacking={}))
            if not np.array_equal(own.counts, one.counts):
                raise ValueError(f"{at} was measured on other test concepts than {cell}: keep them in two files")
            mine = {**mine, task: replace(own, sums={**own.sums, (row, "@".join(key)): sums})}
    return mine


def write(suite: Kept, path: Path) -> None:
    """Write NAME.json and, where concepts are known, NAME.npz."""
    path.write_text(json.dumps(as_json(suite), indent=1) + "\n", encoding="utf-8")
    if suite.concepts:
        np.savez_compressed(path.with_suffix(".npz"), **_arrays(suite.concepts))


def as_json(suite: Kept) -> dict[str, Any]:
    """NAME.json's value: numbers by SEED@FIT, differences with both intervals, how many comparisons were made."""
    results = suite.results
    value: dict[str, Any] = {
        **suite.facts,
        "seeds": sorted({seed for _, seed, _ in suite.values}, key=int),
        "teachers": [*suite.teachers.values()],
        "rows": [_row(suite, row) for row in suite.labels if any(row == cell[0] for cell in suite.values)],
        "comparisons": {},
    }
    for name, changes in ((AGAINST_FULL, differences(results)), (AGAINST_EQUAL, against_equal_weights(results))):
        value[name], value["comparisons"][name] = _compared(changes, suite.written)
    return value


def _row(suite: Kept, name: str) -> dict[str, Any]:
    """values: what a table shows, one number a seed. measured: all numbers."""
    values: dict[str, dict[str, float]] = {}
    for key, of in suite.results.row(name).values.items():
        for cell, value in of.items():
            values.setdefault(key, {}).setdefault(cell.partition("@")[0], value)
    return {
        "name": name,
        "label": suite.labels[name],
        "values": values,
        "measured": {f"{seed}@{fit}": numbers for (row, seed, fit), numbers in suite.values.items() if row == name},
        "evaluations": {seed: place for (row, seed), place in suite.places.items() if row == name},
    }


def _compared(changes: Differences, written: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, int]]:
    """Differences for JSON, and how many comparisons there are.

    Where a row keeps fewer numbers than others, those count as compared all the same, as if nothing was found in them:
    that makes Holm's p of the others larger.
    """
    width = max((len(row) for row in changes.values()), default=0)
    every = {(name, key): one for name, row in changes.items() for key, one in row.items()}
    ps = {name: p for name, one in every.items() if (p := p_value(one)) is not None}
    lost = {("", str(i)): 1.0 for i in range(sum(width - len(row) for row in changes.values()))}
    by_rule = holm({**ps, **lost})
    known = [(key, one) for of in written for row in of.values() for key, one in row.items()]
    made: dict[str, Any] = {name: {} for name in changes}
    for (name, key), one in every.items():
        ends = {part: getattr(one, part) for part in ("mean", "low", "high", "n", "excludes_zero")}
        tests = {"p": ps.get((name, key)), "p_holm": by_rule.get((name, key))}
        made[name][key] = {**ends, **tests, WIDER: _wider(one, [of for of_key, of in known if of_key == key])}
    return made, {"made": len(ps) + len(lost), "told": sum(by_rule[one] < 1 - LEVEL for one in ps)}


def _wider(one: Difference, written: Iterable[Mapping[str, Any]]) -> Any:
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
        for (row, key), sums in one.sums.items():
            arrays[f"{task}/{row}/{key}/hits"] = np.rint(sums[..., : len(KS)]).astype(np.uint16)
            if sums.shape[-1] > len(KS):
                arrays[f"{task}/{row}/{key}/logs"] = sums[..., -1].astype(np.float32)
    return arrays


def _concepts(arrays: Mapping[str, np.ndarray]) -> dict[str, ConceptSums]:
    sums: dict[str, dict[RowSeed, np.ndarray]] = {}
    for name in (name for name in arrays if name.endswith("/hits")):
        task, row, key, _ = name.split("/")
        parts, logs = [arrays[name].astype(float)], name.replace("/hits", "/logs")
        if logs in arrays:
            parts.append(arrays[logs][..., None].astype(float))
        sums.setdefault(task, {})[row, key] = np.concatenate(parts, axis=-1)
    of = {task: CLASSES if task == "zeroshot" else CONCEPTS for task in sums}
    return {task: ConceptSums(arrays[f"{task}/counts"].astype(float), one, of=of[task]) for task, one in sums.items()}
