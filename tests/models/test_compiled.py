"""Compiled blocks: the same numbers and names, taps and repeated gradients as without."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from cmapkd_core.catalog import load
from cmapkd_core.config import ModelConfig
from cmapkd_core.data.loader import Batch
from cmapkd_core.engine.passes import weighted_total
from cmapkd_core.errors import InputError
from cmapkd_core.method_specs import METHODS
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.build import build
from cmapkd_core.models.compiled import compiled_blocks, require_compiler
from cmapkd_core.models.frozen_teacher import Teacher, diagonal_prior
from cmapkd_core.recipes import resolve

# Traces and differentiates as the default compiler, and runs the graph as it is: no C++ compiler, seconds less.
TRACED = partial(torch.compile, backend="aot_eager")
GRAPHS = [pytest.param(TRACED, id="traced"), pytest.param(torch.compile, id="inductor", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _afresh(one_thread: None):
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    cache = tmp_path_factory.mktemp("models")
    return [build(ModelConfig(name, "random"), 0, cache) for name in ("tiny-teacher", "tiny-student")]


@pytest.fixture
def step(pair):
    """`step()`: the paper's terms and gradients of a joint step that measures utilities, and what it measured."""
    recipe = resolve("tiny", overrides="optim.batch=4")
    torch.manual_seed(0)
    teacher = Teacher(pair[0], LevelTower(pair[0].spec, 4, 16), diagonal_prior())
    student = copy.deepcopy(pair[1])
    method = load("method", "cmapkd", METHODS)(recipe, student, teacher).train()
    method.selector.eval()  # which drops features by chance
    images = {n: torch.randn(4, 3, s, s) for n, s in (("teacher", 48), ("student", 32))}
    tokens = pair[1].tokenize(["a red circle", "two", "a blue square on a green cross", ""])
    batch = Batch(list("abcd"), torch.arange(4), images, {"teacher": tokens, "student": tokens}, [])

    def take():
        method.zero_grad()
        targets = teacher.targets(images["teacher"], tokens, method.active(recipe.schedule.fine))
        terms = method(batch, targets, recipe.schedule.fine, 0).terms
        weighted_total(terms, recipe.method.weights.within(recipe.schedule.fine)).backward()
        gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        return terms, gradients, method.memory.u.clone(), list(method.state_dict())

    return take, (student, teacher.backbone)


@pytest.mark.parametrize("compiler", GRAPHS)
def test_a_step_is_the_same_but_for_rounding(step, compiler):
    take, models = step
    terms, gradients, measured, names = take()
    with compiled_blocks(list(models), compiler):
        assert all("forward" in vars(block) for model in models for block in model.blocks())
        take()
        found, pulled, again, kept = take()
    assert kept == names
    assert not [name for name in kept if "_orig_mod" in name]
    assert pulled.keys() == gradients.keys()
    for one, other in ((found, terms), (pulled, gradients)):
        for name in other:
            assert torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-5), name
    assert measured.abs().sum() > 0
    assert torch.allclose(again, measured, atol=1e-4)


def test_afterwards_a_model_is_as_it_was(pair):
    images = torch.randn(2, 3, 32, 32)
    student = pair[1]
    before = student.vision(images)
    with pytest.raises(ZeroDivisionError), compiled_blocks([student], TRACED):
        1 / 0  # noqa: B018
    assert not [block for block in student.blocks() if "forward" in vars(block)]
    copy.deepcopy(student)
    after = student.vision(images)
    assert torch.equal(before.embedding, after.embedding)
    assert all(torch.equal(a, b) for a, b in zip(before.taps, after.taps, strict=True))


def test_blocks_of_one_kind_are_compiled_once(pair):
    """Else a tower of more than eight would run the others as they are, without a word."""
    seen = []

    def count(graph, inputs):
        seen.append(graph)
        return graph

    images = torch.randn(2, 3, 32, 32)
    with compiled_blocks([pair[1]], partial(torch.compile, backend=count)), torch.no_grad():
        pair[1].eval().vision(images)
    assert len(pair[1].blocks()) == 8
    assert len(seen) == 1


def test_without_a_compiler_it_is_refused_before_a_step(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(InputError, match=r"runtime\.compile=true needs a C\+\+ compiler .*: install g\+\+, or leave"):
        require_compiler(torch.device("cpu"))
