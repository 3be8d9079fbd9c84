"""The sections of a run's page in their order; each is data, made from the run's artifacts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cmapkd_core.report import (
    efficiency,
    identities,
    level_sections,
    mistakes,
    papertables,
    results,
    training,
    weight_sections,
)
from cmapkd_core.report.assemble import Report
from cmapkd_core.report.examples import collect
from cmapkd_core.report.inputs import Inputs
from cmapkd_core.report.section import Heading, Section, origins
from cmapkd_core.report.section import build as build_sections
from cmapkd_core.report.table import ROWS, Table

EXAMPLES = {"i2t": 4, "t2i": 2}  # per group of examples.GROUPS
CHOICE = (
    "Test queries in an order by hash, not by looks, so many of each kind. Right answers are bold with a tick; below "
    "stands the place of the best right answer for the student, and for the other models in brackets."
)


def examples(inputs: Inputs) -> Section:
    """Pictures with the captions found, and captions with the pictures found."""
    groups = {side: collect(inputs, side, count) for side, count in EXAMPLES.items()}
    return Section(CHOICE, urls=origins(inputs, "shards", *ROWS), content=groups)


def _alone(make: Callable[[Inputs], Section]) -> Callable[..., Section]:
    """A maker that reads the artifacts alone, in the place of one that gets the tables too."""
    return lambda inputs, table, report: make(inputs)


HEADINGS: dict[str, Heading] = {
    "retrieval": Heading("Retrieval", results.retrieval),
    "vqa_zeroshot": Heading(
        "Visual question answering and zero-shot classification",
        results.in_table(papertables.vqa_zeroshot, "table3_vqa_zeroshot", "VQA and zero-shot classification"),
    ),
    "captioning": Heading(
        "Captioning", results.in_table(papertables.captioning, "captioning", "Captions by a probe, beyond the paper")
    ),
    "efficiency": Heading("Efficiency", results.in_table(efficiency.efficiency, "table5_efficiency", "Efficiency")),
    "ablations": Heading("Ablations", results.no_ablations),
    "examples": Heading("What the student finds", _alone(examples), template="examples.html.j2"),
    "errors": Heading("Where it errs", _alone(mistakes.errors)),
    "losses": Heading("Losses and learning rates", _alone(training.losses)),
    "difficulty": Heading("Level weights against difficulty", _alone(weight_sections.difficulty), "Figure 3"),
    "kinds": Heading(
        "Level weights of four kinds of sample", _alone(weight_sections.of_kinds), "Figure 4", "kinds.html.j2"
    ),
    "policy": Heading("Level weights over training", _alone(weight_sections.policy)),
    "map": Heading("Levels of teacher and student", _alone(level_sections.level_map), "Figure 5"),
    "crossmodal": Heading("Image levels and text levels", _alone(level_sections.crossmodal), "Figure 6"),
    "teacher": Heading("The teacher's levels", _alone(level_sections.teacher)),
    "models": Heading("What the models are", lambda inputs, table, report: identities.identities(inputs, table)),
}


def build(inputs: Inputs, table: Table) -> dict[str, Section]:
    """Every section's data; one without its inputs has sentences alone.

    Raises:
        InputError: models were measured on different data.
    """
    report: Report = results.gather(inputs, table)
    given: tuple[Any, ...] = (inputs, table, report)
    return build_sections(HEADINGS, *given)
