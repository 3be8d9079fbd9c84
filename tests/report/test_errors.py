"""Errors: queries by who answers them, and classes by what they lost."""

from __future__ import annotations

import json

import pytest

from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.sections.run_sections import errors_section
from cmapkd_core.report.tables.lost_and_gained import OUTCOMES, classes_by_fall, outcome_shares


def test_shares_by_hand():
    theirs = {q: {"rank": r} for q, r in {"a": 1, "b": 1, "c": 4, "d": 9}.items()}
    ours = {q: {"rank": r} for q, r in {"a": 1, "b": 2, "c": 1, "d": 12}.items()}
    assert outcome_shares(ours, theirs, 1) == dict.fromkeys(OUTCOMES, 25.0)
    assert outcome_shares(ours, theirs, 10) == {
        "both right": 75.0,
        "teacher alone": 25.0,
        "student alone": 0.0,
        "neither": 0.0,
    }


def test_the_classes_that_fell_most(make_inputs):
    section = errors_section(make_inputs())
    queries, classes = section.tables
    # The teacher finds the first half of the queries, the student the first 30 % (see conftest).
    assert [cell.main for cell in queries.rows[0].cells] == ["30.0", "20.0", "0.0", "50.0", "20"]
    assert [line.label for line in classes.rows] == [f"c{i}" for i in range(12, 4, -1)]
    assert [cell.main for cell in classes.rows[0].cells] == ["90.0", "54.0", "-36.0", "12"]
    assert "Of 8 classes with at least 5 test images" in classes.notes[0]


def test_without_classes_the_queries_stand(make_inputs):
    inputs = make_inputs()
    inputs.source("student_eval").path("zeroshot.json").write_text(json.dumps({"missing": "no class"}))
    section = errors_section(inputs)
    assert [made.key for made in section.tables] == ["errors_queries"]
    assert section.missing == ("Classes: no class",)


def test_small_classes_are_no_evidence(make_inputs):
    inputs = make_inputs()
    rows = {"classes": [{"class": "c", "images": 4, "top1": 50.0}]}
    for name in ("student_eval", "teacher_eval"):
        inputs.source(name).path("zeroshot.json").write_text(json.dumps(rows))
    with pytest.raises(Missing, match="no class has 5 test images"):
        classes_by_fall(inputs)
