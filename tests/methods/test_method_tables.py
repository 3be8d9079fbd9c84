"""The table of classes and the table of what they read agree; so do recipes and both."""

import pytest

from cmapkd_core.config import STAGE_PHASES, Rates, Schedule, TermWeights
from cmapkd_core.fields import flatten
from cmapkd_core.method_specs import METHODS as SPECS
from cmapkd_core.methods import METHODS
from cmapkd_core.recipes import RECIPES, ROWS, resolve


def test_both_tables_have_the_same_methods():
    assert set(METHODS) == set(SPECS)


@pytest.mark.parametrize("name", list(SPECS))
def test_a_spec_names_what_there_is(name):
    spec = SPECS[name]
    assert set(spec.terms) <= set(vars(TermWeights()))
    assert set(spec.groups) <= set(vars(Rates()))
    leaves = flatten(RECIPES["tiny"])
    for field in spec.reads:
        assert any(leaf == field or leaf.startswith(field + ".") for leaf in leaves), field


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_gives_its_equation_and_what_deviates(name):
    import sys

    text = sys.modules[METHODS[name].__module__].__doc__
    assert "deviations" in text
    assert "L = " in text


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize("row", list(ROWS))
def test_every_recipe_resolves_with_every_row(recipe, row):
    assert resolve(recipe, row).method.name in METHODS


def test_every_phase_belongs_to_one_stage():
    phases = [name for names in STAGE_PHASES.values() for name in names]
    assert sorted(phases) == sorted(vars(Schedule()))


def test_both_tables_have_the_same_selectors():
    from cmapkd_core.config import LEARNED_SELECTORS
    from cmapkd_core.config import SELECTORS as NAMES
    from cmapkd_core.models.selector import SELECTORS

    assert set(SELECTORS) == set(NAMES)
    assert {name for name, selector in SELECTORS.items() if selector.learns} == set(LEARNED_SELECTORS)
