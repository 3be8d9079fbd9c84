"""The paper's Table 5: what a model costs where it answers queries, and its ratios to the teacher."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cmapkd_core.report.read.results import EFFICIENCY, ModelResults, Results
from cmapkd_core.report.significance import interval, over_seeds
from cmapkd_core.report.tables.table import Cell, Head, Table, mean_cell
from cmapkd_core.report.tables.table_builder import SIZE, Column, Extra, Field, absent, build_table, without_interval

TOWERS = ("image", "text")
R1 = "retrieval/i2t/R@1"
_BATCH = re.compile(rf"{EFFICIENCY}/image/(?:latency_ms|throughput)/b(\d+)")


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


def efficiency_tables(results: Results, key: str, title: str) -> list[Table]:
    """Parameters, FLOPs, latency and throughput beside R@1, and ratios to the teacher where it was measured."""
    wanted = tuple(Field("", "", label) for label in ("GFLOPs", "latency", "throughput"))
    costs = _costs(results)
    sizes = {f"parameters/{tower}": tower for tower in TOWERS} | {SIZE.key: "both"}
    lead = [Column(name, Head("Parameters", label, "M"), 1, 1e-6, exact=True) for name, label in sizes.items()]
    return [
        build_table(
            results,
            key,
            title,
            costs,
            notes=_notes(results),
            missing=absent(results, {EFFICIENCY: wanted}),
            lead=lead,
            after=_against(results, costs),
        )
    ]


def _costs(results: Results) -> list[Column]:
    """Work of each tower; latency at the smallest measured batch, throughput at the largest."""
    batches = sorted({int(m[1]) for row in results.rows for key in row.values if (m := _BATCH.fullmatch(key))})
    columns = [Column(f"{EFFICIENCY}/{tower}/gflops", Head("GFLOPs", tower), 2, exact=True) for tower in TOWERS]
    if batches:
        least, most = batches[0], batches[-1]
        columns.append(Column(f"{EFFICIENCY}/image/latency_ms/b{least}", Head("Image tower", f"batch {least}", "ms")))
        columns.append(
            Column(f"{EFFICIENCY}/image/throughput/b{most}", Head("Image tower", f"batch {most}", "images/s"))
        )
    return [column for column in columns if any(column.key in row.values for row in results.rows)]


def _against(results: Results, costs: list[Column]) -> Extra:
    """R@1, and what the model saves against the teacher."""
    teacher = results.teacher
    latency = next((column.key for column in costs if "latency" in column.key), "")
    ratios = [
        Ratio(SIZE.key, "parameters saved", "%", 1, saved),
        Ratio(f"{EFFICIENCY}/image/gflops", "GFLOPs, image", "x less", 2, times),
        Ratio(latency, "latency, image", "x less", 2, times),
    ]
    ratios = [
        one
        for one in ratios
        if teacher is not None and EFFICIENCY in teacher.names(EFFICIENCY) and one.key in teacher.values
    ]
    heads = (Head("", "image to text R@1", "%"), *(Head("Against the teacher", one.label, one.unit) for one in ratios))
    return Extra(heads, partial(_cells, teacher, ratios))


def _cells(teacher: ModelResults | None, ratios: list[Ratio], row: ModelResults) -> tuple[Cell, ...]:
    recall = mean_cell(over_seeds(row, R1), f"{row.name}/{R1}", row.origins.get(R1, {}))
    return (recall, *(_ratio(teacher, row, one) for one in ratios))


def _ratio(teacher: ModelResults | None, row: ModelResults, ratio: Ratio) -> Cell:
    if teacher is None or row is teacher or ratio.key not in row.values:
        return Cell()
    (base,) = teacher.values[ratio.key].values()
    estimate = interval([ratio.of(base, value) for value in row.values[ratio.key].values()])
    estimate = estimate if estimate.half else without_interval(estimate)  # of sizes
    origins = {**teacher.origins[ratio.key], **row.origins[ratio.key]}
    return mean_cell(estimate, f"{row.name}/against teacher/{ratio.key}", origins, ratio.digits)


def _notes(results: Results) -> list[str]:
    tools = [f"{what}: {results.tools[what]}." for what in ("FLOPs", "Times", "Beware") if what in results.tools]
    return [*tools, "Work and times are those of one tower on samples of the size that the model takes."]
