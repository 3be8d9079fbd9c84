"""Every row of the tables is complete: its code is where it says, recipes and rows fit each other."""

import ast
import dataclasses
from pathlib import Path

import pytest

from cmapkd_core import catalog
from cmapkd_core.catalog import TableEntry, load
from cmapkd_core.config import STAGE_PHASES, Phase, Rates, Schedule, TermWeights
from cmapkd_core.errors import InputError
from cmapkd_core.fields import flatten
from cmapkd_core.method_specs import METHODS, document
from cmapkd_core.methods.base import Method
from cmapkd_core.recipes import (
    BASELINES,
    CHANGES,
    RECIPES,
    ROWS,
    as_published,
    resolve,
)
from cmapkd_core.stages.method_io import require_grouped

REPOSITORY = Path(__file__).parents[2]
TABLES = {
    name: table
    for name, table in {**vars(catalog), "METHODS": METHODS}.items()
    if isinstance(table, dict)
    and not name.startswith("_")
    and all(isinstance(row, TableEntry) for row in table.values())
}
CODE = [(table, row) for table in TABLES for row in TABLES[table]]


def test_the_tables_are_there():
    assert {"METHODS", "SELECTORS", "OBJECTIVES", "SOURCES", "EVALUATIONS", "LEAKAGE_CHECKS"} <= set(TABLES)


@pytest.mark.parametrize(("table", "row"), CODE)
def test_a_rows_code_is_where_it_says(table, row):
    assert callable(load(table, row, TABLES[table]))


def test_no_two_rows_are_one_piece_of_code():
    codes = [TABLES[table][row].code for table, row in CODE]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("cmapkd_core.methods.toy:Toy", "there is no cmapkd_core/methods/toy.py: write it, with Toy in it"),
        ("cmapkd_core.methods.kd:Toy", "/cmapkd_core/methods/kd.py has no Toy: write it there, or correct the row"),
    ],
)
def test_code_that_is_not_there_is_said_with_its_place(code, told):
    with pytest.raises(InputError) as raised:
        load("method", "toy", {"toy": TableEntry(code)})
    assert str(raised.value).startswith(f"method 'toy' is {code} by its row, and ")
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("table", "row", "code", "told"),
    [
        (METHODS, "kd", "cmapkd_core.methods.toy:Toy", "method 'kd' is .* there is no cmapkd_core/methods/toy.py"),
        (catalog.SELECTORS, "alsn", "cmapkd_core.models.toy:Toy", "selector 'alsn' is .* cmapkd_core/models/toy.py"),
        (catalog.SOURCES, "folder", "cmapkd_core.toys.toy:toy", "data source 'folder' .* cmapkd_core/toys/toy.py"),
        (catalog.EVALUATIONS, "vqa", "cmapkd_core.evaluate.toy:toy", "task 'vqa' .* cmapkd_core/evaluate/toy.py"),
        (catalog.LEAKAGE_CHECKS, "ids", "cmapkd_core.data.toy:toy", "leakage check 'ids' .* cmapkd_core/data/toy.py"),
    ],
)
def test_a_recipe_that_names_code_without_a_file_is_refused_before_anything_runs(monkeypatch, table, row, code, told):
    """It was found by the stage that loads it, after those before it."""
    asked = "method.name=kd data.source=folder evaluate.sets=vqa schedule.coarse.epochs=0"
    resolve("tiny", overrides=asked)
    monkeypatch.setitem(table, row, dataclasses.replace(table[row], code=code))
    with pytest.raises(InputError, match=f"{told}: write it, with {code.partition(':')[2]} in it"):
        resolve("tiny", overrides=asked)


def test_a_library_that_a_rows_code_lacks_is_not_taken_for_the_code(tmp_path, monkeypatch):
    (tmp_path / "toy_with_a_library.py").write_text("import there_is_no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_library"):
        load("method", "toy", {"toy": TableEntry("toy_with_a_library:Toy")})


@pytest.mark.parametrize("name", list(METHODS))
def test_a_methods_row_names_what_there_is(name):
    spec = METHODS[name]
    assert issubclass(load("method", name, METHODS), Method)
    assert spec.terms
    assert "student" in spec.groups
    assert set(spec.groups) <= set(vars(Rates()))
    assert spec.row in ROWS if spec.row else name in ROWS
    leaves = flatten(RECIPES["tiny"])
    for field in spec.reads:
        assert any(leaf == field or leaf.startswith(field + ".") for leaf in leaves), field


def test_a_recipes_weights_are_those_of_all_rows():
    assert set(TermWeights.defaults()) == {term for spec in METHODS.values() for term in spec.terms}
    published = {name: weight for name, weight in vars(TermWeights()).items() if weight}
    assert published == {"intra": 1.0, "align": 0.5, "relation": 0.3, "task": 0.1, "policy": 1.0}


def test_a_baseline_is_its_methods_row():
    assert BASELINES["finetune"] == as_published("contrastive")
    assert BASELINES["clip_kd"]["method.weights.mse"] == METHODS["clip_kd"].terms["mse"] == 2000.0
    assert BASELINES["fitnet_joint"].keys() < BASELINES["fitnet"].keys()


def test_the_document_of_deviations_quotes_the_rows():
    kept = (REPOSITORY / "docs" / "deviations.md").read_text()
    assert kept == document(), "python -m cmapkd_core.method_specs > docs/deviations.md"
    for name, spec in METHODS.items():
        line = next(line for line in kept.splitlines() if line.startswith(f"| {name} |"))
        assert line.endswith(f"| {spec.deviations} |")


def test_no_row_hides_another():
    assert len(ROWS) == 1 + len(BASELINES) + sum(map(len, CHANGES.values()))


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_gives_its_equation_and_leaves_what_deviates_to_its_row(name):
    import sys

    text = sys.modules[load("method", name, METHODS).__module__].__doc__
    assert "L = " in text
    assert "deviations" not in text


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize("row", list(ROWS))
def test_every_recipe_resolves_with_every_row(recipe, row):
    assert resolve(recipe, row).method.name in METHODS


def test_every_phase_belongs_to_one_stage():
    phases = [name for names in STAGE_PHASES.values() for name in names]
    assert sorted(phases) == sorted(name for name, part in vars(Schedule()).items() if isinstance(part, Phase))


def test_a_table_stands_once():
    """Twins were kept equal by a test, and adding a thing found them one error at a time."""
    names = {*TABLES, "STORES", "Request", "BASELINES", "ABLATIONS"}
    found: dict[str, list[str]] = {name: [] for name in names}
    for path in (path for folder in ("cmapkd_core", "cmapkd") for path in (REPOSITORY / folder).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            made = {target.id for target in targets if isinstance(target, ast.Name)}
            for name in names & (made | {getattr(node, "name", "")}):
                found[name].append(str(path))
    assert {name: len(places) for name, places in found.items()} == dict.fromkeys(names, 1), found


def test_a_selector_that_has_nothing_to_choose_is_in_no_group(make_method, make_teacher):
    one_level = (
        "pyramid.vision_levels=P5 pyramid.text_levels=L4 schedule.coarse.levels=P5,L4 schedule.fine.levels=P5,L4"
    )
    method = make_method(resolve("tiny", overrides=one_level), make_teacher())
    assert method.policy_fit() is None
    assert list(method.selector.parameters())
    require_grouped(method, "cmapkd")
    method.selector.requires_grad_(True)
    with pytest.raises(InputError, match=r"^method 'cmapkd' has parameters in self.selector, and its groups\(\)"):
        require_grouped(method, "cmapkd")
