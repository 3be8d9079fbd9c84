"""The sections of a suite's page: the paper's tables, differences to the full method, costs, shares, deviations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cmapkd_core.recipes import FULL
from cmapkd_core.report import efficiency, figures, papertables, suite, suite_costs
from cmapkd_core.report.assemble import Report
from cmapkd_core.report.names import FULL_METHOD
from cmapkd_core.report.papertable import Cell, Head, Line, PaperTable, difference, plain
from cmapkd_core.report.results import Maker
from cmapkd_core.report.section import Heading, Section
from cmapkd_core.report.section import build as build_sections
from cmapkd_core.report.statistics import LEVEL, counted
from cmapkd_core.report.suite import MEAN, RANK, SuiteInputs, SuiteTable

PLOTTED = {
    RANK: "Geometric mean rank, better to the right",
    MEAN: "Mean of the six recalls",
    "zeroshot/top1": "Zero-shot top-1",
    "retrieval/i2t/R@1": "Image to text R@1",
    "retrieval/t2i/R@1": "Text to image R@1",
}
NO_SPREAD = (
    "No spread: every seed gave the same value, as counts of few queries do; that is no interval, and nothing follows."
)
_RETRIEVAL = ("table2_retrieval", "Image-text retrieval", papertables.retrieval)
_COMMON: tuple[tuple[str, str, Maker], ...] = (
    ("table3_vqa_zeroshot", "VQA and zero-shot classification", papertables.vqa_zeroshot),
    ("captioning", "Captions by a probe, beyond the paper", papertables.captioning),
    ("table5_efficiency", "Efficiency", efficiency.efficiency),
)
# Suite -> its tables: what its files are called, title, maker. A suite that has no row has those of Table 2's.
TABLES: dict[str, tuple[tuple[str, str, Maker], ...]] = {
    "table2": (_RETRIEVAL, *_COMMON),
    **{
        suite: (
            (key, title, papertables.ablations),
            ("retrieval", "Image-text retrieval in full", papertables.retrieval),
        )
        for suite, key, title in (
            ("table4", "table4_ablations", "Component ablation"),
            ("controls", "controls", "Controls of the selector, the fitted teacher and the order of levels"),
            ("selector", "selector", "What ALSN learns from, and when the levels are trained"),
            ("weights", "weights", "Weights of the loss, one at a time"),
        )
    },
}
SectionMaker = Callable[[SuiteInputs, SuiteTable, Report], Section]


def headings(suite_name: str) -> dict[str, Heading]:
    """The page's headings in their order, for a suite."""
    tables = TABLES.get(suite_name, TABLES["table2"])
    found = {key: Heading(title, _in_table(make, key, title)) for key, title, make in tables}
    return found | {
        "differences": Heading(f"Differences to the {FULL_METHOD}, seed by seed", differences),
        "costs": Heading("What each row takes", costs),
        "shares": Heading("Which terms move the student", shares),
        "deviations": Heading("What deviates from the published methods", deviations),
    }


def build(inputs: SuiteInputs, table: SuiteTable) -> tuple[Mapping[str, Heading], Mapping[str, Section]]:
    """Headings and sections."""
    known = headings(inputs.suite)
    return known, build_sections(known, inputs, table, suite.as_report(inputs, table))


def _in_table(make: Maker, key: str, title: str) -> SectionMaker:
    def section(inputs: SuiteInputs, table: SuiteTable, report: Report) -> Section:
        return Section(tables=tuple(make(report, key, title)))

    return section


def differences(inputs: SuiteInputs, table: SuiteTable, report: Report) -> Section:
    """Paired differences with their intervals, as dots and as numbers."""
    if not any(table.differences.values()):
        return Section(missing=(f"Missing: there is no measured row to compare with the {FULL_METHOD}.",))
    base = table.row(FULL)
    columns = suite.compared(base)
    plots = []
    for key, title in PLOTTED.items():
        found = {table.row(name).label: row[key] for name, row in table.differences.items() if key in row}
        if found:
            plots.append(figures.differences(title, found, FULL_METHOD, columns[key].unit))
    caption = (
        f"Row minus the {FULL_METHOD}: below zero the row is worse, but for ranks, of which lower is better. Two runs "
        "with one seed share the order of "
        "the pairs, the crops and the untrained student, so their difference varies less than either does. Bold, and a "
        f"filled dot: the {100 * LEVEL:.0f} % interval excludes zero. Each interval stands for itself: of twenty, one "
        "excludes zero by chance alone."
    )
    lines = []
    for name, found in table.differences.items():
        row = table.row(name)
        cells = [
            difference(found.get(k), f"{name}/minus full method/{k}", row.origins.get(k, {}) | base.origins[k])
            for k in columns
        ]
        lines.append(Line(row.label, (*cells, Cell(counted(one.n for one in found.values())))))
    notes = (NO_SPREAD,) if any(one.half == 0 for row in table.differences.values() for one in row.values()) else ()
    heads = (*columns.values(), Head("", "n"))
    made = PaperTable("differences", f"Differences to the {FULL_METHOD}", heads, tuple(lines), notes)
    return Section(caption, tuple(plots), (made,), wide=True)


def costs(inputs: SuiteInputs, table: SuiteTable, report: Report) -> Section:
    """Parameters, updates, time, and what each row changes in the recipe."""
    found = suite_costs.costs(inputs, table)
    base = suite_costs.base(found)
    heads = (
        Head("", "row", words=True),
        Head("", "inference", "M parameters"),
        Head("", "trained", "M parameters"),
        Head("", "student updates"),
        Head("", "training", "s"),
        Head("", f"step, {FULL_METHOD if base == FULL else base} = 1"),
        Head("", "changes in the recipe", words=True),
    )
    lines = []
    for cost in found:
        training = {f"training {cost.row}/{s}": inputs.trainings[cost.row, s].source.url for s in inputs.seeds}
        where = {name: url for name, url in training.items() if url}
        cells = (
            Cell(cost.row),
            plain(
                _millions(cost.inference),
                f"{cost.row}/inference",
                table.row(cost.row).origins.get("parameters/both", {}),
            ),
            plain(_millions(cost.trained), f"{cost.row}/trained", where),
            Cell(", ".join(map(str, cost.updates)) or "-"),
            plain(cost.seconds, f"{cost.row}/seconds", where, 0),
            plain(cost.relative, f"{cost.row}/step", where),
            Cell(suite_costs.changes(cost.row) or "nothing"),
        )
        lines.append(Line(table.row(cost.row).label, cells, table.row(cost.row).kind))
    note = (
        "Inference: both towers as exported, with what the method needs beside them. Trained: what the last stage gave "
        "a learning rate, the method's own modules among them. Training: seconds of all its stages, shared ones "
        "counted for each row. Step: from the logged speed of the last stage; runs that shared a machine with others "
        "are not comparable."
    )
    return Section(tables=(PaperTable("costs", "Size, budget and time", heads, tuple(lines), (note,)),))


def _millions(count: float | None) -> float | None:
    return None if count is None else count / 1e6


def shares(inputs: SuiteInputs, table: SuiteTable, report: Report) -> Section:
    """The terms' shares of the gradient in the last phase."""
    found = suite_costs.shares(inputs)
    terms = list(dict.fromkeys(term for row in found.values() for term in row))
    if not terms:
        return Section(missing=("Missing: no training logged the terms' shares of the gradient.",))
    lines = []
    for name, row in found.items():
        urls = {f"training {name}/{s}": inputs.trainings[name, s].source.url for s in inputs.seeds}
        cells = tuple(plain(row.get(term), f"{name}/{term}", urls, 1) for term in terms)
        lines.append(Line(table.row(name).label, cells, table.row(name).kind))
    note = (
        "Share of the sum of the terms' gradient norms at the towers' first taps, in the last phase, mean over seeds. "
        "A term of weight above 0 with a share near 0 is off in effect."
    )
    heads = tuple(Head("", term, "%") for term in terms)
    return Section(tables=(PaperTable("gradient_shares", "Shares of the gradient", heads, tuple(lines), (note,)),))


def deviations(inputs: SuiteInputs, table: SuiteTable, report: Report) -> Section:
    """In what each method is not what was published."""
    said = {cost.method: cost.deviations for cost in suite_costs.costs(inputs, table)}
    lines = tuple(Line(method, (Cell(words),)) for method, words in said.items())
    made = PaperTable("deviations", "Deviations by method", (Head("", "here", words=True),), lines, stub="Method")
    return Section(tables=(made,))
