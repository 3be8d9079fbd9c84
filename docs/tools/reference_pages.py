"""Pages of reference that are made from the code, so that they cannot differ from it.

    python docs/tools/reference_pages.py           writes them; tests/test_documents.py says where one is old

fields.md: every field of a recipe with its default, what it may be and the comment in cmapkd_core/config.py.
recipes.md: recipes, methods, rows and suites. commands.md: options of all commands. python.md: what `cmapkd` has.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

REPOSITORY = Path(__file__).parents[2]
if str(REPOSITORY) not in sys.path:  # started as a script, its own folder is there
    sys.path.insert(0, str(REPOSITORY))

import cmapkd  # noqa: E402
from cmapkd import console  # noqa: E402
from cmapkd.pipelines import submit  # noqa: E402
from cmapkd_core import config, convert_weights, fetch_weights, recipes  # noqa: E402
from cmapkd_core.fields import as_text, flatten, is_part, names_of, plain  # noqa: E402
from cmapkd_core.method_specs import METHODS  # noqa: E402
from cmapkd_core.stages import cli  # noqa: E402
from cmapkd_core.values import Must, Named, hints_of  # noqa: E402

PAGES = REPOSITORY / "docs/reference"
MADE = "Made by `python docs/tools/reference_pages.py`; do not edit it by hand."


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A Markdown table and an empty line behind it."""
    return [f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *rows)] + [""]


def escaped(words: str) -> str:
    """Words of the code in a cell of a table; what stands between backticks stays code."""
    return words.replace("|", "\\|").replace("<", "&lt;")


def code(value: str) -> str:
    """A value as code."""
    return f"`{value}`" if value else "(empty)"


# ---- fields ---------------------------------------------------------------------------------------


def comments_of(source: str) -> dict[tuple[str, str], str]:
    """(class, field) -> the comment above the field and behind it."""
    comments = {
        token.start[0]: (token.string.lstrip("# ").rstrip(), token.line.strip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    by_field: dict[tuple[str, str], str] = {}
    for kind in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
        for node in (node for node in kind.body if isinstance(node, ast.AnnAssign)):
            first = node.lineno
            while comments.get(first - 1, ("", False))[1]:
                first -= 1
            lines = [comments[line][0] for line in range(first, (node.end_lineno or first) + 1) if line in comments]
            by_field[kind.name, ast.unparse(node.target)] = " ".join(lines)
    return by_field


def allowed(hint: Any) -> str:
    """What a field may hold, in words."""
    extras = list(getattr(hint, "__metadata__", ()))
    if names := next((extra.table for extra in extras if isinstance(extra, Named)), None):
        return "one of " + ", ".join(map(code, names))
    if rule := next((extra.text for extra in extras if isinstance(extra, Must)), ""):
        return f"{kind_of(hint)}; {rule.removeprefix('it must be ').removeprefix('it ')}"
    bounds = [bound for extra in extras for bound in getattr(extra, "metadata", ())]
    return "; ".join([kind_of(hint), *filter(None, map(bound_in_words, bounds))])


def kind_of(hint: Any) -> str:
    """The type of a field, in words."""
    bare = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    if get_origin(bare) is tuple:
        inner = [part for part in get_args(bare) if part is not Ellipsis]
        return f"several, with commas: {allowed(inner[0])}" if Ellipsis in get_args(bare) else f"{len(inner)} numbers"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}.get(bare, "a value")


def bound_in_words(bound: Any) -> str:
    """One bound; "" of what is none."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
    return next((f"{word} {getattr(bound, name):g}" for name, word in words.items() if hasattr(bound, name)), "")


def parts_of(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every part of a configuration with its dotted name, itself first; phases and what is in them once."""
    yield prefix, part
    for name in names_of(part):
        value = getattr(part, name)
        if is_part(value) and not isinstance(value, config.Phase):
            yield from parts_of(value, f"{prefix}{name}.")


def field_rows(part: Any, prefix: str, comments: Mapping[tuple[str, str], str]) -> list[tuple[str, ...]]:
    """A line for each field of one part, but for the parts in it."""
    rows: list[tuple[str, ...]] = []
    for name, hint in hints_of(part).items():
        value = getattr(part, name)
        if not is_part(value):
            meaning = escaped(comments.get((type(part).__name__, name), ""))
            rows.append((code(prefix + name), code(as_text(value)), allowed(hint), meaning))
    return rows


def fields() -> str:
    """docs/reference/fields.md."""
    comments = comments_of(inspect.getsource(config))
    lines = [
        "# Recipe fields",
        "",
        MADE,
        "",
        "`--set FIELD=VALUE` changes a field; it may be given several times. A list is written with commas. The",
        "defaults are those of recipe `paper`; [recipes and rows](recipes.md) has what other recipes change.",
        "",
    ]
    head = ("field", "default", "may be", "meaning")
    for prefix, part in parts_of(config.Recipe()):
        if rows := field_rows(part, prefix, comments):
            title, doc = prefix.rstrip(".") or "The recipe itself", inspect.getdoc(type(part)) or ""
            lines += [f"## {title}", "", escaped(doc.partition("\n\n")[0].replace("\n", " ")), "", *table(head, rows)]
    return "\n".join([*lines, *phases(comments)])


def phases(comments: Mapping[tuple[str, str], str]) -> list[str]:
    """The fields of a phase once, and what each phase has of them."""
    phase = config.Phase()
    rows = field_rows(phase, "PHASE.", comments) + field_rows(phase.lr, "PHASE.lr.", comments)
    plan, fit = config.Schedule(), config.TeacherFitConfig()
    named = {f"schedule.{name}": part for name, part in config.phases_of(plan).items()}
    named |= {f"teacher_fit.{name}": getattr(fit, name) for name in ("space", "pyramid")}
    return [
        "## Phases",
        "",
        f"{inspect.getdoc(config.Phase)} Each phase below has these fields, such as `schedule.fine.lr.student`:",
        "",
        *table(("field", "default", "may be", "meaning"), rows),
        "What each phase sets:",
        "",
        *table(
            ("phase", "stage", "fields"), [(code(name), stage_of(name), changed(one)) for name, one in named.items()]
        ),
    ]


def stage_of(phase: str) -> str:
    """The stage that runs a phase."""
    name = phase.rpartition(".")[2]
    return next((stage for stage, names in config.STAGE_PHASES.items() if name in names), "teacher")


def changed(phase: config.Phase) -> str:
    """What a phase sets, other than an empty phase."""
    before = flatten(config.Phase())
    now = {name: value for name, value in flatten(phase).items() if plain(value) != plain(before[name])}
    return ", ".join(code(f"{name}={as_text(value)}") for name, value in now.items()) or "nothing"


# ---- recipes and rows -----------------------------------------------------------------------------


def rows_page() -> str:
    """docs/reference/recipes.md."""
    before = flatten(recipes.RECIPES["paper"])
    lines = ["# Recipes, methods, rows and suites", "", MADE, ""]
    lines += ["## Recipes", "", "`--recipe NAME`. Recipe `paper` has the defaults of all [fields](fields.md).", ""]
    for name, recipe in recipes.RECIPES.items():
        now = {field: v for field, v in flatten(recipe).items() if plain(v) != plain(before[field]) and field != "name"}
        parts = dict.fromkeys(field.partition(".")[0] for field in now)
        changes = [
            ", ".join(code(f"{field}={as_text(now[field])}") for field in now if field.partition(".")[0] == part)
            for part in parts
        ]
        lines += [f"### {name}", "", *([f"- {one}" for one in changes] or ["The defaults."]), ""]
    lines += ["## Methods", "", "[What each changes of its paper](../deviations.md).", ""]
    methods = [
        (code(spec.row or name), *in_words(spec.terms)) for name, spec in METHODS.items() if name != config.METHOD
    ]
    full_method = (f"none ({code(config.METHOD)})", *in_words(METHODS[config.METHOD].terms))
    lines += table(("row", "terms of the loss and their weights"), [full_method, *methods])
    for title, rows, option in (
        ("baselines", recipes.BASELINES, "--method"),
        *((title, rows, "--ablation") for title, rows in recipes.CHANGES.items()),
    ):
        shown = [(code(name), row_in_words(row)) for name, row in rows.items()]
        lines += [f"## {title.capitalize()}", "", f"`{option} NAME`.", "", *table(("row", "what it sets"), shown)]
    suites = [(code(name), ", ".join(rows)) for name, rows in recipes.SUITES.items()]
    lines += ["## Suites", "", "`--suite NAME --seeds N`. Row `none` is the full method.", ""]
    return "\n".join([*lines, *table(("suite", "rows"), suites)])


def in_words(terms: Mapping[str, float]) -> tuple[str]:
    """Terms and weights, as the cells of a line."""
    return (", ".join(f"{term} {weight:g}" for term, weight in terms.items()),)


def row_in_words(row: Mapping[str, Any]) -> str:
    """The fields that a row sets."""
    return ", ".join(code(f"{name}={as_text(value)}") for name, value in row.items())


# ---- commands -------------------------------------------------------------------------------------


def options(parser: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> list[str]:
    """A table of the options of a parser for each group of them that has one."""
    lines: list[str] = []
    for group in parser._action_groups:
        rows = [option(one) for one in group._group_actions if not {*one.option_strings} & {"-h", *leave_out}]
        named = group.title not in ("options", "positional arguments")
        lines += [f"{group.title}:", ""] * named * bool(rows)
        lines += table(("option", "meaning"), rows) if rows else []
    return lines


def option(action: argparse.Action) -> tuple[str, ...]:
    """A line of it."""
    names = action.option_strings or [str(action.metavar or action.dest)]
    value = "" if action.nargs == 0 or not action.option_strings else f" {shown_value(action)}"
    needed = "needed; " if action.required and action.option_strings else ""
    return code(names[0] + value), needed + escaped((action.help or "").replace("%%", "%"))


def shown_value(action: argparse.Action) -> str:
    """What stands behind an option."""
    metavar = action.metavar
    shown = " ".join(metavar) if isinstance(metavar, tuple) else str(metavar or action.dest.upper())
    return f"[{shown}]" if action.nargs == "?" else shown


def stages() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the stages that have a word, by that."""
    rows = {name: one for name, one in console.commands().items() if isinstance(one, console.Stage)}
    runs = {name: importlib.import_module(one.code.partition(":")[0]).run for name, one in rows.items()}
    return {name: cli.parser(run, f"cmapkd {name}") for name, run in runs.items()}


def common() -> set[str]:
    """Options that every stage has."""
    return set.intersection(*({name for a in one._actions for name in a.option_strings} for one in stages().values()))


def stage_pages() -> list[str]:
    """Every stage with its own options; those that all have stand once."""
    shared, parsers = common(), stages()
    first = next(iter(parsers.values()))
    own = {name for action in first._actions for name in action.option_strings} - shared
    lines = [
        "## Stages",
        "",
        "`cmapkd NAME`, or `python -m` and its module below `cmapkd_core/stages`. All stages have these options:",
        "",
    ]
    lines += options(first, own)
    for name, parser in parsers.items():
        lines += [f"### cmapkd {name}", "", escaped((parser.description or "").replace("%%", "%")), ""]
        lines += options(parser, shared)
    return lines


def commands() -> str:
    """docs/reference/commands.md."""
    lines = ["# Commands", "", MADE, "", "## cmapkd", ""]
    lines += [
        "`pip install` brings the command `cmapkd`; after `make demo` it is `.venv/bin/cmapkd`. `python -m cmapkd` is"
    ]
    lines += ["the same.", "", "```text", console.overview(), "```", ""]
    lines += [f"- `cmapkd {name}` is short for `cmapkd submit {' '.join(one.words)}`" for name, one in short().items()]
    lines += [
        "",
        "## cmapkd submit",
        "",
        "From a checkout also `python pipelines/submit.py`, with the same options.",
        "",
    ]
    lines += ["```text", (submit.__doc__ or "").strip(), "```", "", *options(submit.parser()), *stage_pages()]
    for name, command in (("convert-weights", convert_weights), ("fetch-weights", fetch_weights)):
        doc = (command.__doc__ or "").strip()
        lines += [f"## cmapkd {name}", "", "```text", doc, "```", "", *options(command.parser())]
    lines += ["## make", ""]
    targets = re.findall(r"^([a-z][^:\n]*):.*?## (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    lines += table(("target", "what it does"), [(code(name), escaped(text)) for name, text in targets])
    return "\n".join(lines)


def short() -> dict[str, console.Submit]:
    """Commands that are `submit` with words before those that are given."""
    return {n: one for n, one in console.commands().items() if isinstance(one, console.Submit) and one.words}


# ---- Python ---------------------------------------------------------------------------------------


def python() -> str:
    """docs/reference/python.md."""
    lines = [
        "# Python",
        "",
        MADE,
        "",
        "```python",
        "from cmapkd import distil, evaluate, load_student, prepare",
        "```",
        "",
    ]
    lines += [
        "`import cmapkd` is quick: what a name needs is imported when it is first used. All names have types, which"
    ]
    lines += [
        "type checkers see. Errors that you can mend are `cmapkd_core.errors.InputError`; their message says how."
    ]
    lines += ["[A notebook](../../examples/own_pictures.ipynb) leads through all of it; the tests run it.", ""]
    named = [getattr(cmapkd, name) for name in cmapkd.__all__ if not name.startswith("__")]
    functions = [one for one in named if not inspect.isclass(one)]
    for function in functions:
        lines += [f"## {function.__name__}", "", *signature(function), *docstring(function)]
    for kind in (one for one in named if inspect.isclass(one)):
        lines += [f"## {kind.__name__}", "", *docstring(kind)]
        methods = [one for name, one in vars(kind).items() if inspect.isfunction(one) and not name.startswith("_")]
        for method in methods:
            lines += [f"### {kind.__name__}.{method.__name__}", "", *signature(method), *docstring(method)]
    return "\n".join(lines)


def signature(function: Any) -> list[str]:
    """How it is called, a parameter a line where they are many."""
    spec = inspect.signature(function)
    words: list[str] = []
    for one in spec.parameters.values():
        words += ["*"] * (one.kind is one.KEYWORD_ONLY and "*" not in words)
        default = {} if isinstance(one.default, Mapping) else one.default
        words.append(f"{one.name}: {one.annotation}" + (f" = {default!r}" if default is not one.empty else ""))
    arguments = ", ".join(words).removeprefix("self: <class 'inspect._empty'>, ")
    if len(arguments) > 80:
        arguments = "\n    " + ",\n    ".join(words) + ",\n"
    return ["```text", f"{function.__name__}({arguments}) -> {spec.return_annotation}", "```", ""]


def docstring(of: Any) -> list[str]:
    """A docstring in Google's style: its words, and a table of each section."""
    head, *sections = re.split(r"^(?=(?:Args|Attributes|Raises):$)", inspect.getdoc(of) or "", flags=re.MULTILINE)
    lines = [escaped(head.strip()), ""]
    for section in sections:
        title, _, body = section.partition(":\n")
        parts = re.findall(r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", body, re.DOTALL | re.MULTILINE)
        rows = [(code(name), escaped(" ".join(text.split()))) for name, text in parts]
        lines += table(({"Args": "argument", "Attributes": "attribute", "Raises": "error"}[title], "meaning"), rows)
    return lines


MAKERS = {"fields": fields, "recipes": rows_page, "commands": commands, "python": python}


def main() -> int:
    """Write all pages."""
    for name, make in MAKERS.items():
        (PAGES / f"{name}.md").write_text(make().rstrip() + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
