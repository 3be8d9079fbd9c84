r"""The folder `paper/`: every table as LaTeX, every figure as PDF and PNG, all numbers with where each is from.

tables/KEY.tex      booktabs; \input it where the table shall stand
figures/NAME.pdf    a panel, fonts embedded; NAME.png the same at 300 dpi
figures/KEY.tex     a figure environment with the panels and their caption
all.tex             a document with everything, for a look
numbers.json        every number of every table with the URLs of the artifacts that it was made from
README.txt          which file is which, and what is missing
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmapkd_core.report.render.drawings import save
from cmapkd_core.report.render.latex import latex_document, latex_figure, latex_table
from cmapkd_core.report.row_differences import wider_of
from cmapkd_core.report.sections.section import Heading, Section
from cmapkd_core.report.tables.table import Cell, Table

FOLDER = "paper"


@dataclass(frozen=True)
class FolderEntry:
    """A line of the README."""

    files: tuple[str, ...]
    words: str


def write_folder(out: Path, title: str, headings: Mapping[str, Heading], sections: Mapping[str, Section]) -> Path:
    """Write the folder below `out`; returns it."""
    folder = out / FOLDER
    for name in ("tables", "figures"):
        (folder / name).mkdir(parents=True)
    tables = [made for section in sections.values() for made in section.tables]
    entries = [_table(folder, made) for made in tables]
    for key, section in sections.items():
        entries += _figures(folder, key, headings[key], section)
    inputs = [file for entry in entries for file in entry.files if file.endswith(".tex")]
    (folder / "all.tex").write_text(latex_document(inputs), encoding="utf-8")
    titles = {made.key: {"title": made.heading(), "notes": made.notes} for made in tables}  # what an interval is, too
    numbers = {"report": title, "tables": titles, "numbers": numbers_of(tables)}
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    missing = [
        f"{headings[key].text()}: {sentence}" for key, section in sections.items() for sentence in _missing(section)
    ]
    (folder / "README.txt").write_text(_readme(title, entries, missing), encoding="utf-8")
    return folder


def _table(folder: Path, made: Table) -> FolderEntry:
    name = f"tables/{made.key}.tex"
    (folder / name).write_text(latex_table(made), encoding="utf-8")
    return FolderEntry((name,), made.heading() if made.rows else f"{made.heading()} (a sentence: see what is missing)")


def _figures(folder: Path, key: str, heading: Heading, section: Section) -> list[FolderEntry]:
    """The panels of a section and the environment that holds them; a figure of the paper is called by its number.

    Of panels with one title, which have a part of the rows each, the second is called NAME_2.
    """
    if not section.figures:
        return []
    key = heading.number.lower().replace(" ", "") or key
    entries, files, called = [], [], Counter[str]()
    for drawing in section.figures:
        called[drawing.slug] += 1
        again = called[drawing.slug]
        name = f"{key}_{drawing.slug}" if again == 1 else f"{key}_{drawing.slug}_{again}"
        saved = save(drawing, folder / "figures", name)
        entries.append(FolderEntry(tuple(f"figures/{path.name}" for path in saved), drawing.title))
        files.append(f"figures/{name}.pdf")
    name = f"figures/{key}.tex"
    (folder / name).write_text(latex_figure(key, f"{heading.title}. {section.caption}", files), encoding="utf-8")
    return [FolderEntry((name,), f"{heading.text()}: the panels below with their caption"), *entries]


def numbers_of(tables: Iterable[Table]) -> dict[str, dict[str, Any]]:
    """`KEY/NAME` -> value, interval, n and the artifacts that it was made from, for every number of every table."""
    numbers = {}
    for made in tables:
        for row in made.rows:
            for head, cell in zip(made.heads, row.cells, strict=True):
                if cell.interval is None:
                    continue
                one = cell.interval
                numbers[f"{made.key}/{cell.number}"] = {
                    "value": one.mean,
                    "low": one.low,
                    "high": one.high,
                    "n": one.n,
                    **_compared(cell),
                    "unit": head.unit,
                    "as_shown": cell.text(),
                    "from": cell.origins,
                }
    return numbers


def _compared(cell: Cell) -> dict[str, Any]:
    """Of a difference: p, Holm's p over the table, and the interval over seeds and test concepts where it is known."""
    if cell.test is None:
        return {}
    wider = wider_of(cell.interval)
    values = {"p": cell.test.p, "p_holm": cell.test.adjusted}
    return values | ({"over_seeds_and_concepts": asdict(wider)} if wider else {})


def _missing(section: Section) -> list[str]:
    return [*section.missing, *(sentence for made in section.tables for sentence in made.missing)]


def _readme(title: str, entries: Iterable[FolderEntry], missing: Iterable[str]) -> str:
    lines = [title, "", "Tables need \\usepackage{booktabs}, figures \\usepackage{graphicx}. all.tex shows everything."]
    lines += ["numbers.json: every number, its interval, and the artifacts that it was made from.", ""]
    lines += [f"{'  '.join(entry.files)}\n    {entry.words}" for entry in entries]
    gone = list(missing)
    lines += ["", "Missing:", *(f"  {sentence}" for sentence in gone)] if gone else []
    return "\n".join(lines) + "\n"
