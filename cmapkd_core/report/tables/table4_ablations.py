"""The paper's Table 4: what each row of a suite is, and its difference to the full method."""

from __future__ import annotations

from dataclasses import replace

from cmapkd_core.report.read.results import GEOMETRIC_RANK, MEAN_RECALL, SIDES, ModelResults, Results
from cmapkd_core.report.read.suite_inputs import FULL_METHOD, full_of, meaning
from cmapkd_core.report.row_differences import differences
from cmapkd_core.report.tables.marks import with_marks
from cmapkd_core.report.tables.table import Cell, Head, Table, difference_cell, digits_of
from cmapkd_core.report.tables.table2_retrieval import LOWER, MEAN_FIELD, RANK_FIELD
from cmapkd_core.report.tables.table3_probes import VQA, ZEROSHOT
from cmapkd_core.report.tables.table_builder import Extra, Field, absent, build_table, columns_of

MAIN = (
    *(Field(f"{side}/R@1", "Retrieval", f"{title.lower()} R@1") for side, title in SIDES.items()),
    *(replace(one, group="Retrieval") for one in (MEAN_FIELD, RANK_FIELD)),
)


def ablation_tables(results: Results, key: str, title: str) -> list[Table]:
    """Table 4: what each row is, its main numbers, and its difference to the full method, seed by seed."""
    parts = {"retrieval": MAIN, "zeroshot": ZEROSHOT[:1], "vqa": VQA[:1]}
    compared_by = {Head("", f"mean recall minus {FULL_METHOD}", "points"): f"retrieval/{MEAN_RECALL}"}
    compared_by |= {Head("", f"geometric mean rank minus {FULL_METHOD}"): f"retrieval/{GEOMETRIC_RANK}"}

    columns, changes = columns_of(results, parts), differences(results)
    compared_by = {
        head: number for head, number in compared_by.items() if any(number in row for row in changes.values())
    }
    origins = {row.name: row.origins for row in results.rows}
    digits = {key: digits_of(row[key] for row in changes.values() if key in row) for key in compared_by.values()}

    def meaning_cell(row: ModelResults) -> tuple[Cell, ...]:
        return (Cell(meaning(row.name) if row.kind in ("", "ours") else ""),)

    def compared(row: ModelResults) -> tuple[Cell, ...]:
        differences_of_row = changes.get(row.name, {})
        names = {number: f"{row.name}/minus full method/{number}" for number in compared_by.values()}
        return tuple(
            difference_cell(
                differences_of_row[key],
                name,
                row.origins.get(key, {}) | origins[full_of(row.name)].get(key, {}),
                digits[key],
            )
            if key in differences_of_row
            else Cell()
            for key, name in names.items()
        )

    last = Extra(tuple(compared_by), compared)
    made = build_table(
        results,
        key,
        title,
        columns,
        notes=[LOWER] if any(one.head.label == RANK_FIELD.label for one in columns) else [],
        missing=absent(results, parts),
        before=Extra((Head("", "what it is", words=True),), meaning_cell),
        after=last if changes else Extra(),
    )
    return [with_marks(made)]
