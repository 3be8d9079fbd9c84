"""One table, three forms: HTML, Markdown and LaTeX say the same; LaTeX is escaped and its columns are counted."""

from __future__ import annotations

import html
import re

import pytest

from cmapkd_core.report.render.html import environment
from cmapkd_core.report.render.latex import _SPECIAL, MINUS, latex_escape, latex_table
from cmapkd_core.report.render.markdown import of_table
from cmapkd_core.report.significance import Interval, interval
from cmapkd_core.report.tables.table import (
    Cell,
    Head,
    Table,
    TableRow,
    difference_cell,
    digits_of,
    mean_cell,
    number_cell,
)

ORIGIN = {"evaluation none/0": "s3://bucket/a_b"}


def made() -> Table:
    """Every kind of cell, and names with LaTeX's special characters."""
    heads = (
        Head("", "what it is", words=True),
        Head("Image to text", "R@1", "%"),
        Head("Image to text", "median rank"),
        Head("", "minus full_method, a long heading", "points"),
    )

    def line(label: str, values: list[float], kind: str = "") -> TableRow:
        found = interval(values)
        change = Interval(-found.mean, found.half, found.n)
        cells = (
            Cell("50 % & more_or_less"),
            mean_cell(found, f"{label}/R@1", ORIGIN),
            Cell("-"),
            difference_cell(change, "", {}),
        )
        return TableRow(label, cells, kind)

    lines = (
        line("Teacher #1", [58.0], "teacher"),
        line("w/o {x} | $y", [50.0, 52.0, 54.0]),
        line("ours_\\^~<>", [1.0, 1.0], "ours"),
        line("Chance", [0.25], "chance"),
    )
    return Table("table9_made", "Made on emoji, split “test”", heads, lines, ("n is 3; 95 %.",), stub="Row")


def in_html(table: Table) -> list[list[str]]:
    text = page_of(table)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text.split("<tbody>")[1], re.DOTALL)
    return [[_plain(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def page_of(table: Table) -> str:
    source = '{% import "tables.html.j2" as parts %}{{ parts.table(made) }}'
    return environment().from_string(source).render(made=table)


def _plain(cell: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", cell))


def in_markdown(table: Table) -> list[list[str]]:
    text = "\n".join(of_table(table))
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    parts = [re.split(r"(?<!\\) \| ", row[2:-2]) for row in rows]
    return [
        [re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", html.unescape(cell.replace("**", ""))) for cell in row] for row in parts
    ]


def in_latex(table: Table) -> list[list[str]]:
    text = latex_table(table)
    body = text.split("\\midrule", 1)[1].split("\\bottomrule")[0]
    rows = [row for row in body.splitlines() if row.strip() and row != "\\midrule"]
    return [[_unescaped(cell) for cell in re.split(r"(?<!\\) & ", row.removesuffix(r" \\"))] for row in rows]


def _unescaped(cell: str) -> str:
    cell = re.sub(r"\\textbf\{((?:[^{}]|\\[{}])*)\}", r"\1", cell)
    cell = re.sub(r"\{\\scriptsize (.*)\}$", r"\1", cell)
    for character, command in _SPECIAL.items():
        cell = cell.replace(command, character)
    return cell.replace(MINUS, "-")


def test_the_three_forms_agree() -> None:
    table = made()
    wanted = [[line.label, *(cell.text() for cell in line.cells)] for line in table.rows]
    assert wanted[1] == ["w/o {x} | $y", "50 % & more_or_less", "52.0 ± 5.0", "-", "-52.0 [-57.0 to -47.0]"]
    assert in_html(table) == wanted
    assert in_markdown(table) == wanted
    plain_names = [[cell.replace("textbackslash{}", "") for cell in row] for row in wanted]
    assert [row[1:] for row in in_latex(table)] == [row[1:] for row in plain_names]
    assert [row[0] for row in in_latex(table)][:2] == ["Teacher #1", "w/o {x} | $y"]


def test_latex_is_well_formed() -> None:
    table = made()
    text = latex_table(table)
    rows = [row for row in text.splitlines() if row.endswith(r" \\")]
    spans = [sum(int(n) for n in re.findall(r"multicolumn\{(\d+)\}", row)) for row in rows if "multicolumn" in row]
    assert spans == [len(table.heads)]
    counts = {len(re.findall(r"(?<!\\)&", row)) for row in rows if "multicolumn" not in row}
    assert counts == {len(table.heads)}
    assert re.search(r"begin\{tabular\}\{@\{\}lp\{0.45\\linewidth\}|begin\{tabular\}\{@\{\}llrrr@\{\}\}", text)
    bare = re.sub(r"\\[{}\\]", "", text)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"(?<!\\)[#$](?!-|\\pm)", bare.replace("$\\pm$", "").replace("$-$", ""))
    assert text.count(r"\midrule") == 3  # below the headings, below the teacher, above chance
    assert text.count(r"\textbf{") == 1 + sum(cell.bold for line in table.rows for cell in line.cells)
    assert r"\cmidrule(lr){3-4}" in text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("50 % & a_b #1 {x} $", r"50 \% \& a\_b \#1 \{x\} \$"),
        ("\\ ~ ^ < >", r"\textbackslash{} \textasciitilde{} \textasciicircum{} \textless{} \textgreater{}"),
        ("-1.2 ± 3 of R@-5, x-2, no-1", r"$-$1.2 $\pm$ 3 of R@$-$5, x-2, no-1"),
        ("[-1.0 to -0.5] “a”", "[$-$1.0 to $-$0.5] ``a''"),
    ],
)
def test_escaping_by_hand(text: str, wanted: str) -> None:
    assert latex_escape(text) == wanted


def test_long_headings_stand_in_lines_and_long_words_break() -> None:
    text = latex_table(made())
    assert r"\shortstack[r]{minus \\ full\_method, a \\ long heading, \\ points}" in text
    words = Table("x", "x", (Head("", "here", words=True),), (TableRow("a", (Cell("word " * 30),)),))
    assert r"{@{}lp{0.45\linewidth}@{}}" in latex_table(words)


def test_a_table_without_lines_is_its_sentences() -> None:
    table = Table("table3_x", "VQA", missing=("Not measured: vqa.",))
    assert r"\emph{VQA. Not measured: vqa.}" in latex_table(table)
    assert "tabular" not in latex_table(table)
    assert list(of_table(table)) == ["- Not measured: vqa."]
    assert "<table" not in page_of(table)
    assert '<p class="note">Not measured: vqa' in page_of(table)


def test_equal_values_of_all_seeds_are_no_interval_of_zero() -> None:
    cell = mean_cell(interval([5.0] * 5), "x", {})
    assert (cell.main, cell.spread) == ("5.0", "no spread")


def test_cells() -> None:
    assert mean_cell(None, "", {}) == Cell()
    assert mean_cell(Interval(1e6, None, 1), "", {}, 2, 1e-6).text() == "1.00"
    assert difference_cell(Interval(0.5, 0.0, 3), "", {}).text() == "+0.5 [no spread]"
    assert not difference_cell(Interval(0.5, 0.0, 3), "", {}).bold
    assert difference_cell(Interval(-0.5, 0.25, 3), "", {}).bold
    assert [digits_of([Interval(1.0, half, 5), Interval(1.0, 3.0, 5)]) for half in (0.0, 0.09, 0.1, None)] == [
        1,
        2,
        1,
        1,
    ]
    assert number_cell(None, "", {}, otherwise="constant").text() == "constant"
    assert number_cell(1.5, "x", ORIGIN, 1, sign="+").text() == "+1.5"
