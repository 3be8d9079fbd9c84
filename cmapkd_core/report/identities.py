"""The section on what the models are beside their tensors: what two of them must not differ in by accident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmapkd_core.report.inputs import Inputs, Missing
from cmapkd_core.report.papertable import Cell, Head, Line, PaperTable
from cmapkd_core.report.section import Section, origins
from cmapkd_core.report.table import ROWS, Table

FILE = "model.json"  # of an evaluation: models/identity.py
HEADS = ("Config", "Activation", "Pictures", "Mean, deviation", "Captions", "Embedding")
NOTE = (
    "Equal weights with another activation, normalisation or resize mode are another model; student and teacher may "
    "differ in all of it."
)


def identities(inputs: Inputs, table: Table) -> Section:
    """A row for each model that was measured."""
    lines, absent = [], []
    for row in table.rows:
        try:
            told = inputs.source(row.name).json(FILE)
        except Missing as reason:
            absent.append(f"{row.label}: {reason}")
            continue
        lines.append(Line(row.label, tuple(Cell(words) for words in cells(told))))
    if not lines:
        raise Missing(f"Missing: no evaluation holds {FILE}; those of version 0.1 do not.")
    heads = tuple(Head("", label, words=True) for label in HEADS)
    made = PaperTable("models", "As they were built", heads, tuple(lines), (NOTE,), stub="Model")
    return Section(tables=(made,), missing=tuple(absent), urls=origins(inputs, *ROWS))


def cells(told: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of HEADS."""
    towers = told["activations"]
    same = len(set(towers.values())) == 1
    mean, std = (" ".join(f"{value:.3g}" for value in told[name]) for name in ("mean", "std"))
    return (
        told["architecture"],
        towers["image"] if same else f"{towers['image']} (image), {towers['text']} (text)",
        f"{told['image_size']} px, {told['resize_mode']}, {told['interpolation']}",
        f"{mean}, {std}",
        f"{told['context_length']} tokens, {told['tokenizer']}",
        f"{told['embed_dim']}{', logit bias' if told['logit_bias'] else ''}",
    )
