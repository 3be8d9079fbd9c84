"""What docs/results keeps of a suite, and how it grows: a row and seed at a time, over several machines.

NAME.json has the numbers of every row and seed, the places of their evaluations below a root, and the differences;
NAME.npz what every test concept adds to the numbers, from which differences are made again when rows join. A place
says all that decides an evaluation, so what one suite has is taken over into another that has the same row.

Another machine's floating point gives slightly other numbers, from the teacher on or, beside an equal teacher, of the
students. So each number is of a *fit* of the teacher, an execution of its stage on one machine, and a row is compared,
seed by seed, with the full method of the same fit. A row with a teacher of its own, which lies at another place, is of
the fit of the suite that it was measured in. Fits that are the same to the last digit in all that both have, a student
among it, are one. (Two machines that train below one root would have one fit.)
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import kept_arrays
import numpy as np

from cmapkd_core.report.read.artifacts import Source
from cmapkd_core.report.read.concept_sums import ConceptSums, RowSeed
from cmapkd_core.report.read.results import ModelResults, Results
from cmapkd_core.report.read.suite_inputs import BY_CONCEPT, full_of
from cmapkd_core.report.row_differences import (
    EQUAL,
    Difference,
    against_equal_weights,
    compared,
    differences,
    of_selector,
)
from cmapkd_core.report.significance import holm, p_value
from cmapkd_core.stages.artifact import Artifact, find

Cell = tuple[str, str, str]  # row, seed, fit
Numbers = Mapping[str, float]
Differences = Mapping[str, Mapping[str, Difference]]  # row -> number -> the row minus its base
Pairs = frozenset[tuple[str, str, str]]  # places of a row and of its base, and their fit, seed by seed
AGAINST_FULL, AGAINST_EQUAL = "differences", "against_equal_weights"
FACTS = ("suite", "recipe", "overrides")
WIDER = "seeds_and_concepts"
# What a row is compared with; itself where it is not compared.
BASES: dict[str, Callable[[str], str]] = {
    AGAINST_FULL: full_of,
    AGAINST_EQUAL: lambda row: EQUAL if of_selector(row) else row,
}


@dataclass(frozen=True)
class Kept:
    """A suite's numbers.

    Attributes:
        facts: those of FACTS. labels: row -> its name in a table, in the suite's order. teachers: fit -> the teacher's
            numbers. numbers: how many each row was compared by, of which older files keep a part.
        values: the numbers of every cell. places: (row, seed) -> where its evaluation lies below a root.
        concepts: task -> what its concepts add, of those cells of which it is known, as (row, SEED@FIT).
        written: intervals over concepts that are not known any more, by number and what was compared.
    """

    facts: dict[str, Any]
    labels: dict[str, str]
    teachers: dict[str, Numbers]
    numbers: int
    values: dict[Cell, Numbers]
    places: dict[RowSeed, str]
    concepts: dict[str, ConceptSums] = field(default_factory=dict)
    written: Mapping[tuple[str, Pairs], Any] = field(default_factory=dict)

    def results(self, base_of: Callable[[str], str] = full_of) -> Results:
        """The rows that have a number, as a suite's report holds them, with SEED@FIT for a seed.

        Rows that others are compared with have all fits; each other row has one fit for a seed.
        """
        rows = (ModelResults(row, label, self._numbers(row, base_of(row))) for row, label in self.labels.items())
        measured = tuple(row for row in rows if row.values)
        return Results(measured, ModelResults("chance", "Chance", {}), {}, "", "", concepts=self.concepts)

    def _numbers(self, row: str, base: str) -> dict[str, dict[str, float]]:
        fits = self.fits(row, base)
        seeds: dict[str, list[str]] = {}
        for fit in fits:
            for _, seed, _ in (cell for cell in self.values if cell[0] == row and cell[2] == fit):
                seeds.setdefault(seed, []).append(fit)
        by_number: dict[str, dict[str, float]] = {}
        for seed in sorted(seeds, key=int):
            # Where it is compared at all it comes first: fits without the base are the last ones.
            paired = [fit for fit in seeds[seed] if (base, seed, fit) in self.values] or seeds[seed]
            for fit in seeds[seed] if row == base else paired[:1]:
                for key, value in self.values[row, seed, fit].items():
                    by_number.setdefault(key, {})[f"{seed}@{fit}"] = value
        return by_number

    def fits(self, row: str, base: str) -> list[str]:
        """Fits of the teacher, that first with which most seeds of a row can be compared."""
        pairs = [fit for name, seed, fit in self.values if name == row and (base, seed, fit) in self.values]
        return sorted(self.teachers, key=lambda fit: -pairs.count(fit))

    def pairs(self, row: ModelResults, base: ModelResults, key: str) -> Pairs:
        """What a difference of two rows is of."""
        cells = (cell.split("@") for cell in row.values.get(key, {}) if cell in base.values.get(key, {}))
        return frozenset(
            (self.places.get((row.name, seed), ""), self.places.get((base.name, seed), ""), fit) for seed, fit in cells
        )


@dataclass(frozen=True)
class Teacher:
    """A teacher that was evaluated, or that a student learned from.

    Attributes:
        place: where it lies below a root, which says all that decides it. fit: the first digits of its artifact's
            digest, which no two executions share.
    """

    place: str
    fit: str


def place_of(url: str) -> str:
    """Where an artifact lies below a root: STAGE/DIGEST."""
    return "/".join(url.split("/")[-2:])


def teacher_of(made_from: Mapping[str, str]) -> Teacher:
    """The teacher that a manifest names among what was read: its `url` and `digest`."""
    return Teacher(place_of(made_from["url"]), made_from["digest"][:8])


def evaluated_teacher(evaluation: str) -> Teacher:
    """The teacher of an evaluation at this URL, "" where there is none.

    Raises:
        ValueError: there is none.
    """
    artifact = find(evaluation) if evaluation else None
    if artifact is None:
        raise ValueError("the report has no evaluation of the teacher, by which its fit is known: evaluate it first")
    return teacher_of(artifact.manifest["inputs"]["model"])


def taught_by(evaluated: Artifact) -> Teacher | None:
    """What an evaluated student learned from; None of one without a teacher, or whose artifact is not there."""
    url = evaluated.manifest["inputs"].get("model", {}).get("url", "")
    student = find(url) if url else None
    made_from = student.manifest["inputs"].get("teacher") if student else None
    return teacher_of(made_from) if made_from else None


def of_report(report: Path) -> Kept:
    """The numbers of a suite's report; its evaluations are read where they still lie, for what their concepts add."""
    suite = json.loads(report.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in suite["rows"]}
    keys = [*compared([ModelResults(name, "", row["values"]) for name, row in rows.items()])]
    teacher = {key: of[""] for key, of in suite["teacher"]["values"].items() if key in keys}
    evaluated, values = evaluated_teacher(suite["urls"].get("teacher", "")), {}
    fit = evaluated.fit
    for name, row in rows.items():
        for key in keys:
            for seed, value in row["values"].get(key, {}).items():
                values.setdefault((name, seed, fit), {})[key] = value
    urls = {name.partition(" ")[2]: url for name, url in suite["urls"].items() if name.startswith("evaluation ")}
    return Kept(
        {name: suite[name] for name in FACTS if name in suite},
        {name: row["label"] for name, row in rows.items()},
        {fit: teacher},
        len(keys),
        values,
        {(row, seed): place_of(url) for cell, url in urls.items() for row, seed in [cell.split("/")]},
        _read(urls, evaluated),
    )


def _read(urls: Mapping[str, str], teacher: Teacher) -> dict[str, ConceptSums]:
    """What concepts add, from the evaluations that are complete; urls: ROW/SEED -> URL.

    Raises:
        ValueError: a student learned from another fit of the suite's teacher.
    """
    found = {cell: (url, artifact) for cell, url in urls.items() if (artifact := find(url))}
    for cell, (_, artifact) in found.items():
        own = taught_by(artifact)
        if own and own.place == teacher.place and own.fit != teacher.fit:
            raise ValueError(
                f"{cell} is of another fit of the teacher, {own.fit}, than {teacher.fit}: run the suite again"
            )
    concepts: dict[str, ConceptSums] = {}
    for task, (file, read) in BY_CONCEPT.items():
        sources = {}
        for cell, (url, artifact) in found.items():
            row, seed = cell.split("/")
            if file in artifact.files():
                sources[row, f"{seed}@{teacher.fit}"] = Source(cell, url, frozenset(artifact.files()), artifact.fetch)
        if sums := read(sources):
            concepts[task] = sums
    return concepts


def load(path: Path) -> Kept:
    """What is kept as NAME.json, with NAME.npz where there is one."""
    suite = json.loads(path.read_text(encoding="utf-8"))
    arrays = path.with_suffix(".npz")
    kept = Kept(
        {name: suite[name] for name in FACTS if name in suite},
        {row["name"]: row["label"] for row in suite["rows"]},
        dict(zip(suite["fits"], suite["teachers"], strict=True)),
        suite["numbers"],
        {(row["name"], *key.split("@")): of for row in suite["rows"] for key, of in row["measured"].items()},
        {(row["name"], seed): place for row in suite["rows"] for seed, place in row["evaluations"].items()},
        kept_arrays.unpacked(np.load(arrays)) if arrays.exists() else {},
    )
    return replace(kept, written=dict(_written(kept, suite)))


def _written(kept: Kept, suite: Mapping[str, Any]) -> Iterator[tuple[tuple[str, Pairs], Any]]:
    for kind, base_of in BASES.items():
        rows = {row.name: row for row in kept.results(base_of).rows}
        for name, numbers in suite[kind].items():
            for key, one in numbers.items():
                yield (key, kept.pairs(rows[name], rows[base_of(name)], key)), one[WIDER]


def joined(suite: Kept, others: Iterable[Kept]) -> Kept:
    """A suite with what others have of its rows and seeds; their fits go before its own.

    Raises:
        ValueError: another's evaluations have other test concepts.
    """
    teachers: dict[str, Numbers] = {}
    values, concepts, written = dict(suite.values), dict(suite.concepts), dict(suite.written)
    for other in others:
        rows: dict[RowSeed, list[RowSeed]] = {}  # its row and seed -> those of the suite at the same place
        for own, place in suite.places.items():
            for theirs in (cell for cell, at in other.places.items() if at == place):
                rows.setdefault(theirs, []).append(own)
        taken = [cell for cell in other.values if cell[:2] in rows]
        fits = {fit for _, _, fit in taken}
        teachers = teachers | {fit: of for fit, of in other.teachers.items() if fit in fits and fit not in teachers}
        for row, seed, fit in taken:
            for own in rows[row, seed]:
                values[*own, fit] = {**other.values[row, seed, fit], **values.get((*own, fit), {})}
                concepts = _with(concepts, (*own, fit), other.concepts, (row, seed, fit))
        written |= {what: wider for what, wider in other.written.items() if wider or what not in written}
        suite = replace(suite, numbers=max(suite.numbers, other.numbers if taken else 0))
    grown = replace(suite, teachers=teachers | suite.teachers, values=values, concepts=concepts, written=written)
    return _used(_of_one_arithmetic(grown))


def _of_one_arithmetic(suite: Kept) -> Kept:
    """The suite with one name for fits whose machines compute alike: the later one's.

    After hundreds of updates the least difference of two machines' floating point shows in a student's numbers. So
    where teachers, and every row and seed that both fits have, are the same to the last digit, so would the others be.
    """
    for first, second in itertools.combinations(suite.teachers, 2):
        if _alike(suite, first, second):
            return _of_one_arithmetic(_renamed(suite, first, second))
    return suite


def _alike(suite: Kept, first: str, second: str) -> bool:
    """Whether two fits are the same in all that both have, which has a student."""
    both = [
        (of, suite.values[row, seed, second])
        for (row, seed, fit), of in suite.values.items()
        if fit == first and (row, seed, second) in suite.values
    ]
    pairs = [(suite.teachers[first], suite.teachers[second]), *both]
    return bool(both) and all(one[key] == other[key] for one, other in pairs for key in one.keys() & other.keys())


def _renamed(suite: Kept, old: str, new: str) -> Kept:
    """The suite with another name of a fit; what has the new name already is not replaced."""

    def merged(cells: Mapping[RowSeed, Any]) -> dict[RowSeed, Any]:
        had = {at: of for at, of in cells.items() if not at[1].endswith(f"@{old}")}
        return {(row, seed.replace(f"@{old}", f"@{new}")): of for (row, seed), of in cells.items()} | had

    values = merged({(row, f"{seed}@{fit}"): of for (row, seed, fit), of in suite.values.items()})
    return replace(
        suite,
        teachers={fit: of for fit, of in suite.teachers.items() if fit != old},
        values={(row, *seed.split("@")): of for (row, seed), of in values.items()},
        concepts={
            task: replace(one, sums=merged(one.sums), lacking=merged(one.lacking))
            for task, one in suite.concepts.items()
        },
        written={
            (key, frozenset((*places, new if fit == old else fit) for *places, fit in pairs)): wider
            for (key, pairs), wider in suite.written.items()
        },
    )


def _used(suite: Kept) -> Kept:
    """The suite without what another machine measured again and nothing is compared with."""
    used: dict[Cell, None] = {}
    for base_of in BASES.values():
        rows = {row.name: row for row in suite.results(base_of).rows}
        for name, row in rows.items():
            base = base_of(name)
            others = (
                {key for of in rows[base].values.values() for key in of} if base in rows and base != name else set()
            )
            for key in {key for of in row.values.values() for key in of} if base != name else ():
                used |= dict.fromkeys((of, *key.split("@")) for of in ((name, base) if key in others else (name,)))
    seeds = {cell[:2] for cell in used}
    for name, seed in {cell[:2] for cell in suite.values} - seeds:
        used[name, seed, next(fit for fit in suite.fits(name, name) if (name, seed, fit) in suite.values)] = None
    fits = {fit for _, _, fit in used}
    concepts = {
        task: replace(one, sums={at: of for at, of in one.sums.items() if (at[0], *at[1].split("@")) in used})
        for task, one in suite.concepts.items()
    }
    return replace(
        suite,
        teachers={fit: of for fit, of in suite.teachers.items() if fit in fits},
        values={cell: of for cell, of in suite.values.items() if cell in used},
        concepts={task: one for task, one in concepts.items() if one.sums},
    )


def _with(
    mine: dict[str, ConceptSums], cell: Cell, theirs: Mapping[str, ConceptSums], at: Cell
) -> dict[str, ConceptSums]:
    own_key, their_key = ((row, f"{seed}@{fit}") for row, seed, fit in (cell, at))
    for task, one in theirs.items():
        own = mine.get(task, replace(one, sums={}, lacking={}))
        if their_key in one.sums and own_key not in own.sums:
            if not np.array_equal(own.counts, one.counts):
                raise ValueError(f"{at} was measured on other test concepts than {cell}: keep them in two files")
            mine = {**mine, task: replace(own, sums={**own.sums, own_key: one.sums[their_key]})}
    return mine


def write(suite: Kept, path: Path) -> None:
    """Write NAME.json and, where concepts are known, NAME.npz."""
    path.write_text(json.dumps(as_json(suite), indent=1) + "\n", encoding="utf-8")
    if suite.concepts:
        np.savez_compressed(path.with_suffix(".npz"), **kept_arrays.packed(suite.concepts))


def as_json(suite: Kept) -> dict[str, Any]:
    """NAME.json's value: numbers by SEED@FIT, differences with both intervals, how many comparisons were made."""
    value: dict[str, Any] = {
        **suite.facts,
        "seeds": sorted({seed for _, seed, _ in suite.values}, key=int),
        "fits": [*suite.teachers],
        "teachers": [*suite.teachers.values()],
        "numbers": suite.numbers,
        "rows": [_row(suite, row) for row in suite.results().rows],
        "comparisons": {},
    }
    made = {AGAINST_FULL: differences, AGAINST_EQUAL: against_equal_weights}
    for kind, base_of in BASES.items():
        results = suite.results(base_of)
        value[kind], value["comparisons"][kind] = _compared(suite, results, made[kind](results), base_of)
    return value


def _row(suite: Kept, row: ModelResults) -> dict[str, Any]:
    """values: what a table shows, one number a seed. measured: all numbers."""
    order = suite.fits(row.name, row.name)
    values: dict[str, dict[str, float]] = {}
    for key, of in row.values.items():
        for cell in sorted(of, key=lambda cell: (int(cell.split("@")[0]), order.index(cell.split("@")[1]))):
            values.setdefault(key, {}).setdefault(cell.split("@")[0], of[cell])
    return {
        "name": row.name,
        "label": row.label,
        "values": values,
        "measured": {
            f"{seed}@{fit}": numbers for (name, seed, fit), numbers in suite.values.items() if name == row.name
        },
        "evaluations": {seed: place for (name, seed), place in suite.places.items() if name == row.name},
    }


def _compared(
    suite: Kept, results: Results, changes: Differences, base_of: Callable[[str], str]
) -> tuple[dict[str, Any], int]:
    """Differences for JSON, and how many comparisons there are.

    Numbers that a row is not known to have count as compared all the same, as if nothing was found in them: that makes
    Holm's p of the others larger. A row with one seed makes no comparison.
    """
    every = {(name, key): one for name, row in changes.items() for key, one in row.items()}
    ps = {name: p for name, one in every.items() if (p := p_value(one)) is not None}
    known = [sum(one.n > 1 for one in row.values()) for row in changes.values()]
    lost = {("", str(i)): 1.0 for i in range(sum(suite.numbers - n for n in known if n))}
    by_rule = holm({**ps, **lost})
    made: dict[str, Any] = {name: {} for name in changes}
    for (name, key), one in every.items():
        pairs = suite.pairs(results.row(name), results.row(base_of(name)), key)
        wider = asdict(one.wider) if one.wider else suite.written.get((key, pairs))
        ends = {part: getattr(one, part) for part in ("mean", "low", "high", "n", "excludes_zero")}
        made[name][key] = {**ends, "p": ps.get((name, key)), "p_holm": by_rule.get((name, key)), WIDER: wider}
    return made, len(ps) + len(lost)
