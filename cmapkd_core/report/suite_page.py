"""A suite's report as one HTML page, as Markdown and as lines of text; the numbers are suite.py's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cmapkd_core.markup import plain
from cmapkd_core.recipes import FULL
from cmapkd_core.report import suite, suite_costs, suite_sections
from cmapkd_core.report.markdown import of_section
from cmapkd_core.report.measured import Measured
from cmapkd_core.report.names import FULL_METHOD, label
from cmapkd_core.report.page import fill
from cmapkd_core.report.papertable import measured
from cmapkd_core.report.section import Heading, Pages, Section
from cmapkd_core.report.suite import MEAN, SuiteInputs, SuiteTable

TEMPLATE = "suite.html.j2"
PRINTED = {
    "retrieval/i2t/R@1": "i2t R@1",
    "retrieval/t2i/R@1": "t2i R@1",
    MEAN: "mean recall",
    "zeroshot/top1": "zero-shot",
}


def pages(inputs: SuiteInputs) -> Pages:
    """A suite's report; the metrics are every row's means as `no_alsn/retrieval/i2t/R@1`."""
    table = suite.build(inputs)
    headings, sections = suite_sections.build(inputs, table)
    return Pages(
        f"{inputs.run}: suite {inputs.suite}, recipe {inputs.recipe.name}, seeds {', '.join(inputs.seeds)}",
        render(inputs, table, headings, sections),
        markdown(inputs, table, headings, sections),
        suite.as_json(inputs, table, text) | suite_costs.as_json(inputs, table),
        headings,
        sections,
        facts(table),
    )


def render(
    inputs: SuiteInputs, table: SuiteTable, headings: Mapping[str, Heading], sections: Mapping[str, Section]
) -> str:
    """The page as text."""
    return fill(
        TEMPLATE,
        inputs=inputs,
        table=table,
        full=FULL_METHOD,
        headings=headings,
        sections=sections,
        notes=notes(inputs, table),
        expected=suite.expected(inputs),
        label=label,
        urls=suite.urls(inputs),
    )


def markdown(
    inputs: SuiteInputs, table: SuiteTable, headings: Mapping[str, Heading], sections: Mapping[str, Section]
) -> str:
    """All tables, for the KFP UI."""
    seeds = f"{len(inputs.seeds)} seed{'s' if len(inputs.seeds) > 1 else ''}"
    parts = [
        f"# {plain(inputs.run)}",
        plain(f"suite {inputs.suite}, recipe {inputs.recipe.name}, {seeds}, overrides: {inputs.overrides or 'none'}"),
        "\n".join(f"- {plain(note)}" for note in notes(inputs, table)),
        *(part for key in sections for part in of_section(headings[key], sections[key])),
        f"{inputs.executions} stage executions; {inputs.naive} if every row and seed were a run of its own.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def notes(inputs: SuiteInputs, table: SuiteTable) -> list[str]:
    """What is missing, what one seed cannot say, and a budget that is not the same for all."""
    said = []
    if max((len(row.seeds) for row in table.rows), default=0) == 1:
        said.append(
            "One seed: there is no interval, and a difference between two rows is one between two runs, which another "
            "seed may turn round. Run the suite with more seeds before anything is concluded."
        )
    for row in (*table.rows, table.teacher, table.before):
        if row.missing:
            seeds = f", seed {', '.join(row.missing)}," if any(row.missing) else ""
            urls = " ".join(url or "(not given)" for url in row.missing.values())
            said.append(f"Missing: {row.label}{seeds} is not measured yet: {urls}")
    gone = [f"{name}: {source.url}" for name, source in inputs.more.items() if not source.files]
    said += [f"Missing: these evaluations are not complete yet: {'; '.join(gone)}"] if gone else []
    if FULL in inputs.rows and not table.row(FULL).seeds:
        said.append(f"The {FULL_METHOD} was not measured, so no difference to it can be given.")
    budgets = {budget for cost in suite_costs.costs(inputs, table) for budget in cost.updates}
    if len(budgets) > 1:
        said.append(
            f"The rows did not train for the same number of student updates ({', '.join(map(str, sorted(budgets)))}): "
            "they are not compared under one budget."
        )
    return said


def text(table: SuiteTable) -> str:
    """The small table as aligned lines: R@1 both ways, the mean of the recalls and zero-shot top-1, by row's name."""
    known = {key: head for key, head in PRINTED.items() if key in table.compared()}
    rows = [[row.name, *_shown(row, known), str(len(row.seeds))] for row in (*table.rows, table.before)]
    rows.append([table.teacher.name, *_shown(table.teacher, known), ""])
    lines = [["", *known.values(), "n"], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = (
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def _shown(row: Measured, keys: Iterable[str]) -> list[str]:
    return [measured(row.interval(key), key, {}).text() for key in keys]


def facts(table: SuiteTable) -> dict[str, float]:
    """The small numbers that the KFP UI shows: every row's mean by `row/number`."""
    every = ((row, key, row.interval(key)) for row in table.rows for key in table.compared())
    return {f"{row.name}/{key}": found.mean for row, key, found in every if found}
