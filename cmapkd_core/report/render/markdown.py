"""A report's sections as Markdown, compact, for the KFP UI; figures are on the page alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from cmapkd_core.markup import Markdown, plain, without_turns
from cmapkd_core.report.sections.lead import Lead
from cmapkd_core.report.sections.left_out import LeftOut
from cmapkd_core.report.sections.section import Heading, Section
from cmapkd_core.report.tables.table import Cell, Table

SEARCH = "This finds pictures of the data by words, in a shell; other words may stand at its end:"


def document(
    title: str,
    facts: str,
    headings: Mapping[str, Heading],
    sections: Mapping[str, Section],
    lead: Lead,
    rest: LeftOut,
    notes: Iterable[str] = (),
    closing: str = "",
) -> str:
    """Title, what came out, what the report is of, notes, every section's tables and captions, and what it has not."""
    parts = [
        f"# {plain(title)}",
        Markdown(f"**{plain(lead.outcome.sentence)}**"),
        plain(facts),
        "\n".join(f"- {plain(note)}" for note in (*lead.outcome.notes, *filter(None, [lead.set_aside]), *notes)),
        *(
            part
            for key in sections
            if not sections[key].bare
            for part in section_markdown(headings[key], sections[key])
        ),
        *_use(lead),
        *_rest(rest),
        closing,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(lead: Lead) -> Iterator[str]:
    """How the student is used, or what exports it."""
    if not (lead.use or lead.export):
        return
    yield "## Use the student"
    if lead.use is None:
        yield from ("The student was not exported when this was written. This exports it:", fenced(lead.export))
        return
    yield plain(f"It lies at {lead.use.folder}; README.md there is its card.")
    if lead.use.copy:
        yield from ("To this machine:", fenced(lead.use.copy))
    if lead.use.reason:
        yield plain(f"Not in open_clip: {lead.use.reason}.")
    if lead.use.search:
        yield from (SEARCH, fenced(lead.use.search))
    yield from (part for part in (fenced(lead.use.python()), "With ONNX Runtime:", fenced(lead.use.onnx())) if part)


def _rest(rest: LeftOut) -> Iterator[str]:
    """What the report has no section for, and what would add it."""
    if rest.sentences:
        yield from ("## Not in this report", "\n".join(f"- {plain(sentence)}" for sentence in rest.sentences))
    for one in rest.commands if rest.sentences else ():
        yield from (plain(one.words), fenced(one.command))


def fenced(text: str) -> str:
    """Lines as a block that shows them as they are; "" of none. Control characters, such as of a path, are left out."""
    shown = "".join(sign for sign in without_turns(text).rstrip() if sign == "\n" or sign.isprintable())
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}\n{shown}\n{fence}" if shown else ""


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
    if not cell.bold:
        return cell.text()
    rest = (plain(part) for part in (cell.spread, cell.wider) if part)
    return Markdown(" ".join([f"**{plain(cell.main)}**{cell.mark}", *rest]))


def grid(head: Iterable[str], rows: Iterable[Iterable[str]], words: Iterable[bool]) -> str:
    """A Markdown table; columns of words are left-aligned, the others right-aligned."""
    lines = [head, [Markdown(":--" if left else "--:") for left in words], *rows]
    return "\n".join("| " + " | ".join(map(plain, line)) + " |" for line in lines)
