"""The section on the data: how many pictures there are, and which rows were set aside and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cmapkd_core.data.layout import MANIFEST, QUARANTINE
from cmapkd_core.data.verdict import Reasons
from cmapkd_core.report.read.artifacts import Missing, Source
from cmapkd_core.report.read.run_inputs import RunInputs, origins
from cmapkd_core.report.sections.section import Section
from cmapkd_core.report.tables.table import Head, Table, TableRow, number_cell

TRAININGS = ("warmup", "joint", "reference")  # artifacts that list pairs which could not be read while training


def data_section(inputs: RunInputs) -> Section:
    """Pictures of each split, and the kinds of rows that were set aside.

    Raises:
        Missing: the shards were not given.
    """
    counts = inputs.source("shards").json(MANIFEST)
    urls = origins(inputs, "shards")
    rows = tuple(
        TableRow(split, (number_cell(one["count"], f"pictures/{split}", urls, 0),))
        for split, one in counts["splits"].items()
    )
    pictures = Table("data", "Pictures", (Head("", "pictures"),), rows, stub="Split")
    aside = set_aside(inputs)
    tables = (pictures, *([_reasons(inputs)] if QUARANTINE in inputs.source("shards").files and aside else []))
    caption = f"Source {inputs.recipe.data.source}. {aside or 'Every row of the source could be used.'}"
    return Section(caption, tables=tables, urls=urls)


def set_aside(inputs: RunInputs) -> str:
    """How many rows were set aside, before training and in it, and where they are listed; "" where none was."""
    try:
        counts = inputs.source("shards").json(MANIFEST)
    except Missing:
        return ""
    parts = []
    if counts.get("quarantined"):
        share = 100 * counts["quarantined"] / counts["seen"]
        parts.append(
            f"{counts['quarantined']} of {counts['seen']} rows ({share:.2g} %) could not be used and were left out"
        )
    if counts.get("bad_questions"):
        parts.append(f"{counts['bad_questions']} questions could not be used")
    corrupt = {entry["key"] for name in TRAININGS for entry in _listed(inputs.source(name))}
    if corrupt:
        parts.append(f"{len(corrupt)} pictures could not be read in training and were replaced by others")
    return f"{'; '.join(parts)}." if parts else ""


def _reasons(inputs: RunInputs) -> Table:
    """Kinds of reasons, the most frequent first, with an example each."""
    reasons, urls = Reasons(), origins(inputs, "shards")
    for entry in _listed(inputs.source("shards")):
        question = f", question {entry['question']}" if "question" in entry else ""
        reasons.add(f"row {entry['row']}, {entry['key']}{question}: {entry['reason']}", entry["reason"])
    rows = tuple(
        TableRow(example, (number_cell(count, f"set aside/{place}", urls, 0),))
        for place, (count, example) in enumerate(reasons.kinds(), 1)
    )
    note = f"All of them are listed in {QUARANTINE} beside the shards."
    return Table("set_aside", "Rows that were set aside", (Head("", "rows"),), rows, (note,), stub="Such as")


def _listed(source: Source) -> Iterator[dict[str, Any]]:
    if QUARANTINE in source.files:
        with open(source.path(QUARANTINE), encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
