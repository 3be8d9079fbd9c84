"""A report's sections as Markdown, compact, for the KFP UI; figures are on the page alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cmapkd_core.markup import Markdown, plain
from cmapkd_core.report.sections.section import Heading, Section
from cmapkd_core.report.tables.table import Cell, Table


def document(
    title: str,
    facts: str,
    headings: Mapping[str, Heading],
    sections: Mapping[str, Section],
    notes: Iterable[str] = (),
    closing: str = "",
) -> str:
    """Title, what the report is of, notes, and every section's tables and captions; what is missing is said there."""
    parts = [
        f"# {plain(title)}",
        plain(facts),
        "\n".join(f"- {plain(note)}" for note in notes),
        *(part for key in sections for part in section_markdown(headings[key], sections[key])),
        closing,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def section_markdown(heading: Heading, section: Section) -> Iterator[str]:
    """Heading, sentences on what is missing, caption and tables."""
    yield f"## {plain(heading.text())}"
    yield from map(plain, section.missing)
    if section.figures or section.content:
        yield plain(f"{'Figures' if section.figures else 'Pictures'} are on the page alone. {section.caption}")
    for made in section.tables:
        if not made.aside:
            yield from of_table(made)


def of_table(made: Table) -> Iterator[str]:
    """The table with its heading and notes."""
    if made.rows:
        heads = [
            f"{head.group}: {unit}" if head.group else unit for head, unit in zip(made.heads, made.units(), strict=True)
        ]
        yield f"**{plain(made.heading())}**"
        words = [True, *(head.words for head in made.heads)]
        yield grid((made.stub, *heads), ([row.label, *map(_text, row.cells)] for row in made.rows), words)
    sentences = [f"- {plain(sentence)}" for sentence in (*made.notes, *made.missing)]
    if sentences:
        yield "\n".join(sentences)


def _text(cell: Cell) -> str:
    return Markdown(f"**{plain(cell.main)}** {plain(cell.spread)}".strip()) if cell.bold else cell.text()


def grid(head: Iterable[str], rows: Iterable[Iterable[str]], words: Iterable[bool]) -> str:
    """A Markdown table; columns of words are left-aligned, the others right-aligned."""
    lines = [head, [Markdown(":--" if left else "--:") for left in words], *rows]
    return "\n".join("| " + " | ".join(map(plain, line)) + " |" for line in lines)
