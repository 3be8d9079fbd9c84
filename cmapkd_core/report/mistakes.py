"""The section on errors: what the student lost and gained against its teacher, query by query and class by class."""

from __future__ import annotations

from typing import Any

from cmapkd_core.report.inputs import Inputs, Missing
from cmapkd_core.report.papertable import Cell, Head, Line, PaperTable, plain
from cmapkd_core.report.section import Section, origins

SIDES = {"i2t": "Image to text", "t2i": "Text to image"}
FIRST = (1, 10)  # a query is right where a right answer is among the first 1, or 10
OUTCOMES = ("both right", "teacher alone", "student alone", "neither")
LEAST_IMAGES = 5  # a class with fewer is no evidence
CLASSES = 8  # shown
CAPTION = (
    "Where the student fails. First: each test query by who has a right answer among the first k. “Teacher alone” is "
    "what distillation did not bring over, “student alone” what it has for itself."
)


def errors(inputs: Inputs) -> Section:
    """Queries by who answers them, and the classes on which the student lost most.

    Raises:
        Missing: the teacher or the student was not evaluated.
    """
    tables = [queries(inputs)]
    absent = []
    try:
        tables.append(classes(inputs))
    except Missing as reason:
        absent.append(str(reason))
    return Section(CAPTION, tables=tuple(tables), missing=tuple(absent), urls=origins(inputs, *_BOTH))


_BOTH = ("teacher_eval", "student_eval")


def queries(inputs: Inputs) -> PaperTable:
    """Shares of the queries by outcome."""
    theirs, ours = (inputs.source(name).json("retrieval.json") for name in _BOTH)
    urls = origins(inputs, *_BOTH)
    lines = []
    for side, title in SIDES.items():
        for k in FIRST:
            found = shares(ours[side], theirs[side], k)
            cells = [plain(found[name], f"{side}/R@{k}/{name}", urls, 1) for name in OUTCOMES]
            lines.append(Line(f"{title}, first {k}", (*cells, Cell(str(len(ours[side]))))))
    heads = (*(Head("", name, "%") for name in OUTCOMES), Head("", "queries"))
    return PaperTable("errors_queries", "Queries by who answers them", heads, tuple(lines), stub="Right answer in")


def shares(ours: dict[str, Any], theirs: dict[str, Any], k: int) -> dict[str, float]:
    """Percent of the queries by outcome; queries of the student that the teacher was not asked are left out."""
    known = [query for query in ours if query in theirs]
    pairs = [(theirs[q]["rank"] <= k, ours[q]["rank"] <= k) for q in known]
    wanted = dict(zip(OUTCOMES, ((True, True), (True, False), (False, True), (False, False)), strict=True))
    return {name: 100 * pairs.count(outcome) / max(1, len(pairs)) for name, outcome in wanted.items()}


def classes(inputs: Inputs) -> PaperTable:
    """The classes with the greatest fall of zero-shot top-1 from teacher to student.

    Raises:
        Missing: one of the two has no zero-shot result.
    """
    theirs, ours = (_by_class(inputs, name) for name in _BOTH)
    urls = origins(inputs, *_BOTH)
    known = [name for name, row in ours.items() if name in theirs and row["images"] >= LEAST_IMAGES]
    if not known:
        raise Missing(f"Not shown: no class has {LEAST_IMAGES} test images, so no class is evidence by itself.")
    fall = {name: theirs[name]["top1"] - ours[name]["top1"] for name in known}
    worst = sorted(known, key=lambda name: (-fall[name], name))[:CLASSES]
    lines = []
    for name in worst:
        values = {"teacher": theirs[name]["top1"], "student": ours[name]["top1"]}
        cells = [plain(value, f"{name}/{who}", urls, 1) for who, value in values.items()]
        change = plain(-fall[name], f"{name}/change", urls, 1, sign="+")
        lines.append(Line(name, (*cells, change, Cell(str(ours[name]["images"])))))
    heads = (*(Head("", who, "%") for who in ("teacher", "student")), Head("", "change", "points"), Head("", "images"))
    title = f"Zero-shot top-1 of the {len(worst)} classes with the greatest fall"
    note = f"Of {len(known)} classes with at least {LEAST_IMAGES} test images; the others are too few to say anything."
    return PaperTable("errors_classes", title, heads, tuple(lines), (note,), stub="Class")


def _by_class(inputs: Inputs, name: str) -> dict[str, dict[str, Any]]:
    detail = inputs.source(name).json("zeroshot.json")
    if "missing" in detail:
        raise Missing(f"Classes: {detail['missing']}")
    return {row["class"]: row for row in detail["classes"] if row["top1"] is not None}
