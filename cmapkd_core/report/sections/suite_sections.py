"""The sections of a suite's page: the paper's tables, differences to the full method, costs, shares, deviations."""

from __future__ import annotations

from collections.abc import Mapping

from cmapkd_core.recipes import FULL
from cmapkd_core.report.figures.comparisons import draw_differences
from cmapkd_core.report.read.results import Results
from cmapkd_core.report.read.suite_inputs import FULL_METHOD, MEAN, RANK, SuiteInputs, compared_with, full_of
from cmapkd_core.report.row_differences import Compared, Difference, compared, differences
from cmapkd_core.report.sections.section import Heading, Section, TableMaker, table_section
from cmapkd_core.report.sections.updates_section import updates_section
from cmapkd_core.report.sections.weighing_section import weighing_section
from cmapkd_core.report.significance import LEVEL, counted
from cmapkd_core.report.tables.costs import cost_base, gradient_shares, recipe_changes, row_costs
from cmapkd_core.report.tables.marks import with_marks
from cmapkd_core.report.tables.table import Cell, Head, Table, TableRow, difference_cells, digits_of, number_cell
from cmapkd_core.report.tables.table2_retrieval import retrieval_tables
from cmapkd_core.report.tables.table3_probes import captioning_tables, vqa_zeroshot_tables
from cmapkd_core.report.tables.table4_ablations import ablation_tables
from cmapkd_core.report.tables.table5_efficiency import efficiency_tables

PLOTTED = {
    RANK: "Geometric mean rank, better to the right",
    MEAN: "Mean of the six recalls",
    "zeroshot/top1": "Zero-shot top-1",
    "retrieval/i2t/R@1": "Image to text R@1",
    "retrieval/t2i/R@1": "Text to image R@1",
}
WHISKERS = (
    f"Whiskers: {100 * LEVEL:.0f} % intervals, the thick one paired over the seeds (t), the thin one, where it is "
    "known, over seeds and test concepts. A filled dot: the one over the seeds excludes zero. Each stands for itself: "
    "of twenty, one excludes zero by chance alone. How many there are stands below the table."
)
_RETRIEVAL = ("table2_retrieval", "Image-text retrieval", retrieval_tables)
_COMMON: tuple[tuple[str, str, TableMaker], ...] = (
    ("table3_vqa_zeroshot", "VQA and zero-shot classification", vqa_zeroshot_tables),
    ("captioning", "Captions by a probe, beyond the paper", captioning_tables),
    ("table5_efficiency", "Efficiency", efficiency_tables),
)
# Suite -> its tables: what its files are called, title, maker. A suite that has no row has those of Table 2's.
TABLES: dict[str, tuple[tuple[str, str, TableMaker], ...]] = {
    "table2": (_RETRIEVAL, *_COMMON),
    **{
        suite: (
            (key, title, ablation_tables),
            ("retrieval", "Image-text retrieval in full", retrieval_tables),
        )
        for suite, key, title in (
            ("table4", "table4_ablations", "Component ablation"),
            ("controls", "controls", "Controls of the selector, the fitted teacher and the order of levels"),
            ("selector", "selector", "What ALSN learns from, and when the levels are trained"),
            ("weights", "weights", "Weights of the loss, one at a time"),
            ("baseline_weights", "baseline_weights", "Weights of the strongest baselines, one at a time"),
        )
    },
}


def suite_headings(suite_name: str) -> dict[str, Heading]:
    """The page's headings in their order, for a suite."""
    tables = TABLES.get(suite_name, TABLES["table2"])
    first, *others = (
        (key, Heading(title, table_section(make, key, title, sources=False))) for key, title, make in tables
    )
    differs = Heading(f"Differences to the {FULL_METHOD}, seed by seed", differences_section)
    by_updates = Heading("Quality by number of updates", updates_section)
    weighing = Heading("What weights of levels won, and what they could win", weighing_section)
    return dict([first, ("updates", by_updates), ("weighing", weighing), ("differences", differs), *others]) | {
        "costs": Heading("What each row takes", costs_section),
        "shares": Heading("Which terms move the student", shares_section),
        "deviations": Heading("What deviates from the published methods", deviations_section),
    }


def differences_section(inputs: SuiteInputs, results: Results) -> Section:
    """Paired differences with their intervals, as dots and as numbers."""
    changes = differences(results)
    if not any(changes.values()):
        return Section(missing=(f"Missing: there is no measured row to compare with the {FULL_METHOD}.",))
    columns = compared(row for row in results.trained if row.name == full_of(row.name))
    plots = []
    for key, title in PLOTTED.items():
        intervals = {results.row(name).label: row[key] for name, row in changes.items() if key in row}
        if intervals:
            plots.append(draw_differences(title, intervals, FULL_METHOD, columns[key].unit))
    bases = compared_with(changes)
    named = ", ".join(results.row(name).label for name in bases)
    several = "" if bases == (FULL,) else f" Each row is compared with that of as many updates and captions: {named}."
    caption = (
        f"Row minus the {FULL_METHOD}: below zero the row is worse, but for ranks, of which lower is better. Two runs "
        "with one seed share the order of the pairs, the crops and the untrained student, so their difference varies "
        f"less than either does.{several} {WHISKERS}"
    )
    return Section(caption, tuple(plots), (_differences_table(results, changes, columns),), wide=True)


def _differences_table(
    results: Results, changes: Mapping[str, Mapping[str, Difference]], columns: Mapping[str, Compared]
) -> Table:
    rows = []
    digits = {k: digits_of(row[k] for row in changes.values() if k in row) for k in columns}
    for name, intervals in changes.items():
        row, base = results.row(name), results.row(full_of(name))
        cells = difference_cells(intervals, f"{name}/minus full method", (row, base), digits)
        rows.append(TableRow(row.label, (*cells, Cell(counted(one.n for one in intervals.values())))))
    heads = (*(Head(one.group, one.label, one.unit) for one in columns.values()), Head("", "n"))
    return with_marks(Table("differences", f"Differences to the {FULL_METHOD}", heads, tuple(rows)))


def costs_section(inputs: SuiteInputs, results: Results) -> Section:
    """Parameters, updates, time, and what each row changes in the recipe."""
    measured = row_costs(inputs, results)
    base = cost_base(measured)
    heads = (
        Head("", "row", words=True),
        Head("", "inference", "M parameters"),
        Head("", "trained", "M parameters"),
        Head("", "student updates"),
        Head("", "training", "s"),
        Head("", f"step, {FULL_METHOD if base == FULL else base} = 1"),
        Head("", "changes in the recipe", words=True),
    )
    rows = []
    for cost in measured:
        training = {f"training {cost.row}/{s}": inputs.trainings[cost.row, s].source.url for s in inputs.seeds}
        where = {name: url for name, url in training.items() if url}
        cells = (
            Cell(cost.row),
            number_cell(
                _millions(cost.inference),
                f"{cost.row}/inference",
                results.row(cost.row).origins.get("parameters/both", {}),
            ),
            number_cell(_millions(cost.trained), f"{cost.row}/trained", where),
            Cell(", ".join(map(str, cost.updates)) or "-"),
            number_cell(cost.seconds, f"{cost.row}/seconds", where, 0),
            number_cell(cost.relative, f"{cost.row}/step", where),
            Cell(recipe_changes(cost.row) or "nothing"),
        )
        rows.append(TableRow(results.row(cost.row).label, cells, results.row(cost.row).kind))
    note = (
        "Inference: both towers as exported, with what the method needs beside them. Trained: what the last stage gave "
        "a learning rate, the method's own modules among them. Training: seconds of all its stages, shared ones "
        "counted for each row. Step: from the logged speed of the last stage; runs that shared a machine with others "
        "are not comparable."
    )
    return Section(tables=(Table("costs", "Size, budget and time", heads, tuple(rows), (note,)),))


def _millions(count: float | None) -> float | None:
    return None if count is None else count / 1e6


def shares_section(inputs: SuiteInputs, results: Results) -> Section:
    """The terms' shares of the gradient in the last phase."""
    by_row = gradient_shares(inputs)
    terms = list(dict.fromkeys(term for row in by_row.values() for term in row))
    if not terms:
        return Section(missing=("Missing: no training logged the terms' shares of the gradient.",))
    rows = []
    for name, row in by_row.items():
        urls = {f"training {name}/{s}": inputs.trainings[name, s].source.url for s in inputs.seeds}
        cells = tuple(number_cell(row.get(term), f"{name}/{term}", urls, 1) for term in terms)
        rows.append(TableRow(results.row(name).label, cells, results.row(name).kind))
    note = (
        "Share of the sum of the terms' gradient norms at the towers' first taps, in the last phase, mean over seeds. "
        "A term of weight above 0 with a share near 0 is off in effect."
    )
    heads = tuple(Head("", term, "%") for term in terms)
    return Section(tables=(Table("gradient_shares", "Shares of the gradient", heads, tuple(rows), (note,)),))


def deviations_section(inputs: SuiteInputs, results: Results) -> Section:
    """In what each method is not what was published."""
    by_method = {cost.method: cost.deviations for cost in row_costs(inputs, results)}
    rows = tuple(TableRow(method, (Cell(words),)) for method, words in by_method.items())
    made = Table("deviations", "Deviations by method", (Head("", "not as published", words=True),), rows, stub="Method")
    return Section(tables=(made,))


def suite_notes(inputs: SuiteInputs, results: Results) -> list[str]:
    """What is missing, what one seed cannot say, and a budget that is not the same for all."""
    notes = []
    if max((len(row.seeds) for row in results.trained), default=0) == 1:
        notes.append(
            "One seed: there is no interval over seeds, and a difference between two rows is one between two runs, "
            "which another seed may turn round. Run the suite with more seeds before anything is concluded."
        )
    for row in (*results.trained, results.teacher, results.row("before")):
        if row.missing:
            seeds = f", seed {', '.join(row.missing)}," if any(row.missing) else ""
            urls = " ".join(url or "(not given)" for url in row.missing.values())
            notes.append(f"Missing: {row.label}{seeds} is not measured yet: {urls}")
    gone = [f"{name}: {source.url}" for name, source in inputs.more.items() if not source.files]
    notes += [f"Missing: these evaluations are not complete yet: {'; '.join(gone)}"] if gone else []
    fulls = [name for name in compared_with(inputs.rows) if name in inputs.rows]
    for row in map(results.row, fulls):
        if not row.seeds:  # of several budgets, others may have been
            words = FULL_METHOD if len(fulls) == 1 else f"{FULL_METHOD} of row {row.name}"
            notes.append(f"The {words} was not measured, so no difference to it can be given.")
    budgets: dict[str, set[int]] = {}  # of the rows that are compared with one full method
    for cost in row_costs(inputs, results):
        budgets.setdefault(full_of(cost.row), set()).update(cost.updates)
    for different in (sorted(numbers) for numbers in budgets.values() if len(numbers) > 1):
        notes.append(
            f"The rows did not train for the same number of student updates ({', '.join(map(str, different))}): "
            "they are not compared under one budget."
        )
    return notes


# Suite -> title of the numbers' columns, and row -> numbers in percent. From the outline's Tables 2 and 4.
EXPECTED: dict[str, tuple[tuple[str, ...], dict[str, tuple[float, ...]]]] = {
    "table2": (
        ("COCO image to text R@1", "COCO text to image R@1", "COCO mean recall"),
        {
            "scratch": (52.1, 37.8, 65.3),
            "kd": (53.2, 38.9, 66.3),
            "fitnet": (53.8, 39.4, 66.8),
            "promptkd": (54.3, 40.1, 67.4),
            "c2kd": (55.7, 41.5, 68.7),
            "llava_kd": (56.2, 42.0, 69.2),
            "none": (57.2, 42.9, 70.1),
        },
    ),
    "table4": (
        ("COCO R@1",),
        {
            "no_pyramid": (54.1,),
            "no_hierarchy": (54.7,),
            "no_alsn": (55.3,),
            "manual_alsn": (55.8,),
            "no_align": (55.1,),
            "no_relation": (56.5,),
            "one_stage": (56.0,),
            "none": (57.2,),
        },
    ),
}


def paper_expectations(inputs: SuiteInputs) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]] | None:
    """The paper's expectations for the suite's rows, where they were asked for and there are any."""
    return EXPECTED.get(inputs.suite) if inputs.expectations else None
