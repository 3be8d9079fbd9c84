"""The paper's Table 5: what a model costs where it answers queries, and its ratios to the teacher."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cmapkd_core.report.assemble import SIZE, Column, Extra, Field, Report, absent, table, without_interval
from cmapkd_core.report.inputs import Missing, Source
from cmapkd_core.report.measured import Measured
from cmapkd_core.report.papertable import Cell, Head, PaperTable, measured
from cmapkd_core.report.statistics import interval

TASK = "efficiency"
TOWERS = ("image", "text")
R1 = "retrieval/i2t/R@1"
_BATCH = re.compile(rf"{TASK}/image/(?:latency_ms|throughput)/b(\d+)")


@dataclass(frozen=True)
class Ratio:
    """A model against the teacher. of: gets the teacher's and the model's value."""

    key: str
    label: str
    unit: str
    digits: int
    of: Callable[[float, float], float]


def saved(teacher: float, own: float) -> float:
    """Percent of the teacher's that the model does without."""
    return 100 * (1 - own / teacher)


def times(teacher: float, own: float) -> float:
    """How often the model's fits into the teacher's."""
    return teacher / own


def efficiency(report: Report, key: str, title: str) -> list[PaperTable]:
    """Parameters, FLOPs, latency and throughput beside R@1, and ratios to the teacher where it was measured."""
    wanted = tuple(Field("", "", label) for label in ("GFLOPs", "latency", "throughput"))
    costs = _costs(report)
    sizes = {f"parameters/{tower}": tower for tower in TOWERS} | {SIZE.key: "both"}
    lead = [Column(name, Head("Parameters", label, "M"), 1, 1e-6, exact=True) for name, label in sizes.items()]
    return [
        table(
            report,
            key,
            title,
            costs,
            notes=_notes(report),
            missing=absent(report, {TASK: wanted}),
            lead=lead,
            after=_against(report, costs),
        )
    ]


def _costs(report: Report) -> list[Column]:
    """Work of each tower; latency at the smallest measured batch, throughput at the largest."""
    batches = sorted({int(m[1]) for row in report.rows for key in row.values if (m := _BATCH.fullmatch(key))})
    found = [Column(f"{TASK}/{tower}/gflops", Head("GFLOPs", tower), 2, exact=True) for tower in TOWERS]
    if batches:
        least, most = batches[0], batches[-1]
        found.append(Column(f"{TASK}/image/latency_ms/b{least}", Head("Image tower", f"batch {least}", "ms")))
        found.append(Column(f"{TASK}/image/throughput/b{most}", Head("Image tower", f"batch {most}", "images/s")))
    return [column for column in found if any(column.key in row.values for row in report.rows)]


def _against(report: Report, costs: list[Column]) -> Extra:
    """R@1, and what the model saves against the teacher."""
    teacher = report.teacher
    latency = next((column.key for column in costs if "latency" in column.key), "")
    ratios = [
        Ratio(SIZE.key, "parameters saved", "%", 1, saved),
        Ratio(f"{TASK}/image/gflops", "GFLOPs, image", "x less", 2, times),
        Ratio(latency, "latency, image", "x less", 2, times),
    ]
    ratios = [
        one for one in ratios if teacher is not None and TASK in teacher.names(TASK) and one.key in teacher.values
    ]
    heads = (Head("", "i2t R@1", "%"), *(Head("Against the teacher", one.label, one.unit) for one in ratios))
    return Extra(heads, partial(_cells, teacher, ratios))


def _cells(teacher: Measured | None, ratios: list[Ratio], row: Measured) -> tuple[Cell, ...]:
    recall = measured(row.interval(R1), f"{row.name}/{R1}", row.origins.get(R1, {}))
    return (recall, *(_ratio(teacher, row, one) for one in ratios))


def _ratio(teacher: Measured | None, row: Measured, ratio: Ratio) -> Cell:
    if teacher is None or row is teacher or ratio.key not in row.values:
        return Cell()
    (base,) = teacher.values[ratio.key].values()
    found = interval([ratio.of(base, value) for value in row.values[ratio.key].values()])
    found = found if found.half else without_interval(found)  # of sizes
    origins = {**teacher.origins[ratio.key], **row.origins[ratio.key]}
    return measured(found, f"{row.name}/against teacher/{ratio.key}", origins, ratio.digits)


def _notes(report: Report) -> list[str]:
    said = [f"{what}: {report.tools[what]}." for what in ("FLOPs", "Times", "Beware") if what in report.tools]
    return [*said, "Work and times are those of one tower on samples of the size that the model takes."]


def tools(sources: Iterable[Source]) -> dict[str, str]:
    """How costs were measured, from the efficiency.json of every model; what differs between models is said."""
    every: dict[str, dict[str, None]] = {}
    for source in sources:
        try:
            told = _told(source.json(f"{TASK}.json"))
        except Missing:
            continue
        for what, words in told.items():
            every.setdefault(what, {})[words] = None
    apart = "; or, so that models are not to be compared, "
    return {what: apart.join(words) for what, words in every.items()}


def _told(detail: dict[str, Any]) -> dict[str, str]:
    found = {}
    if "flops" in detail:
        found["FLOPs"] = f"{detail['flops']['convention']} ({detail['flops']['tool']})"
    if "environment" in detail:
        where = detail["environment"]
        threads = f"{where['threads']} thread" + ("s" if where["threads"] != 1 else "")
        found["Times"] = f"medians on {where['device']}, {threads}, {where['precision']}, torch {where['torch']}"
        if where.get("load_average", 0) > where["threads"] + 0.5:
            found["Beware"] = "other work had the processor while some of these times were taken; measure again alone"
    return found
