"""The same tables as Markdown, compact, for the KFP UI."""

from __future__ import annotations

from collections.abc import Iterable

from cmapkd_core.report.inputs import Inputs
from cmapkd_core.report.page import number
from cmapkd_core.report.sections import Section
from cmapkd_core.report.table import Table


def render(inputs: Inputs, table: Table, sections: dict[str, Section]) -> str:
    """Main table, losses, level weights and teacher's levels; what is missing is said in its place."""
    recipe = inputs.recipe
    parts = [
        f"# {inputs.run}",
        f"recipe {recipe.name}, ablation {inputs.ablation}, seed {recipe.seed}, method {recipe.method.name}",
        _results(table, sections["results"]),
        "## Losses",
        _losses(sections["losses"]),
        "## Level weights against difficulty",
        _selector(sections["selector"]),
        "## The teacher's levels",
        _teacher(sections["teacher"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    head = list(head)
    lines = [head, [":--"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _results(table: Table, section: Section) -> str:
    columns = table.columns()
    short = {"Image to text": "i2t", "Text to image": "t2i", "Zero-shot": "zero-shot", "Parameters": "M parameters,"}
    head = ["", *(f"{short[column.group]} {column.label}" for column in columns)]
    rows = [[r.label, *(c.text(r.values.get(c.key)) for c in columns)] for r in (*table.rows, table.chance)]
    notes = [f"- {row.label}: {row.missing}" for row in table.rows if row.missing]
    if "missing" not in section:
        errors = ", ".join(f"{error:.1f} ({side.lower()})" for side, error in section["errors"].items())
        counts = (
            f"{table.facts['retrieval/images']:.0f} images, {table.facts['retrieval/captions']:.0f} distinct captions"
        )
        notes.append(f"- {counts}; one standard error of R@1 of “{section['row']}”, in points: {errors}")
    return grid(head, rows) + "\n\n" + "\n".join(notes)


def _losses(section: Section) -> str:
    if "missing" in section:
        return str(section["missing"])
    rows = [
        [
            row["term"],
            number(row["weight"]),
            *(number(pair[i] if pair else None, 3) for pair in (row["raw"], row["weighted"]) for i in (0, 1)),
        ]
        for row in section["rows"]
    ]
    table = grid(("term", "weight", "raw, first", "raw, last", "weighted, first", "weighted, last"), rows)
    return "\n\n".join((*section["absent"], table))


def _selector(section: Section) -> str:
    if "missing" in section or "fixed" in section:
        return str(section.get("missing") or section["fixed"])
    rows = [[r["level"], number(r["mean"], 3), _rho(r["rho"]), _rho(r["shuffled"])] for r in section["rows"]]
    return grid(("level", "mean weight", f"Spearman's rho, n = {section['samples']}", "rho, shuffled"), rows)


def _rho(value: float | None) -> str:
    return "constant" if value is None else number(value)


def _teacher(section: Section) -> str:
    if "missing" in section:
        return str(section["missing"])
    if not section["rows"]:
        return "No level was measured: the data have no validation split."
    rows = [[row["level"], number(row["r1"], 1), number(row["explained_variance"], 3)] for row in section["rows"]]
    return grid(("level", "R@1, %", "explained variance"), rows)
