"""The section on losses and learning rates over training."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from cmapkd_core.report.figures.curves import draw_curves
from cmapkd_core.report.figures.style import Drawing
from cmapkd_core.report.read.history import (
    STAGES,
    Curve,
    Point,
    active_points,
    alongside,
    last_weight,
    logged_names,
    logged_points,
    missing_histories,
    reader,
    training_curve,
)
from cmapkd_core.report.read.run_inputs import REFERENCE_WARMUP, RunInputs, origins
from cmapkd_core.report.sections.section import Section
from cmapkd_core.report.tables.table import Cell, Head, Table, TableRow, number_cell

LOSSES_CAPTION = (
    "One panel a term, phases side by side; phases in which a term is not active are left out. Between phases the "
    "active levels change, so a step there is no progress or loss of it. “No teacher” is the student that was trained "
    "without one, in the phases in which both have the term."
)
HEADS = ("weight", "raw, first", "raw, last", "weighted, first", "weighted, last", "share of gradient, last phase")


def losses_section(inputs: RunInputs) -> Section:
    """Every term raw and weighted over training; its weight, first and last values and gradient share as numbers."""
    trace = logged_points(inputs, *STAGES)
    stages = (*((REFERENCE_WARMUP,) if REFERENCE_WARMUP in inputs.sources else ()), "reference")
    absent = missing_histories(inputs, *STAGES, *stages)
    reference = [] if len(missing_histories(inputs, *stages)) == len(stages) else logged_points(inputs, *stages)
    urls = origins(inputs, *STAGES)
    plots, rows = [], []
    for term in logged_names(trace, "terms"):
        part = active_points(trace, "terms", term)
        raw = training_curve(part, reader("terms", term))
        weight = last_weight(part, term)
        rows.append(TableRow(term, _cells(part, term, weight, raw, urls)))
        if not raw:
            continue
        differs = weight and not math.isclose(weight, 1, rel_tol=1e-3)
        lines = {
            "raw": raw,
            "weighted": training_curve(part, reader("weighted", term)) if differs else [],
            "no teacher": alongside(reference, raw, reader("terms", term)),
        }
        known = "" if weight is None else f" (weight {weight:.3g})"
        plots.append(draw_curves(term + known, "loss", lines))
    heads = tuple(Head("", label, "%" if label == HEADS[-1] else "") for label in HEADS)
    table = Table("losses", "Terms of the loss", heads, tuple(rows), stub="Term")
    urls = origins(inputs, *STAGES, *stages)
    return Section(LOSSES_CAPTION, (*plots, *_rates(trace)), (table,), tuple(absent), urls=urls)


def _cells(part: list[Point], term: str, weight: float | None, raw: Curve, urls: dict[str, str]) -> tuple[Cell, ...]:
    weighted = training_curve(part, reader("weighted", term))
    last = raw[-1].phase if raw else ""
    reads = (reader("shares", term)(point) for point in part if point["phase"] == last)
    shares = [share for share in reads if share is not None]
    ends = [(float(c[0].values[0]), float(c[-1].values[-1])) if c else (None, None) for c in (raw, weighted)]
    values = (weight, *ends[0], *ends[1], 100 * float(np.mean(shares)) if shares else None)
    digits = (2, 3, 3, 3, 3, 1)
    return tuple(number_cell(v, f"{term}/{h}", urls, d) for v, h, d in zip(values, HEADS, digits, strict=True))


def _rates(trace: list[Point]) -> list[Drawing]:
    """Learning rate of each parameter group over training; a group that a phase does not name is frozen there."""
    groups = logged_names(trace, "lr")
    peak = max((rate for point in trace for rate in point.get("lr", {}).values()), default=0.0)
    if not peak:
        return []
    power = math.floor(math.log10(peak))

    def read(group: str) -> Callable[[Point], float]:
        return lambda point: point.get("lr", {}).get(group, 0.0) / 10.0**power

    lines = {group: training_curve(trace, read(group)) for group in groups}
    return [draw_curves("learning rate by group", f"learning rate, 1e{power}", lines)]
