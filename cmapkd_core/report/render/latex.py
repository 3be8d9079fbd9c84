"""A table of the paper in LaTeX (booktabs), figures' environments, and one document that shows them all."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from cmapkd_core.report.tables.table import Cell, Table, TableRow, ruled

MINUS = "\N{MINUS SIGN}"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    MINUS: "$-$",
    "“": "``",
    "”": "''",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "…": r"\dots{}",
    "\N{GREEK SMALL LETTER RHO}": r"$\rho$",
    "≥": r"$\geq$",
    "\N{DAGGER}": r"$^\dagger$",
} | {character: "\\" + character for character in "&%$#_{}"}
HEADING = 16  # characters of a heading that stay on one line
LONGEST = 45  # characters of words that stay on one line
_PATTERN = re.compile("|".join(map(re.escape, _SPECIAL)))
_NEGATIVE = re.compile(r"(?<![\w.-])-(?=\d)")  # a minus, not a hyphen: R-1 keeps its own


def latex_escape(text: str) -> str:
    """Text as LaTeX shows it, character by character; a minus before a number as a minus."""
    return _PATTERN.sub(lambda match: _SPECIAL[match[0]], _NEGATIVE.sub(MINUS, text))


def latex_table(made: Table) -> str:
    """A `table` environment, or the sentences that say what is missing. Needs the package booktabs."""
    head = [f"% {made.heading()}", f"% what each number was made from: numbers.json, {made.key}/.."]
    sentences = " ".join(made.missing)
    if not made.rows:
        return "\n".join([*head, rf"\emph{{{latex_escape(f'{made.title}. {sentences}')}}}"]) + "\n"
    notes = " ".join((*made.notes, *made.missing))
    return "\n".join(
        [
            *head,
            r"\begin{table}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3.5pt}",
            rf"\caption{{{latex_escape(f'{made.title}. {notes}'.strip())}}}",
            rf"\label{{tab:{made.key}}}",
            rf"\begin{{tabular}}{{@{{}}{latex_columns(made)}@{{}}}}",
            r"\toprule",
            *latex_headings(made),
            r"\midrule",
            *latex_body(made),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex_columns(made: Table) -> str:
    """Alignment of the columns, the first of which names the row; long words break into lines."""
    alignment = "l"
    for place, head in enumerate(made.heads):
        longest = max(len(row.cells[place].main) for row in made.rows)
        alignment += "r" if not head.words else "l" if longest <= LONGEST else r"p{0.45\linewidth}"
    return alignment


def latex_headings(made: Table) -> list[str]:
    """The row of groups with a rule below each that has a name, and the row of headings with their units."""
    last = " & ".join([latex_escape(made.stub), *map(_heading, made.units())]) + r" \\"
    if not any(group for group, _ in made.groups()):
        return [last]
    cells, rules, start = [""], [], 2
    for group, span in made.groups():
        cells.append(rf"\multicolumn{{{span}}}{{c}}{{{latex_escape(group)}}}")
        rules += [rf"\cmidrule(lr){{{start}-{start + span - 1}}}"] if group else []
        start += span
    return [" & ".join(cells) + r" \\", "".join(rules), last]


def _heading(text: str) -> str:
    """A heading, in several lines where it is long."""
    lines = [latex_escape(line) for line in textwrap.wrap(text, HEADING)]
    stacked = r" \\ ".join(lines)
    return rf"\shortstack[r]{{{stacked}}}" if len(lines) > 1 else stacked


def latex_body(made: Table) -> list[str]:
    """The rows, with a rule between the teacher, the students and chance."""
    groups = [[_row(row) for row in group] for group in ruled(made.rows)]
    return [row for i, group in enumerate(groups) for row in ([r"\midrule"] if i else []) + group]


def _row(row: TableRow) -> str:
    label = rf"\textbf{{{latex_escape(row.label)}}}" if row.kind == "ours" else latex_escape(row.label)
    spacing = "[3pt]" if any(cell.wider for cell in row.cells) else ""  # below a cell of three lines
    return " & ".join([label, *map(_cell, row.cells)]) + rf" \\{spacing}"


def _cell(cell: Cell) -> str:
    main = rf"\textbf{{{latex_escape(cell.main)}}}" if cell.bold else latex_escape(cell.main)
    lines = [main + latex_escape(cell.mark)]
    lines += [rf"{{\scriptsize {latex_escape(part)}}}" for part in (cell.spread, cell.wider) if part]
    stacked = r" \\ ".join(lines)
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{stacked}\end{{tabular}}" if cell.wider else " ".join(lines)


def latex_figure(key: str, caption: str, files: Iterable[str]) -> str:
    """A `figure` environment of panels side by side. Needs the package graphicx."""
    files = list(files)
    width = 0.49 if len(files) > 1 else 0.8
    panels = [rf"\includegraphics[width={width}\linewidth]{{{file}}}" for file in files]
    lines = [r"\begin{figure}[t]", r"\centering", *panels]
    lines += [rf"\caption{{{latex_escape(caption)}}}", rf"\label{{fig:{key}}}"]
    return "\n".join([*lines, r"\end{figure}", ""])


def latex_document(inputs: Iterable[str]) -> str:
    """A document that shows every table and figure, for a look at them before they go into a paper."""
    parts = [rf"\input{{{name}}}" + "\n" + r"\clearpage" for name in inputs]
    packages = ["[T1]{fontenc}", "[utf8]{inputenc}", "{booktabs}", "{graphicx}", "[margin=2cm,landscape]{geometry}"]
    lines = [r"\documentclass{article}", *(rf"\usepackage{package}" for package in packages), r"\begin{document}"]
    return "\n".join([*lines, *parts, r"\end{document}", ""])
