"""What the student lost and gained against its teacher, query by query and class by class."""

from __future__ import annotations

from typing import Any

from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.results import SIDES
from cmapkd_core.report.read.run_inputs import RunInputs, origins
from cmapkd_core.report.tables.table import Cell, Head, Table, TableRow, number_cell

FIRST = (1, 10)  # a query is right where a right answer is among the first 1, or 10
OUTCOMES = ("both right", "teacher alone", "student alone", "neither")
LEAST_IMAGES = 5  # a class with fewer is no evidence
CLASSES = 8  # shown
COMPARED_EVALUATIONS = ("teacher_eval", "student_eval")


def queries_by_outcome(inputs: RunInputs) -> Table:
    """Shares of the queries by outcome."""
    teacher, student = (inputs.source(name).json("retrieval.json") for name in COMPARED_EVALUATIONS)
    urls = origins(inputs, *COMPARED_EVALUATIONS)
    lines = []
    for side, title in SIDES.items():
        for k in FIRST:
            shares = outcome_shares(student[side], teacher[side], k)
            cells = [number_cell(shares[name], f"{side}/R@{k}/{name}", urls, 1) for name in OUTCOMES]
            lines.append(TableRow(f"{title}, first {k}", (*cells, Cell(str(len(student[side]))))))
    heads = (*(Head("", name, "%") for name in OUTCOMES), Head("", "queries"))
    return Table("errors_queries", "Queries by who answers them", heads, tuple(lines), stub="Right answer in")


def outcome_shares(student: dict[str, Any], teacher: dict[str, Any], k: int) -> dict[str, float]:
    """Percent of the queries by outcome; queries of the student that the teacher was not asked are left out."""
    known = [query for query in student if query in teacher]
    pairs = [(teacher[q]["rank"] <= k, student[q]["rank"] <= k) for q in known]
    wanted = dict(zip(OUTCOMES, ((True, True), (True, False), (False, True), (False, False)), strict=True))
    return {name: 100 * pairs.count(outcome) / max(1, len(pairs)) for name, outcome in wanted.items()}


def classes_by_fall(inputs: RunInputs) -> Table:
    """The classes with the greatest fall of zero-shot top-1 from teacher to student.

    Raises:
        Missing: one of the two has no zero-shot result.
    """
    teacher, student = (_by_class(inputs, name) for name in COMPARED_EVALUATIONS)
    urls = origins(inputs, *COMPARED_EVALUATIONS)
    known = [name for name, row in student.items() if name in teacher and row["images"] >= LEAST_IMAGES]
    if not known:
        raise Missing(f"Not shown: no class has {LEAST_IMAGES} test images, so no class is evidence by itself.")
    fall = {name: teacher[name]["top1"] - student[name]["top1"] for name in known}
    worst = sorted(known, key=lambda name: (-fall[name], name))[:CLASSES]
    lines = []
    for name in worst:
        values = {"teacher": teacher[name]["top1"], "student": student[name]["top1"]}
        cells = [number_cell(value, f"{name}/{who}", urls, 1) for who, value in values.items()]
        change = number_cell(-fall[name], f"{name}/change", urls, 1, sign="+")
        lines.append(TableRow(name, (*cells, change, Cell(str(student[name]["images"])))))
    heads = (*(Head("", who, "%") for who in ("teacher", "student")), Head("", "change", "points"), Head("", "images"))
    title = f"Zero-shot top-1 of the {len(worst)} classes with the greatest fall"
    note = f"Of {len(known)} classes with at least {LEAST_IMAGES} test images; the others are too few to say anything."
    return Table("errors_classes", title, heads, tuple(lines), (note,), stub="Class")


def _by_class(inputs: RunInputs, name: str) -> dict[str, dict[str, Any]]:
    detail = inputs.source(name).json("zeroshot.json")
    if "missing" in detail:
        raise Missing(f"Classes: {detail['missing']}")
    return {row["class"]: row for row in detail["classes"] if row["top1"] is not None}
