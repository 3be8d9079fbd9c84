"""The report of a run and of a suite: what is read, its sections, and the forms that they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmapkd_core.report.read.results import SIDES
from cmapkd_core.report.read.run_inputs import RunInputs, run_results
from cmapkd_core.report.read.suite_inputs import FULL_METHOD, SuiteInputs, label, suite_results, suite_urls
from cmapkd_core.report.render.html import page
from cmapkd_core.report.render.markdown import document
from cmapkd_core.report.sections.data_section import set_aside
from cmapkd_core.report.sections.lead import Lead
from cmapkd_core.report.sections.left_out import left_out
from cmapkd_core.report.sections.outcome import run_outcome, suite_outcome
from cmapkd_core.report.sections.run_sections import RUN_HEADINGS
from cmapkd_core.report.sections.section import Heading, Section, build_sections
from cmapkd_core.report.sections.suite_sections import paper_expectations, suite_headings, suite_notes
from cmapkd_core.report.tables.costs import costs_as_json
from cmapkd_core.report.tables.summary import run_as_json, run_metrics, suite_as_json, suite_metrics


@dataclass(frozen=True)
class Pages:
    """All that a report shows. title: of the paper's folder.

    table: for programs; its `text` is for a terminal, and the sentence of its `outcome` says what came out.
    """

    title: str
    html: str
    markdown: str
    table: Mapping[str, Any]
    headings: Mapping[str, Heading]
    sections: Mapping[str, Section]
    metrics: dict[str, float]


def of_run(inputs: RunInputs) -> Pages:
    """A run's report; the metrics are the main evaluations' numbers as `student/retrieval/i2t/R@1`.

    Raises:
        InputError: models were measured on different data.
    """
    main, results, recipe = run_results(inputs.without_further()), run_results(inputs), inputs.recipe
    sections, outcome = build_sections(RUN_HEADINGS, inputs, results), run_outcome(inputs, main)
    rest = left_out(sections, results, recipe, inputs.commands, table4=True)
    lead = Lead(outcome, set_aside(inputs), inputs.use, inputs.commands.export)
    facts = f"recipe {recipe.name}, ablation {inputs.ablation}, seed {recipe.seed}"
    return Pages(
        title=f"{inputs.run}: {facts}",
        html=page("run.html.j2", RUN_HEADINGS, sections, lead, rest, inputs=inputs, facts=main.facts, sides=SIDES),
        markdown=document(inputs.run, f"{facts}, method {recipe.method.name}", RUN_HEADINGS, sections, lead, rest),
        table=run_as_json(inputs, main) | {"outcome": outcome.plain()},
        headings=RUN_HEADINGS,
        sections=sections,
        metrics=run_metrics(main),
    )


def of_suite(inputs: SuiteInputs) -> Pages:
    """A suite's report; the metrics are every row's means as `no_alsn/retrieval/i2t/R@1`.

    Raises:
        InputError: rows were measured on different data.
    """
    results, headings = suite_results(inputs), suite_headings(inputs.suite)
    sections, notes = build_sections(headings, inputs, results), suite_notes(inputs, results)
    rest = left_out(sections, results, inputs.recipe, inputs.commands, table4=False)
    lead = Lead(suite_outcome(inputs, results))
    return Pages(
        title=f"{inputs.run}: suite {inputs.suite}, recipe {inputs.recipe.name}, seeds {', '.join(inputs.seeds)}",
        html=page(
            "suite.html.j2",
            headings,
            sections,
            lead,
            rest,
            inputs=inputs,
            facts=results.facts,
            full=FULL_METHOD,
            notes=notes,
            expected=paper_expectations(inputs),
            label=label,
            urls=suite_urls(inputs),
        ),
        markdown=document(inputs.run, _suite_facts(inputs), headings, sections, lead, rest, notes, _executions(inputs)),
        table=suite_as_json(inputs, results) | costs_as_json(inputs, results) | {"outcome": lead.outcome.plain()},
        headings=headings,
        sections=sections,
        metrics=suite_metrics(results),
    )


def _suite_facts(inputs: SuiteInputs) -> str:
    seeds = f"{len(inputs.seeds)} seed{'s' if len(inputs.seeds) > 1 else ''}"
    return f"suite {inputs.suite}, recipe {inputs.recipe.name}, {seeds}, overrides: {inputs.overrides or 'none'}"


def _executions(inputs: SuiteInputs) -> str:
    return f"{inputs.executions} stage executions; {inputs.naive} if every row and seed were a run of its own."
