"""Weights of levels against equal ones: the right rows, the right sign, and the bound said only where it was measured.

What would make these fail: a row that changes more than its selector stands in the table; the difference is taken the
other way round or to the full method; a page without equal weights has the section all the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_suites import ranked_suite

from cmapkd_core.recipes import SUITES
from cmapkd_core.report.read.artifacts import Source
from cmapkd_core.report.read.suite_inputs import MEAN, RANK, label, suite_results
from cmapkd_core.report.row_differences import differences
from cmapkd_core.report.sections.section import Section
from cmapkd_core.report.sections.weighing_section import weighing_section
from cmapkd_core.report.tables.summary import suite_as_json

EFFECTS = {"no_alsn": 0.1, "oracle_alsn": -0.2, "manual_alsn": 0.1, "one_stage": 0.3, "kd": 0.5, "none": 0.0}


def section(folder: Path, *rows: str) -> Section:
    inputs = ranked_suite(folder, {row: EFFECTS[row] for row in rows}, seeds=3)
    return weighing_section(inputs, suite_results(inputs))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Section:
    return section(tmp_path_factory.mktemp("weighing"), *EFFECTS)


def test_rows_that_change_the_selector_alone_stand_there(made: Section) -> None:
    (table,) = made.tables
    assert [row.label for row in table.rows] == [label(name) for name in ("oracle_alsn", "manual_alsn", "none")]
    assert len(made.figures) == 1
    assert "validation pairs" in made.caption


def test_it_is_the_row_minus_equal_weights(tmp_path: Path) -> None:
    inputs = ranked_suite(tmp_path, {"no_alsn": 0.1, "none": 0.0}, seeds=3)
    results = suite_results(inputs)
    to_full = differences(results)["no_alsn"]
    (row,) = weighing_section(inputs, results).tables[0].rows
    means = {cell.number.rpartition("equal weights/")[2]: cell.interval for cell in row.cells}
    assert {MEAN, RANK} <= {*means}
    for key, interval in means.items():
        assert interval is not None
        assert interval.mean == pytest.approx(-to_full[key].mean)
        assert interval.half == pytest.approx(to_full[key].half)
    (of,) = suite_as_json(inputs, results)["against_equal_weights"].values()
    assert of[RANK]["mean"] == pytest.approx(-to_full[RANK].mean)
    assert means[RANK].mean < 0  # the row without ALSN was made the worse one


def test_the_bound_is_said_only_of_a_row_that_cheats(tmp_path: Path) -> None:
    assert "validation pairs" not in section(tmp_path, "no_alsn", "manual_alsn", "none").caption


@pytest.mark.parametrize("rows", [("none", "manual_alsn"), ("no_alsn", "one_stage"), ("no_alsn",)])
def test_there_is_nothing_without_both(tmp_path: Path, rows: tuple[str, ...]) -> None:
    assert section(tmp_path, *rows).bare


def test_table_4_has_both_beside_the_full_method() -> None:
    assert {"no_alsn", "oracle_alsn", "none"} <= {*SUITES["table4"]}


def test_equal_weights_that_were_not_measured_are_nothing_to_compare_with(tmp_path: Path) -> None:
    inputs = ranked_suite(tmp_path, {"no_alsn": 0.1, "manual_alsn": 0.1, "none": 0.0}, seeds=3)
    gone = {c: Source("gone") if c[0] == "no_alsn" else one for c, one in inputs.evaluations.items()}
    without = replace(inputs, evaluations=gone)
    assert weighing_section(without, suite_results(without)).bare
