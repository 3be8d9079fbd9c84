"""A table of the paper as data: rows, columns, values, intervals, and what each value was made from.

One object gives the page's HTML (tables.html.j2), Markdown and LaTeX, so that they cannot differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cmapkd_core.report.read.results import ModelResults
from cmapkd_core.report.row_differences import Adjusted, wider_of
from cmapkd_core.report.significance import Interval, signed

MARK = "\N{DAGGER}"  # of a difference
FINE = 0.1  # half of an interval that is shown with two digits
NO_SPREAD = "no spread"  # where an interval would stand
NO_SPREAD_NOTE = (
    "No spread: all values that a mean is over are the very same, so they show no interval; that is not one of width 0."
)


@dataclass(frozen=True)
class Head:
    """A column: the heading over several columns, the heading, and its unit ("" of words and counts)."""

    group: str
    label: str
    unit: str = ""
    words: bool = False  # text, so aligned to the left


@dataclass(frozen=True)
class Cell:
    """What stands in a table.

    main: the number. spread: its interval, `± 0.4` or `[-2.0 to -0.4]`. wider: the one over seeds and test concepts,
    `(-2.1 to -0.3)`. bold: its interval excludes zero.
    """

    main: str = "-"
    spread: str = ""
    wider: str = ""
    bold: bool = False
    interval: Interval | None = None
    number: str = ""  # its name in numbers.json, ROW/KEY
    origins: dict[str, str] = field(default_factory=dict)  # artifact's name -> URL
    difference: bool = False
    test: Adjusted | None = None  # of a difference, among all of its table (tables/marks.py)

    @property
    def mark(self) -> str:
        """What stands behind the number of a difference that Holm's rule tells."""
        return MARK if self.test and self.test.significant else ""

    def text(self) -> str:
        """Number, mark and intervals as they stand in every form of the table."""
        return " ".join(part for part in (self.main + self.mark, self.spread, self.wider) if part)

    def width(self) -> int:
        """Characters of its longest line: two intervals stand below the number."""
        return max(map(len, (self.main + self.mark, self.spread, self.wider))) if self.wider else len(self.text())


@dataclass(frozen=True)
class TableRow:
    """A row. kind: "ours", "teacher", "chance", or "" for the others; a table has a rule where the kind changes."""

    label: str
    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its notes; one without rows has `missing` sentences in their place.

    What its cells alone say nothing of, `no spread`, gets a note by itself.

    key: what its files are called; one that begins with `table2` is the paper's Table 2. title: without a full stop.
    stub: the heading of the column that names the rows.
    """

    key: str
    title: str
    heads: tuple[Head, ...] = ()
    rows: tuple[TableRow, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    stub: str = ""
    aside: bool = False  # for the paper's folder alone, not for the page

    def __post_init__(self) -> None:
        unspread = any(NO_SPREAD in cell.spread for row in self.rows for cell in row.cells)
        if unspread and NO_SPREAD_NOTE not in self.notes:
            object.__setattr__(self, "notes", (*self.notes, NO_SPREAD_NOTE))

    def heading(self) -> str:
        """Number and title: `Table 2. Image-text retrieval`; an own counting or data set of it has the same number."""
        number = re.match(r"table(\d+)", self.key)
        return f"Table {number[1]}. {self.title}" if number else self.title

    def groups(self) -> list[tuple[str, int]]:
        """Headings over the columns and how many neighbours each spans."""
        spans: list[tuple[str, int]] = []
        for head in self.heads:
            if spans and spans[-1][0] == head.group:
                spans[-1] = (head.group, spans[-1][1] + 1)
            else:
                spans.append((head.group, 1))
        return spans

    def opens(self, column: int) -> bool:
        """True for the first column of a group, in a table that has groups."""
        if not any(head.group for head in self.heads):
            return False
        return column == 0 or self.heads[column].group != self.heads[column - 1].group

    def width(self) -> int:
        """Characters of the widest row, about."""
        rows = [[len(line.label), *(cell.width() for cell in line.cells)] for line in self.rows]
        return sum(max(column) for column in zip(*rows, strict=True))

    def units(self) -> list[str]:
        """Headings with their units: `R@1, %`."""
        return [f"{head.label}, {head.unit}" if head.unit else head.label for head in self.heads]

    def origins(self) -> dict[str, str]:
        """Every artifact that a value is from, name -> URL."""
        return {name: url for row in self.rows for cell in row.cells for name, url in cell.origins.items()}


def difference_cells(
    changes: Mapping[str, Interval], named: str, of: Sequence[ModelResults], digits: Mapping[str, int]
) -> tuple[Cell, ...]:
    """A row's differences in the numbers of `digits`, in its order; a dash for one that is not there.

    Args:
        named: what stands before a number's key in its name.
        of: the row and what it is compared with, whose artifacts the numbers are from.
        digits: number -> digits behind its point.
    """
    return tuple(
        difference_cell(changes.get(key), f"{named}/{key}", of[0].origins.get(key, {}) | of[1].origins.get(key, {}), n)
        for key, n in digits.items()
    )


def mean_cell(
    estimate: Interval | None,
    number: str,
    origins: dict[str, str],
    digits: int = 1,
    scale: float = 1.0,
) -> Cell:
    """`31.2 ± 1.4`; the mean alone of one seed; a dash for nothing. `scale`: from the stored unit to the table's.

    Where all seeds gave one value no interval is claimed, as in `difference_cell`.
    """
    if estimate is None:
        return Cell()
    half = None if estimate.half is None else estimate.half * scale
    scaled = Interval(estimate.mean * scale, half, estimate.n)
    spread = "" if half is None else f"± {half:.{digits}f}" if half else NO_SPREAD
    return Cell(f"{scaled.mean:.{digits}f}", spread, interval=scaled, number=number, origins=origins)


def number_cell(
    value: float | None, number: str, origins: dict[str, str], digits: int = 2, otherwise: str = "-", sign: str = ""
) -> Cell:
    """A number without an interval; `otherwise` for one that is not known. sign: "+" shows it of positive ones too."""
    if value is None:
        return Cell(otherwise)
    return Cell(f"{value:{sign}.{digits}f}", interval=Interval(value, None, 1), number=number, origins=origins)


def difference_cell(estimate: Interval | None, number: str, origins: dict[str, str], digits: int = 1) -> Cell:
    """`-1.20 [-2.03 to -0.37]`, bold where the interval excludes zero; the difference alone of one seed.

    `-1.20 [-2.03 to -0.37] (-2.20 to -0.20)` where the interval over seeds and test concepts is known.
    """
    if estimate is None:
        return Cell()
    return Cell(
        signed(estimate.mean, digits),
        ends(estimate, digits),
        wider_ends(estimate, digits),
        estimate.excludes_zero,
        estimate,
        number,
        origins,
        difference=True,
    )


def digits_of(column: Iterable[Interval]) -> int:
    """Digits that show a column's differences: 2 where 1 would leave nothing of an interval."""
    return 2 if any(one.half and one.half < FINE for one in column) else 1


def wider_ends(estimate: Interval, digits: int = 2) -> str:
    """`(-2.20 to -0.20)`, over seeds and test concepts; nothing where that is not known."""
    wider = wider_of(estimate)
    return f"({signed(wider.low, digits)} to {signed(wider.high, digits)})" if wider else ""


def ends(estimate: Interval, digits: int = 2) -> str:
    """`[-2.03 to -0.37]`, `[no spread]` where all seeds gave the same value, nothing of one seed."""
    if estimate.half is None:
        return ""
    return f"[{signed(estimate.low, digits)} to {signed(estimate.high, digits)}]" if estimate.half else f"[{NO_SPREAD}]"


def ruled(rows: Iterable[TableRow]) -> list[list[TableRow]]:
    """The lines in groups of neighbours of one kind; our own rows belong to those before them."""
    groups: list[list[TableRow]] = []
    for row in rows:
        kind = "" if row.kind == "ours" else row.kind
        if groups and ("" if groups[-1][0].kind == "ours" else groups[-1][0].kind) == kind:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
