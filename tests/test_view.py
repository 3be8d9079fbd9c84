"""A stage is given the fields of the recipe that it declared; reading another raises with the line to add."""

import copy
import dataclasses
import pickle
from operator import attrgetter

import pytest

from cmapkd_core.config import MethodConfig, OptimConfig, Phase, SelectorConfig, TermWeights
from cmapkd_core.errors import InputError
from cmapkd_core.fields import flatten
from cmapkd_core.fingerprints import ONCE, declared, reads
from cmapkd_core.method_specs import METHODS
from cmapkd_core.places import RECIPE_STUDENT, evaluation_fields, evaluation_reads, export_fields, export_reads
from cmapkd_core.recipes import ROWS, resolve
from cmapkd_core.view import Declared, UndeclaredReadError, view, with_part

SOME = Declared("toy", frozenset(("seed", "method.tau", "optim.batch")), 'add "{}" to TOY in toys.py')


@pytest.fixture(scope="module")
def seen():
    return view(resolve("tiny", overrides="method.kendall=0.9 method.tau=3 optim.batch=5 seed=7"), SOME)


def test_what_is_declared_reads_as_in_the_recipe(seen):
    assert (seen.seed, seen.method.tau, seen.optim.batch) == (7, 3.0, 5)
    assert seen.runtime == resolve("tiny").runtime
    assert seen.evaluate.batch == resolve("tiny").evaluate.batch


def test_reading_another_raises_with_the_line_to_add(seen):
    told = (
        "stage toy reads method.kendall, which it has not declared, so recipes that differ in it would share one "
        'artifact. Do not read it, or declare it: add "method.kendall" to TOY in toys.py'
    )
    with pytest.raises(UndeclaredReadError) as raised:
        _ = seen.method.kendall
    assert str(raised.value) == told
    with pytest.raises(UndeclaredReadError) as raised:
        _ = vars(seen.method)["kendall"]
    assert str(raised.value) == told
    with pytest.raises(UndeclaredReadError):
        getattr(seen.method, "kendall", 0.0)  # no default hides it
    for name in ("name", "data.size", "schedule.coarse.epochs", "evaluate.split", "teacher.weights"):
        with pytest.raises(UndeclaredReadError, match=f"reads {name},"):
            attrgetter(name)(seen)


@pytest.mark.parametrize(
    "read_all",
    [flatten, dataclasses.asdict, hash, lambda config: config == MethodConfig(), lambda config: config == config],
)
def test_what_reads_every_field_raises_too(seen, read_all):
    with pytest.raises(UndeclaredReadError):
        read_all(seen.method)


def test_a_part_that_is_declared_whole_is_the_part_itself():
    recipe = resolve("tiny")
    seen = view(recipe, Declared("toy", frozenset(n for n in flatten(recipe) if n.startswith("selector.")), "{}"))
    assert seen.selector is recipe.selector
    assert flatten(seen.selector) == flatten(recipe.selector)


def test_a_view_is_one_of_its_kind(seen):
    assert isinstance(seen.method, MethodConfig)
    assert vars(seen.method) == {"tau": 3.0, "weights": seen.method.weights}
    assert repr(seen.optim) == "OptimConfig(batch=5, ..)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.seed = 1


def test_a_view_is_copied_and_packed(seen):
    for again in (copy.deepcopy(seen), pickle.loads(pickle.dumps(seen))):
        assert again.method.tau == 3.0
        with pytest.raises(UndeclaredReadError, match=r"method\.kendall"):
            _ = again.method.kendall


def test_replacing_what_is_not_declared_gives_a_plain_part():
    names = {f"optim.{field.name}" for field in dataclasses.fields(OptimConfig)} - {"optim.batch", "optim.accumulate"}
    seen = view(resolve("tiny"), Declared("toy", frozenset(names), "{}"))
    made = dataclasses.replace(seen.optim, batch=3, accumulate=2)
    assert made == dataclasses.replace(resolve("tiny").optim, batch=3, accumulate=2)
    with pytest.raises(UndeclaredReadError, match=r"optim\.accumulate"):
        dataclasses.replace(seen.optim, batch=3)


def test_a_part_is_replaced_unread(seen):
    other = with_part(seen, "selector", SelectorConfig(kind="fixed"))
    assert (other.selector, other.seed) == (SelectorConfig(kind="fixed"), 7)
    with pytest.raises(UndeclaredReadError, match="reads name,"):
        _ = other.name
    plain = resolve("tiny")
    assert with_part(plain, "optim", OptimConfig()) == dataclasses.replace(plain, optim=OptimConfig())


def test_weights_within_a_phase_are_those_that_are_declared():
    seen = view(resolve("tiny", "kd"), declared(resolve("tiny", "kd"), "joint"))
    assert isinstance(seen.method.weights, TermWeights)
    assert seen.method.weights.within(Phase()) == {"task": 1.0, "kd": 1.0}


@pytest.mark.parametrize("row", list(ROWS))
def test_what_decides_a_place_is_what_may_be_read(row):
    recipe, usual = flatten(resolve("tiny", row)), flatten(resolve("paper")) | ONCE
    for stage in ("prepare", "teacher", "warmup", "alsn", "joint"):
        may, does = declared(resolve("tiny", row), stage).names, set(reads(resolve("tiny", row), stage))
        changed = {n for n in may - does if recipe[n] != usual[n]}
        assert does <= may
        assert changed == set(), "left out of the place though it is not what there was before the field"


@pytest.mark.parametrize("model", ["s3://root/joint/0", RECIPE_STUDENT, "ViT-B-32"])
def test_an_evaluations_and_an_exports_place_follow_from_what_they_may_read(model):
    recipe = resolve(
        "tiny",
        overrides="seed=3 data.leakage=ids evaluate.leakage_action=allow evaluate.answers=group evaluate.strata=true "
        "student.lift=64",
    )
    leaves = flatten(recipe)
    for task in ("retrieval", "zeroshot", "vqa", "captioning", "efficiency"):
        fields = evaluation_fields("s3://root", model, "s3://root/prepare/0", recipe, task)
        assert set(fields) & set(leaves) - {"evaluate.tasks"} == evaluation_reads(model, recipe, task).names
    assert set(export_fields("s3://root", model, "", recipe)) & set(leaves) == export_reads(model).names


def test_weights_of_terms_are_as_a_frozen_dataclass():
    made = TermWeights(task=2.0)
    assert made == TermWeights(task=2.0) != TermWeights()
    assert hash(made) == hash(TermWeights(task=2.0))
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.task = 3.0
    with pytest.raises(AttributeError):
        _ = made.tusk
    with pytest.raises(InputError, match="unknown field 'tusk': did you mean 'task'"):
        TermWeights(tusk=1.0)


def test_a_term_that_is_new_in_the_table_is_a_weight_of_every_recipe(monkeypatch):
    before = resolve("tiny")
    spec = METHODS["kd"]
    monkeypatch.setitem(METHODS, "kd", dataclasses.replace(spec, terms={**spec.terms, "toy": 3.0}))
    assert flatten(before)["method.weights.toy"] == 0.0
    assert resolve("tiny", overrides="method.weights.toy=2").method.weights.toy == 2.0
    assert "method.weights.toy" in declared(resolve("tiny", "kd"), "joint").names
