"""What a run's student gained on the same queries, against the student without a teacher and before training."""

from __future__ import annotations

from collections.abc import Iterator

from cmapkd_core.errors import InputError
from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.concepts import QUERIES, Queries, answer_groups
from cmapkd_core.report.read.results import KS, SIDES, Results
from cmapkd_core.report.read.run_inputs import ROLES, RunInputs, origins
from cmapkd_core.report.significance import LEVEL, Interval, mean_of_means
from cmapkd_core.report.tables.marks import with_marks
from cmapkd_core.report.tables.table import Cell, Head, Table, TableRow, difference_cell

STUDENT = "student"
AGAINST = {"reference": "", "before": "before/"}  # role -> what its numbers' names begin with
MEAN = "mean"
CUTS = {**{f"R@{k}": (k,) for k in KS}, MEAN: KS}  # heading -> the cut-offs that it is the mean of
DIRECTIONS = {name: (side,) for side, name in SIDES.items()} | {"Both ways": tuple(SIDES)}


def gain_tables(inputs: RunInputs, results: Results) -> list[Table]:
    """The student minus the others, R@k both ways with paired intervals; [] where there is nobody to compare with."""
    known = {role: answers for role in AGAINST if (answers := _known(inputs, role))}
    if not known:
        return []
    rows = []
    for title, sides in DIRECTIONS.items():
        cells = [
            cell for role, (student, other) in known.items() for cell in _cells(inputs, role, student, other, sides)
        ]
        rows.append(TableRow(title, tuple(cells)))
    heads = tuple(Head(minus(results.row(role).label), head, "points") for role in known for head in CUTS)
    plain = f"Bold: the paired t-interval over the test queries at {100 * LEVEL:.0f} %, in [ ], excludes zero."
    note = (
        "A picture and its captions count as one, and so do pictures that share a caption. The intervals hold the "
        "sampling of the test queries only; this is one seed, and another seed moves the numbers too."
    )
    title = f"“{results.row(STUDENT).label}” minus the others, on the same queries"
    return [with_marks(Table("retrieval_gain", title, heads, tuple(rows), (note,)), plain)]


def minus(label: str) -> str:
    """The heading over the columns of one comparison."""
    return f"minus “{label}”"


def _cells(inputs: RunInputs, role: str, student: Queries, other: Queries, sides: tuple[str, ...]) -> Iterator[Cell]:
    urls = origins(inputs, ROLES[STUDENT].evaluation, ROLES[role].evaluation)
    named = f"{AGAINST[role]}{'both' if len(sides) > 1 else sides[0]}"
    for head, ks in CUTS.items():
        yield difference_cell(recall_gain(student, other, ks, sides), f"{named}/{head}", urls, 1)


def _known(inputs: RunInputs, role: str) -> tuple[Queries, Queries] | None:
    try:
        return retrievals(inputs, role)
    except Missing:
        return None


def retrievals(inputs: RunInputs, role: str) -> tuple[Queries, Queries]:
    """The student's answers and another model's.

    Raises:
        Missing: one of the two was not evaluated.
    """
    student, other = (inputs.source(ROLES[name].evaluation).json(QUERIES) for name in (STUDENT, role))
    return student, other


def recall_gain(
    minuend: Queries, subtrahend: Queries, ks: tuple[int, ...] = KS, sides: tuple[str, ...] = tuple(SIDES)
) -> Interval | None:
    """Difference of the mean of R@k over cut-offs and directions, in points; None of no query.

    Args:
        ks, sides: what the mean is over; all of both is the difference of the mean recall.

    Returns:
        the difference with a t-interval over groups, a picture with its captions each (`answer_groups`); its `n` is
        their number. Where no caption is shared and only one direction is asked it is that of scipy's `ttest_rel`.

    Raises:
        InputError: the two hold different queries.
    """
    if any(minuend[side].keys() != subtrahend[side].keys() for side in sides):
        raise InputError("two evaluations have different queries: evaluate both on the same shards and split")
    if not all(minuend[side] for side in sides):
        return None
    gains = [
        {
            (side, query): 100 * (_hits(row["rank"], ks) - _hits(subtrahend[side][query]["rank"], ks)) / len(ks)
            for query, row in minuend[side].items()
        }
        for side in sides
    ]
    return mean_of_means(gains, answer_groups(minuend))


def _hits(rank: int, ks: tuple[int, ...]) -> int:
    return sum(rank <= k for k in ks)
