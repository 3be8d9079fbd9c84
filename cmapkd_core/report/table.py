"""The main table: one row a model, measured on the same split; as data, as aligned text, with its sampling error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cmapkd_core.errors import InputError
from cmapkd_core.method_specs import METHODS
from cmapkd_core.report.inputs import Inputs, Missing


@dataclass(frozen=True)
class Column:
    """One number of a model, by its name in metrics.json."""

    key: str
    group: str
    label: str
    digits: int = 1
    scale: float = 1.0
    chance: str = ""  # the name of what chance gives, where there is such a thing
    small: bool = False  # part of the table that the stage prints

    def text(self, value: float | None) -> str:
        """The value as it stands in every table; a dash for one that is not known."""
        return "-" if value is None else f"{value * self.scale:.{self.digits}f}"


KS = (1, 5, 10)


def _recalls(side: str, group: str) -> tuple[Column, ...]:
    base = f"retrieval/{side}"
    recalls = (Column(f"{base}/R@{k}", group, f"R@{k}", chance=f"{base}/chance/R@{k}", small=True) for k in KS)
    return (*recalls, Column(f"{base}/median_rank", group, "median rank"))


COLUMNS = (
    *_recalls("i2t", "Image to text"),
    *_recalls("t2i", "Text to image"),
    Column("zeroshot/top1", "Zero-shot", "top-1", chance="zeroshot/chance/top1"),
    Column("zeroshot/top5", "Zero-shot", "top-5", chance="zeroshot/chance/top5"),
    Column("parameters/image", "Parameters", "image", digits=2, scale=1e-6),
    Column("parameters/text", "Parameters", "text", digits=2, scale=1e-6),
)

# Argument of the report stage -> name of the row. The last row's name depends on its method.
ROWS = {
    "teacher_eval": "Teacher",
    "before_eval": "Student before training",
    "reference_eval": "Student fine-tuned, no teacher",
    "student_eval": "Student distilled",
}

# The same in a figure or a line of text.
SHORT = {"teacher_eval": "teacher", "before_eval": "before", "reference_eval": "no teacher", "student_eval": "student"}


@dataclass(frozen=True)
class Row:
    """One model's numbers by column key; a column that was not measured is absent."""

    name: str
    label: str
    url: str
    values: dict[str, float]
    missing: str = ""


@dataclass(frozen=True)
class Table:
    """Models that were measured on the same images and captions."""

    rows: list[Row]
    chance: Row
    facts: dict[str, float] = field(default_factory=dict)  # counts of the split and the majority rate

    def columns(self) -> list[Column]:
        """Columns that at least one row knows."""
        return [column for column in COLUMNS if any(column.key in row.values for row in self.rows)]

    def row(self, name: str) -> Row:
        """The row of an argument of the report stage."""
        return next(row for row in self.rows if row.name == name)


FACTS = ("retrieval/images", "retrieval/captions", "zeroshot/images", "zeroshot/classes", "zeroshot/majority")


def build(inputs: Inputs) -> Table:
    """The table from the evaluations' metrics.json; an evaluation that is missing is a row that says so.

    Raises:
        InputError: evaluations of different splits or tasks stand side by side.
    """
    rows, found = [], {}
    for name, label in ROWS.items():
        source = inputs.source(name)
        if name == "student_eval" and not METHODS[inputs.recipe.method.name].teacher:
            label = f"Student, {inputs.ablation}"
        try:
            metrics = source.json("metrics.json")
        except Missing as reason:
            rows.append(Row(name, label, source.url, {}, str(reason)))
            continue
        found[name] = metrics
        rows.append(Row(name, label, source.url, {c.key: metrics[c.key] for c in COLUMNS if c.key in metrics}))
    facts = same({name: {k: m[k] for k in FACTS if k in m} for name, m in found.items()})
    chance = same({name: {c.key: m[c.chance] for c in COLUMNS if c.chance in m} for name, m in found.items()})
    return Table(rows, Row("chance", "Chance", "", chance), facts)


def same(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """The values that all evaluations agree on; one that lacks a task takes no part in that task."""
    merged: dict[str, tuple[str, float]] = {}
    for name, facts in values.items():
        for key, value in facts.items():
            other, known = merged.setdefault(key, (name, value))
            if not math.isclose(known, value, rel_tol=1e-9):
                raise InputError(
                    f"{other} and {name} were measured on different data ({key} is {known:g} and {value:g}): "
                    "evaluate both on the same shards and split"
                )
    return {key: value for key, (_, value) in merged.items()}


def standard_error(percent: float, n: float) -> float:
    """Binomial standard error, in points, of a share in percent over n independent queries."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / n)


def paired(ours: dict[str, Any], theirs: dict[str, Any], k: int = 1) -> tuple[float, float]:
    """Difference of R@k over the same queries, in points, and the half width of its 95 % interval.

    Normal approximation over the queries' paired differences. It holds the sampling of test queries
    only, not what another seed would give.

    Args:
        ours, theirs: `i2t` or `t2i` of retrieval.json, query -> {"rank": ..}.

    Raises:
        InputError: the two hold different queries.
    """
    if ours.keys() != theirs.keys():
        raise InputError("two evaluations have different queries: evaluate both on the same shards and split")
    hits = [(float(ours[q]["rank"] <= k), float(theirs[q]["rank"] <= k)) for q in ours]
    difference = np.array([a - b for a, b in hits])
    spread = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.nan
    return 100 * float(difference.mean()), 196 * float(spread)


def text(table: Table) -> str:
    """The small table as aligned lines: R@1/5/10 both ways for each model, and chance."""
    columns = [column for column in COLUMNS if column.small]
    rows = [*table.rows, table.chance]
    lines = [["", *(c.label for c in columns)]]
    lines += [[row.label, *(c.text(row.values.get(c.key)) for c in columns)] for row in rows]
    first = max(len(line[0]) for line in lines)
    groups = list(dict.fromkeys(c.group for c in columns))
    head = " " * first + "".join(f"  {group:>{7 * 3 - 2}}" for group in groups)
    return "\n".join([head, *(f"{line[0]:<{first}}" + "".join(f"{cell:>7}" for cell in line[1:]) for line in lines)])


def as_json(table: Table, inputs: Inputs) -> dict[str, Any]:
    """The table for programs: values in the units of metrics.json, chance, counts and where each row is from."""
    return {
        "run": inputs.run,
        "recipe": inputs.recipe.name,
        "ablation": inputs.ablation,
        "seed": inputs.recipe.seed,
        "rows": [vars(row) for row in table.rows],
        "chance": table.chance.values,
        "facts": table.facts,
        "text": text(table),
    }
