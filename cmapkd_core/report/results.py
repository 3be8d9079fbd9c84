"""The sections on what a run's models can do: the paper's tables, recall as dots, what the teacher gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.report import efficiency, figures, papertables
from cmapkd_core.report.assemble import Report
from cmapkd_core.report.inputs import Inputs, Missing
from cmapkd_core.report.measured import Evaluation, chance, facts, measure
from cmapkd_core.report.papertable import Head, Line, PaperTable, difference
from cmapkd_core.report.section import Section, origins
from cmapkd_core.report.statistics import Interval
from cmapkd_core.report.style import Drawing
from cmapkd_core.report.table import KS, ROWS, Table, paired

SIDES = {"i2t": "Image to text", "t2i": "Text to image"}
ARTIFACTS = (
    *("shards", "teacher", "warmup", "alsn", "joint", "reference"),
    *("teacher_eval", "before_eval", "student_eval", "reference_eval", "levels"),
)
# A model of the run in the names of further evaluations -> its main evaluation, its kind in a table.
ROLES = {
    "teacher": ("teacher_eval", "teacher"),
    "before": ("before_eval", ""),
    "reference": ("reference_eval", ""),
    "student": ("student_eval", "ours"),
}
DOTS = "Dots: R@1, R@5, R@10 from left to right with one standard error. Dashed: R@1 by chance."
NO_SUITE = (
    "Missing: Table 4 compares recipes, and this is one run: submit.py --suite table4 --seeds 5 trains them all "
    "and ends in a report with that table."
)
Maker = Callable[[Report, str, str], list[PaperTable]]


def gather(inputs: Inputs, table: Table) -> Report:
    """The run's models with all their evaluations.

    Raises:
        InputError: two models were measured on different data.
    """
    extra = [name for name in inputs.sources if "/" in name]
    rows = []
    for role, (main, kind) in ROLES.items():
        found = [Evaluation("", "", inputs.source(main))]
        found += [Evaluation(n.partition("/")[0], "", inputs.source(n)) for n in extra if n.rpartition("/")[2] == role]
        rows.append(measure(role, table.row(main).label, found, kind))
    tools = efficiency.tools(inputs.source(n) for n in extra if n.startswith(f"{efficiency.TASK}/"))
    recipe = inputs.recipe
    return Report(tuple(rows), chance(rows), facts(rows), recipe.data.source, recipe.evaluate.split, tools)


def check_names(names: Iterable[str]) -> None:
    """Refuse an artifact whose name says nothing of a run.

    Raises:
        InputError: none of ARTIFACTS, and not of the form TASK/ROLE.
    """
    for name in names:
        if name not in ARTIFACTS and (name.count("/") != 1 or name.rpartition("/")[2] not in ROLES):
            form = f"TASK/ROLE with ROLE one of {', '.join(ROLES)}"
            raise InputError(f"--artifacts: {name} is not {form}, and no artifact of a run: {nearest(name, ARTIFACTS)}")


def in_table(make: Maker, key: str, title: str) -> Callable[[Inputs, Table, Report], Section]:
    """What makes a section with one of the paper's tables."""

    def section(inputs: Inputs, table: Table, report: Report) -> Section:
        made = tuple(make(report, key, title))
        return Section(tables=made, urls={name: url for one in made for name, url in one.origins().items()})

    return section


def retrieval(inputs: Inputs, table: Table, report: Report) -> Section:
    """Table 2, the difference to the student without a teacher on the same queries, and recall as dots."""
    made = papertables.retrieval(report, "table2_retrieval", "Image-text retrieval")
    absent = tuple(f"{row.label}: {row.missing}" for row in table.rows if row.missing)
    plots = tuple(dots(table))
    urls = {name: url for one in made for name, url in one.origins().items()} | origins(inputs, *ROWS)
    tables = (*made, *gained(inputs, table))
    return Section(DOTS if plots else "", plots, tables, absent, wide=True, tables_first=True, urls=urls)


def dots(table: Table) -> list[Drawing]:
    """One panel a side; [] where no retrieval was measured."""
    measured = [row for row in table.rows if "retrieval/i2t/R@1" in row.values]
    if not measured:
        return []
    counts = {"i2t": table.facts["retrieval/images"], "t2i": table.facts["retrieval/captions"]}
    best = max(r.values[f"retrieval/{side}/R@10"] for r in measured for side in SIDES)
    top = min(100.0, 10.0 * math.ceil((best + 3) / 10))
    return [figures.recalls(t, table.rows, table.chance, side, counts[side], top) for side, t in SIDES.items()]


def gained(inputs: Inputs, table: Table) -> list[PaperTable]:
    """Distilled minus fine-tuned R@k with its paired intervals, both ways; [] where one is missing."""
    try:
        ours = inputs.source("student_eval").json("retrieval.json")
        theirs = inputs.source("reference_eval").json("retrieval.json")
    except Missing:
        return []
    urls = origins(inputs, "student_eval", "reference_eval")
    lines = []
    for side, title in SIDES.items():
        found = {k: Interval(*paired(ours[side], theirs[side], k), len(ours[side])) for k in KS}
        lines.append(Line(title, tuple(difference(v, f"{side}/R@{k}", urls, 1) for k, v in found.items())))
    labels = [table.row(name).label for name in ("student_eval", "reference_eval")]
    note = (
        "95 % intervals; bold where the interval excludes zero. They hold the sampling of the test queries only; this "
        "is one seed, and another seed moves the numbers too."
    )
    title = f"“{labels[0]}” minus “{labels[1]}” on the same queries"
    heads = tuple(Head("", f"R@{k}", "points") for k in KS)
    return [PaperTable("retrieval_gain", title, heads, tuple(lines), (note,))]


def no_ablations(inputs: Inputs, table: Table, report: Report) -> Section:
    """Table 4 needs a suite."""
    return Section(tables=(PaperTable("table4_ablations", "Component ablation", missing=(NO_SUITE,)),))
