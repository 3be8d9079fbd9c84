"""The same sections as Markdown, compact, for the KFP UI; figures are on the page alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cmapkd_core.markup import Markdown, plain
from cmapkd_core.report.inputs import Inputs
from cmapkd_core.report.papertable import Cell, PaperTable
from cmapkd_core.report.section import Heading, Section
from cmapkd_core.report.sections import HEADINGS


def render(inputs: Inputs, sections: Mapping[str, Section]) -> str:
    """Every section's tables and captions; what is missing is said in its place."""
    recipe = inputs.recipe
    head = [
        f"# {plain(inputs.run)}",
        plain(f"recipe {recipe.name}, ablation {inputs.ablation}, seed {recipe.seed}, method {recipe.method.name}"),
    ]
    return "\n\n".join([*head, *(part for key in sections for part in of_section(HEADINGS[key], sections[key]))]) + "\n"


def of_section(heading: Heading, section: Section) -> Iterator[str]:
    """Heading, sentences on what is missing, caption and tables."""
    yield f"## {plain(heading.text())}"
    yield from map(plain, section.missing)
    if section.figures or section.content:
        yield plain(f"{'Figures' if section.figures else 'Pictures'} are on the page alone. {section.caption}")
    for made in section.tables:
        if not made.aside:
            yield from of_table(made)


def of_table(made: PaperTable) -> Iterator[str]:
    """The table with its heading and notes."""
    if made.lines:
        heads = [
            f"{head.group}: {unit}" if head.group else unit for head, unit in zip(made.heads, made.units(), strict=True)
        ]
        yield f"**{plain(made.heading())}**"
        words = [True, *(head.words for head in made.heads)]
        yield grid((made.stub, *heads), ([line.label, *map(_text, line.cells)] for line in made.lines), words)
    said = [f"- {plain(sentence)}" for sentence in (*made.notes, *made.missing)]
    if said:
        yield "\n".join(said)


def _text(cell: Cell) -> str:
    return Markdown(f"**{plain(cell.main)}** {plain(cell.spread)}".strip()) if cell.bold else cell.text()


def grid(head: Iterable[str], rows: Iterable[Iterable[str]], words: Iterable[bool]) -> str:
    """A Markdown table; columns of words are left-aligned, the others right-aligned."""
    lines = [head, [Markdown(":--" if left else "--:") for left in words], *rows]
    return "\n".join("| " + " | ".join(map(plain, line)) + " |" for line in lines)
