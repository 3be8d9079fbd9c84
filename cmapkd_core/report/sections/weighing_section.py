"""What weights of levels won over equal ones, and beside it what weights that cheat won: the bound of a selector."""

from __future__ import annotations

from cmapkd_core.catalog import SELECTORS
from cmapkd_core.recipes import ROWS
from cmapkd_core.report.figures.comparisons import draw_differences
from cmapkd_core.report.read.results import Results
from cmapkd_core.report.read.suite_inputs import MEAN, RANK, SuiteInputs
from cmapkd_core.report.row_differences import EQUAL, against_equal_weights, compared
from cmapkd_core.report.sections.section import Section
from cmapkd_core.report.tables.marks import with_marks
from cmapkd_core.report.tables.table import Head, Table, TableRow, difference_cells, digits_of

EQUAL_WEIGHTS = "equal weights"  # in sentences and figures
BOUND = (
    "The oracle's weights follow at every update from the gradient on validation pairs, which no selector may see: "
    "about so much could be won by weights that lower the loss of the next update, and its student is no result."
)


def weighing_section(inputs: SuiteInputs, results: Results) -> Section:
    """Rows that differ from the full method by their selector alone, against equal weights; nothing without both."""
    changes = against_equal_weights(results)
    if not any(changes.values()):
        return Section()
    numbers_of = compared(results.row(name) for name in changes)
    columns = {name: one for name, one in numbers_of.items() if name in (MEAN, RANK) or one.group == "Zero-shot"}
    digits = {key: digits_of(row[key] for row in changes.values() if key in row) for key in columns}
    lines = []
    for name, numbers in changes.items():
        row, base = results.row(name), results.row(EQUAL)
        cells = difference_cells(numbers, f"{name}/minus {EQUAL_WEIGHTS}", (row, base), digits)
        lines.append(TableRow(row.label, cells, row.kind))
    heads = tuple(Head("", f"{one.label} minus {EQUAL_WEIGHTS}", one.unit) for one in columns.values())
    ranks = {results.row(name).label: numbers[RANK] for name, numbers in changes.items() if RANK in numbers}
    drawn = draw_differences("Geometric mean rank, better to the right", ranks, EQUAL_WEIGHTS, "ranks")
    table = Table("weighing", "Weights of levels, minus equal weights", heads, tuple(lines))
    caption = "Each row minus the one with equal weights for all levels, seed by seed."
    return Section(
        f"{caption} {BOUND}" if any(cheats(name) for name in changes) else caption,
        (drawn,) if ranks else (),
        (with_marks(table),),
        wide=True,
    )


def cheats(row: str) -> bool:
    """Whether a row's weights read validation pairs."""
    kind = ROWS.get(row, {}).get("selector.kind")
    return kind in SELECTORS and SELECTORS[kind].validates
