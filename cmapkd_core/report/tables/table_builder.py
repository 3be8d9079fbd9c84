"""From what was measured to a table: columns that exist, rows that have a number, sentences for what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cmapkd_core.report.read.results import ModelResults, Results
from cmapkd_core.report.significance import LEVEL, Interval, counted, over_seeds
from cmapkd_core.report.tables.table import Cell, Head, Table, TableRow, mean_cell


@dataclass(frozen=True)
class Field:
    """One number of an evaluation, by its name below TASK[-DATASET]."""

    metric: str
    group: str
    label: str
    unit: str = "%"
    digits: int = 1


@dataclass(frozen=True)
class Column:
    """One number of a table, by its full name."""

    key: str
    head: Head
    digits: int = 1
    scale: float = 1.0
    exact: bool = False  # the same for every seed by its nature, such as a size: no interval then


@dataclass(frozen=True)
class Extra:
    """Columns that are no plain numbers: their headings, and a row's cells."""

    heads: tuple[Head, ...] = ()
    cells: Callable[[ModelResults], tuple[Cell, ...]] = lambda row: ()


NOTHING = Extra()
SIZE = Column("parameters/both", Head("", "parameters", "M"), 1, 1e-6, exact=True)


def columns_of(results: Results, parts: Mapping[str, Sequence[Field]]) -> list[Column]:
    """The columns of the tasks that were measured; each data set of a task has its own group."""
    columns = []
    for task, fields in parts.items():
        for name in results.names(task):
            wanted = [one for one in fields if any(f"{name}/{one.metric}" in row.values for row in results.rows)]
            columns += [column(name, one) for one in wanted]
    return columns


def column(name: str, one: Field) -> Column:
    """A field of the evaluation `name`; the heading says the data set where it is not the recipe's own."""
    dataset = name.partition("-")[2]
    group = f"{one.group}, {dataset}" if dataset else one.group
    return Column(f"{name}/{one.metric}", Head(group, one.label, one.unit), one.digits)


def absent(results: Results, parts: Mapping[str, Sequence[Field]]) -> list[str]:
    """A sentence for each task that nobody was measured on: why, or what it would give."""
    sentences = []
    for task, fields in parts.items():
        if results.names(task):
            continue
        reasons = dict.fromkeys(row.reasons[task] for row in results.rows if task in row.reasons)
        labels = ", ".join(one.label for one in fields)
        sentences.append(
            f"Not measured: {task}. {' '.join(reasons)}"
            if reasons
            else f"Not measured: {task}, which would give {labels}."
        )
    return sentences


def build_table(
    results: Results,
    key: str,
    title: str,
    columns: Sequence[Column],
    *,
    notes: Iterable[str] = (),
    missing: Iterable[str] = (),
    lead: Sequence[Column] = (),
    before: Extra = NOTHING,
    after: Extra = NOTHING,
) -> Table:
    """The rows that have at least one number of `columns`, and chance; the other rows are named below.

    Args:
        lead: columns before these, which make no row a row of this table.
        before, after: columns at the left and right end that are no plain numbers.
    """
    if not columns:
        return Table(key, title, missing=tuple(missing))
    shown = [row for row in results.rows if any(column.key in row.values for column in columns)]
    left = [row.label for row in results.rows if row not in shown]
    shown += [results.chance] if any(column.key in results.chance.values for column in columns) else []
    every = [*(c for c in lead if any(c.key in row.values for row in shown)), *columns]
    n = Extra((Head("", "n"),), partial(_seeds, every)) if results.several else NOTHING
    heads = (*before.heads, *(column.head for column in every), *after.heads, *n.heads)
    rows = [
        TableRow(row.label, (*before.cells(row), *_numbers(row, every), *after.cells(row), *n.cells(row)), row.kind)
        for row in shown
    ]
    all_notes = [*notes, *([spread_note()] if results.several else [])]
    all_notes += [f"Not measured for this table: {', '.join(left)}."] if left else []
    return Table(key, title, heads, tuple(rows), tuple(all_notes), tuple(missing))


def _numbers(row: ModelResults, columns: Sequence[Column]) -> tuple[Cell, ...]:
    estimates = {c: over_seeds(row, c.key) for c in columns}
    known = {c: without_interval(one) if one and c.exact and not one.half else one for c, one in estimates.items()}
    return tuple(
        mean_cell(one, f"{row.name}/{c.key}", row.origins.get(c.key, {}), c.digits, c.scale) for c, one in known.items()
    )


def without_interval(estimate: Interval) -> Interval:
    """The mean of what is the same for every seed."""
    return Interval(estimate.mean, None, estimate.n)


def _seeds(columns: Sequence[Column], row: ModelResults) -> tuple[Cell, ...]:
    """How many seeds the row's means are over, which may differ where some evaluations are missing."""
    if row.kind in ("teacher", "chance"):
        return (Cell(""),)
    estimates = [over_seeds(row, column.key) for column in columns if not column.exact]
    return (Cell(counted([one.n for one in estimates if one] or [len(row.seeds)])),)


def spread_note() -> str:
    """What the intervals hold and what they do not."""
    return (
        f"Mean over n seeds ± half the width of its {100 * LEVEL:.0f} % t-interval, which holds what seeds change "
        "(order, crops, untrained parts), not which test samples there happen to be."
    )
