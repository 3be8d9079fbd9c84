"""What there is to choose from, a line each, made from the tables themselves: nothing here names a row.

The words are those of the code: what a row sets, or the docstring of what it names, which is read and not imported.
"""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cmapkd_core.catalog import EVALUATIONS, SOURCES, EvaluationEntry, SourceEntry, spec_of
from cmapkd_core.command_line import Parser, until_enough
from cmapkd_core.config import Recipe, phases_of
from cmapkd_core.errors import InputError
from cmapkd_core.fields import as_overrides, choose, differences, flatten, plain
from cmapkd_core.method_specs import METHODS
from cmapkd_core.recipes import BASELINES, CHANGES, FULL, RECIPES, SUITES

Lines = Mapping[str, str]  # of a table: name -> what is said of the row


def documented(code: str, *, file: bool) -> str:
    """The first paragraph of the docstring of MODULE:NAME, or of the file that it is in."""
    module, _, name = code.partition(":")
    spec = spec_of(module)
    if spec is None or spec.origin is None:
        return ""
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    node = next((one for one in tree.body if getattr(one, "name", "") == name), tree)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
    text = ast.get_docstring(tree if file else node) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("`", "")


# ---- a line for a row -----------------------------------------------------------------------------


def recipe_line(recipe: Recipe) -> str:
    """Which model teaches which, on what, how long."""
    teacher, student = (f"{one.model} ({one.weights})" for one in (recipe.teacher, recipe.student))
    epochs = sum(phase.epochs for phase in phases_of(recipe.schedule).values())
    return f"{teacher} teaches {student}; data {recipe.data.source}, batch {recipe.optim.batch}, {epochs} epochs"


def baseline_line(row: Mapping[str, Any]) -> str:
    """The method as its file says it, and where it is a variant, what it sets or leaves otherwise."""
    method = str(row["method.name"])
    published = next(one for one in BASELINES.values() if one["method.name"] == method)
    changed = as_overrides({name: value for name, value in row.items() if published.get(name) != value})
    left = ", ".join(name for name in published if name not in row)
    text = documented(METHODS[method].code, file=True).rstrip(".")
    return "; ".join(filter(None, (text, changed and f"with {changed}", left and f"without {left}")))


def row_line(row: Mapping[str, Any]) -> str:
    """The fields that it sets."""
    return as_overrides(dict(row)) or "the full method"


def source_line(source: SourceEntry) -> str:
    """What it is, and what a folder of it holds."""
    text = documented(source.code, file=True)
    return f"{text} The folder holds {source.folder}" if source.folder else text


def evaluation_line(evaluation: EvaluationEntry) -> str:
    """What is measured."""
    return documented(evaluation.code, file=False)


# ---- tables ---------------------------------------------------------------------------------------


def recipe_tables() -> dict[str, Lines]:
    """Of `cmapkd recipes`."""
    return {"recipes (--recipe NAME)": {name: recipe_line(one) for name, one in RECIPES.items()}}


def row_tables() -> dict[str, Lines]:
    """Of `cmapkd rows`."""
    summary = documented(METHODS[Recipe().method.name].code, file=True)
    return {
        "methods (--method NAME)": {FULL: f"{summary.rstrip('.')}: the full method, taken where no row is named"}
        | {name: baseline_line(row) for name, row in BASELINES.items()},
        **{
            f"{title} (--ablation NAME)": {n: row_line(row) for n, row in rows.items()}
            for title, rows in CHANGES.items()
        },
        "suites (--suite NAME --seeds N)": {name: " ".join(rows) for name, rows in SUITES.items()},
    }


def source_tables() -> dict[str, Lines]:
    """Of `cmapkd sources`."""
    own = {name: source_line(one) for name, one in SOURCES.items() if not one.folder}
    folders = {name: source_line(one) for name, one in SOURCES.items() if one.folder}
    return {"a folder or s3:// of yours (--data NAME:PLACE)": folders, "with pictures of its own (--data NAME)": own}


def evaluation_tables() -> dict[str, Lines]:
    """Of `cmapkd evaluations`."""
    lines = {name: evaluation_line(one) for name, one in EVALUATIONS.items()}
    return {"evaluations (evaluate --task NAME; evaluate.tasks, evaluate.sets of a recipe)": lines}


def all_tables(tables: Mapping[str, Lines], columns: int) -> str:
    """All tables; a line that has no room ends in `..`."""
    wide = 2 + max(len(name) for lines in tables.values() for name in lines)
    blocks = [
        "\n".join([title, *(cut(f"  {name:{wide}}{text}", columns) for name, text in lines.items())])
        for title, lines in tables.items()
    ]
    return "\n\n".join(blocks)


def cut(line: str, columns: int) -> str:
    """What has room."""
    return line if len(line) <= columns else f"{line[: columns - 3]} .."


def one_row(tables: Mapping[str, Lines], name: str) -> str:
    """All that is said of one row; of a recipe every field in which it differs from the defaults.

    Raises:
        InputError: there is none of this name; names the nearest one.
    """
    summary = choose("name", name, {row: text for lines in tables.values() for row, text in lines.items()})
    changed = (
        [f"  {line}" for line in differences(plain_fields(RECIPES[name]), plain_fields(Recipe()))]
        if (name in RECIPES and summary == recipe_line(RECIPES[name]))
        else []
    )
    return "\n".join([f"{name}: {summary}", *changed])


def plain_fields(recipe: Recipe) -> dict[str, Any]:
    """Every field by its name."""
    return {name: plain(value) for name, value in flatten(recipe).items() if name != "name"}


# ---- commands -------------------------------------------------------------------------------------


def _listing(kind: str, argv: Sequence[str]) -> int:
    cli = Parser(prog=f"cmapkd {kind}", description=f"Lists {kind}, a line each; NAME shows one whole.")
    cli.add_argument("name", nargs="?", default="", metavar="NAME", help="one of them")
    name, tables = cli.parse_args(argv).name, TABLES[kind]()
    try:
        text = one_row(tables, name) if name else all_tables(tables, shutil.get_terminal_size((120, 24)).columns)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with until_enough():
        print(text)
    return 0


TABLES = {"recipes": recipe_tables, "rows": row_tables, "sources": source_tables, "evaluations": evaluation_tables}
recipes, rows, sources, evaluations = (partial(_listing, kind) for kind in TABLES)
