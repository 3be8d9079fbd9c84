"""The section on losses and learning rates over training."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from cmapkd_core.report import figures, history
from cmapkd_core.report.inputs import Inputs
from cmapkd_core.report.papertable import Cell, Head, Line, PaperTable, plain
from cmapkd_core.report.section import Section, origins
from cmapkd_core.report.style import Drawing

CAPTION = (
    "One panel a term, phases side by side; phases in which a term is not active are left out. Between phases the "
    "active levels change, so a step there is no progress or loss of it."
)
HEADS = ("weight", "raw, first", "raw, last", "weighted, first", "weighted, last", "share of gradient, last phase")


def losses(inputs: Inputs) -> Section:
    """Every term raw and weighted over training; its weight, first and last values and gradient share as numbers."""
    trace = history.points(inputs, *history.STAGES)
    absent = history.absent(inputs, *history.STAGES, "reference")
    reference = [] if history.absent(inputs, "reference") else history.points(inputs, "reference")
    urls = origins(inputs, *history.STAGES)
    plots, rows = [], []
    for term in history.names(trace, "terms"):
        part = history.live(trace, "terms", term)
        raw = history.curve(part, history.entry("terms", term))
        weight = history.weight(part, term)
        rows.append(Line(term, _cells(part, term, weight, raw, urls)))
        if not raw:
            continue
        differs = weight and not math.isclose(weight, 1, rel_tol=1e-3)
        lines = {
            "raw": raw,
            "weighted": history.curve(part, history.entry("weighted", term)) if differs else [],
            "no teacher": history.alongside(reference, raw, history.entry("terms", term)),
        }
        known = "" if weight is None else f" (weight {weight:.3g})"
        plots.append(figures.curves(term + known, "loss", lines))
    heads = tuple(Head("", label, "%" if label == HEADS[-1] else "") for label in HEADS)
    table = PaperTable("losses", "Terms of the loss", heads, tuple(rows), stub="Term")
    urls = origins(inputs, *history.STAGES, "reference")
    return Section(CAPTION, (*plots, *_rates(trace)), (table,), tuple(absent), urls=urls)


def _cells(
    part: list[history.Point], term: str, weight: float | None, raw: history.Curve, urls: dict[str, str]
) -> tuple[Cell, ...]:
    weighted = history.curve(part, history.entry("weighted", term))
    last = raw[-1].phase if raw else ""
    reads = (history.entry("shares", term)(point) for point in part if point["phase"] == last)
    shares = [share for share in reads if share is not None]
    ends = [(float(c[0].values[0]), float(c[-1].values[-1])) if c else (None, None) for c in (raw, weighted)]
    values = (weight, *ends[0], *ends[1], 100 * float(np.mean(shares)) if shares else None)
    digits = (2, 3, 3, 3, 3, 1)
    return tuple(plain(v, f"{term}/{h}", urls, d) for v, h, d in zip(values, HEADS, digits, strict=True))


def _rates(trace: list[history.Point]) -> list[Drawing]:
    """Learning rate of each parameter group over training; a group that a phase does not name is frozen there."""
    groups = history.names(trace, "lr")
    peak = max((rate for point in trace for rate in point.get("lr", {}).values()), default=0.0)
    if not peak:
        return []
    power = math.floor(math.log10(peak))

    def read(group: str) -> Callable[[history.Point], float]:
        return lambda point: point.get("lr", {}).get(group, 0.0) / 10.0**power

    lines = {group: history.curve(trace, read(group)) for group in groups}
    return [figures.curves("learning rate by group", f"learning rate, 1e{power}", lines)]
