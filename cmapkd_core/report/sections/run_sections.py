"""The sections of a run's page in their order; each is data, made from the run's artifacts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cmapkd_core.config import Recipe
from cmapkd_core.ensemble import further_teachers
from cmapkd_core.report.figures.comparisons import draw_gains, draw_recalls
from cmapkd_core.report.figures.style import Drawing
from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.results import METRICS, SIDES, Results
from cmapkd_core.report.read.run_inputs import MAIN_EVALUATIONS, ROLES, RunInputs, origins
from cmapkd_core.report.sections.data_section import data_section
from cmapkd_core.report.sections.examples import examples_section
from cmapkd_core.report.sections.level_sections import crossmodal_section, map_section, teacher_section
from cmapkd_core.report.sections.losses import losses_section
from cmapkd_core.report.sections.section import Heading, Section, table_section
from cmapkd_core.report.sections.selector_sections import difficulty_section, groups_section, policy_section
from cmapkd_core.report.significance import Interval
from cmapkd_core.report.tables.gains import MEAN, gain_tables, minus
from cmapkd_core.report.tables.lost_and_gained import COMPARED_EVALUATIONS, classes_by_fall, queries_by_outcome
from cmapkd_core.report.tables.table import Cell, Head, Table, TableRow
from cmapkd_core.report.tables.table2_retrieval import retrieval_tables
from cmapkd_core.report.tables.table3_probes import captioning_tables, vqa_zeroshot_tables
from cmapkd_core.report.tables.table5_efficiency import efficiency_tables

GAINS = "Panels “Student minus ..”: differences with their paired intervals, filled where zero is excluded. "
DOTS = (
    f"Panels “{'”, “'.join(SIDES.values())}”: R@1, R@5 and R@10 of every model, each with its mark, with 95 % Wilson "
    "intervals. Dashed: R@1 by chance."
)
NO_SUITE = "Not measured: Table 4, which compares recipes; this is one run, and a suite trains them all."


def retrieval_section(inputs: RunInputs, results: Results) -> Section:
    """Table 2, the difference to the student without a teacher on the same queries, and recall as dots."""
    made = retrieval_tables(results, "table2_retrieval", "Image-text retrieval")
    reasons = {row.label: inputs.source(ROLES[row.name].evaluation).lack(METRICS) for row in results.rows}
    absent = tuple(f"{label}: {reason}" for label, reason in reasons.items() if reason)
    gains = gain_tables(inputs, results)
    differences, recalls = gain_plots(gains, results), dots(results)
    caption = f"{GAINS if differences else ''}{DOTS if recalls else ''}".strip()
    urls = {name: url for one in made for name, url in one.origins().items()} | origins(inputs, *MAIN_EVALUATIONS)
    tables = (*made, *gains)
    return Section(caption, (*differences, *recalls), tables, absent, wide=True, table_first=True, urls=urls)


def gain_plots(tables: Sequence[Table], results: Results) -> list[Drawing]:
    """The table's differences, a panel for each comparison: mean recall, which decides, and the single cut-offs."""
    short = {minus(results.row(name).label): role.short for name, role in ROLES.items()}
    return [
        draw_gains(f"Student minus “{short[group]}”", intervals, short[group])
        for made in tables
        for group, intervals in gains_of(made).items()
    ]


def gains_of(made: Table) -> dict[str, dict[str, Interval]]:
    """Group of columns -> what the difference is of -> its interval: mean recall first, then the single cut-offs."""
    gains: dict[str, dict[str, Interval]] = {}
    *single, both = made.rows
    for row in (both, *single):
        for head, cell in zip(made.heads, row.cells, strict=True):
            if cell.interval and (head.label == MEAN) == (row is both):
                name = "mean recall" if row is both else f"{row.label.lower()} {head.label}"
                gains.setdefault(head.group, {})[name] = cell.interval
    return gains


def dots(results: Results) -> list[Drawing]:
    """One panel a side; [] where no retrieval was measured."""
    measured = [row for row in results.rows if "retrieval/i2t/R@1" in row.values]
    if not measured:
        return []
    counts = {"i2t": results.facts["retrieval/images"], "t2i": results.facts["retrieval/captions"]}
    best = max(row.values[f"retrieval/{side}/R@10"][""] for row in measured for side in SIDES)
    top = min(100.0, 10.0 * math.ceil((best + 3) / 10))
    return [draw_recalls(t, results.rows, results.chance, side, counts[side], top) for side, t in SIDES.items()]


def no_ablations(inputs: RunInputs, results: Results) -> Section:
    """Table 4 needs a suite."""
    return Section(tables=(Table("table4_ablations", "Component ablation", missing=(NO_SUITE,)),))


ERRORS_CAPTION = (
    "Where the student fails. First: each test query by who has a right answer among the first k. “Teacher alone” is "
    "what distillation did not bring over, “student alone” what it has for itself."
)


def errors_section(inputs: RunInputs) -> Section:
    """Queries by who answers them, and the classes on which the student lost most.

    Raises:
        Missing: the teacher or the student was not evaluated.
    """
    tables = [queries_by_outcome(inputs)]
    absent = []
    try:
        tables.append(classes_by_fall(inputs))
    except Missing as reason:
        absent.append(str(reason))
    return Section(
        ERRORS_CAPTION, tables=tuple(tables), missing=tuple(absent), urls=origins(inputs, *COMPARED_EVALUATIONS)
    )


MODEL_FILE = "model.json"  # of an evaluation: models/identity.py
MODEL_HEADS = ("Config", "Activation", "Pictures", "Mean, deviation", "Captions", "Embedding")
MODEL_NOTE = (
    "Equal weights with another activation, normalisation or resize mode are another model; student and teacher may "
    "differ in all of it."
)


def models_section(inputs: RunInputs, results: Results) -> Section:
    """A row for each model that was measured."""
    rows, absent = [], []
    for row in results.rows:
        try:
            identity = inputs.source(ROLES[row.name].evaluation).json(MODEL_FILE)
        except Missing as reason:
            absent.append(f"{row.label}: {reason}")
            continue
        rows.append(TableRow(row.label, tuple(Cell(words) for words in model_cells(identity))))
    if not rows:
        raise Missing(f"Missing: no evaluation holds {MODEL_FILE}; those of version 0.1 do not.")
    heads = tuple(Head("", label, words=True) for label in MODEL_HEADS)
    notes = (MODEL_NOTE, *filter(None, [_further(inputs.recipe)]))
    made = Table("models", "As they were built", heads, tuple(rows), notes, stub="Model")
    return Section(tables=(made,), missing=tuple(absent), urls=origins(inputs, *MAIN_EVALUATIONS))


def _further(recipe: Recipe) -> str:
    """Which further teachers taught; "" where the first did alone."""
    names = [f"{model.model} ({model.weights})" for model in further_teachers(recipe).values()]
    return f"{' and '.join(names)} taught beside the teacher, by embeddings; not measured here." if names else ""


def model_cells(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of MODEL_HEADS."""
    towers = identity["activations"]
    same = len(set(towers.values())) == 1
    mean, std = (" ".join(f"{value:.3g}" for value in identity[name]) for name in ("mean", "std"))
    return (
        identity["architecture"],
        towers["image"] if same else f"{towers['image']} (image), {towers['text']} (text)",
        f"{identity['image_size']} px, {identity['resize_mode']}, {identity['interpolation']}",
        f"{mean}, {std}",
        f"{identity['context_length']} tokens, {identity['tokenizer']}",
        f"{identity['embed_dim']}{', logit bias' if identity['logit_bias'] else ''}",
    )


def _alone(make: Callable[[RunInputs], Section]) -> Callable[[RunInputs, Results], Section]:
    """A maker that reads the artifacts alone, in the place of one that gets the tables too."""
    return lambda inputs, results: make(inputs)


RUN_HEADINGS: dict[str, Heading] = {
    "retrieval": Heading("Retrieval", retrieval_section),
    "vqa_zeroshot": Heading(
        "Visual question answering and zero-shot classification",
        table_section(vqa_zeroshot_tables, "table3_vqa_zeroshot", "VQA and zero-shot classification", sources=True),
    ),
    "captioning": Heading(
        "Captioning",
        table_section(captioning_tables, "captioning", "Captions by a probe, beyond the paper", sources=True),
    ),
    "efficiency": Heading(
        "Efficiency", table_section(efficiency_tables, "table5_efficiency", "Efficiency", sources=True)
    ),
    "ablations": Heading("Ablations", no_ablations),
    "examples": Heading("What the student finds", _alone(examples_section), template="examples.html.j2"),
    "errors": Heading("Where it errs", _alone(errors_section)),
    "losses": Heading("Losses and learning rates", _alone(losses_section)),
    "difficulty": Heading("Level weights against difficulty", _alone(difficulty_section), "Figure 3"),
    "kinds": Heading("Level weights of four kinds of sample", _alone(groups_section), "Figure 4", "figure4.html.j2"),
    "policy": Heading("Level weights over training", _alone(policy_section)),
    "map": Heading("Levels of teacher and student", _alone(map_section), "Figure 5"),
    "crossmodal": Heading("Image levels and text levels", _alone(crossmodal_section), "Figure 6"),
    "teacher": Heading("The teacher's levels", _alone(teacher_section)),
    "data": Heading("The data", _alone(data_section)),
    "models": Heading("What the models are", models_section),
}
