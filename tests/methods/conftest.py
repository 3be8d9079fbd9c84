"""Tiny models and one batch of pairs, without a data set."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from cmapkd_core.catalog import load
from cmapkd_core.config import ModelConfig, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.build import build
from cmapkd_core.models.frozen_teacher import Targets, Teacher, diagonal_prior
from cmapkd_core.models.selector import selectors_of
from cmapkd_core.recipes import resolve

CAPTIONS = ["a red circle", "two blue squares", "green", "a small yellow cross over a large black triangle", "sky"]


@pytest.fixture(autouse=True)
def _repeatable(one_thread: None) -> None:
    """Numbers that can be compared."""


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """Never changed: tests get copies."""
    cache = tmp_path_factory.mktemp("models")
    made = {}
    for seed, name in enumerate(("tiny-teacher", "tiny-student")):
        torch.manual_seed(0)
        made[name] = build(ModelConfig(name, "random"), seed, cache)
        with torch.no_grad():  # random towers tell pairs hardly apart: spread them, so that terms are no noise
            for p in made[name].parameters():
                if p.dim() > 1:
                    p.mul_(3)
    return made


@pytest.fixture
def tiny_models(backbones: dict[str, Backbone]) -> Callable[[str], Backbone]:
    return lambda name: copy.deepcopy(backbones[name])


@pytest.fixture
def make_teacher(tiny_models: Callable[[str], Backbone]) -> Callable[..., Teacher]:
    """A frozen teacher with random levels for a student's grid."""

    def make(grid: int = 4, width: int = 16) -> Teacher:
        backbone = tiny_models("tiny-teacher")
        torch.manual_seed(7)
        teacher = Teacher(backbone, LevelTower(backbone.spec, grid, width), diagonal_prior())
        classes = torch.randn(7, backbone.spec.embed_dim, generator=torch.Generator().manual_seed(9))
        teacher.classes = torch.nn.functional.normalize(classes, dim=-1)
        return teacher

    return make


@pytest.fixture
def make_method(
    tiny_models: Callable[[str], Backbone], batch: Callable[..., Batch]
) -> Callable[[Recipe, Teacher], Method]:
    """The recipe's method around a fresh tiny student; a selector that weighs by validation pairs has some."""

    def make(recipe: Recipe, teacher: Teacher) -> Method:
        torch.manual_seed(3)
        known = teacher if METHODS[recipe.method.name].teacher else None
        method: Method = load("method", recipe.method.name, METHODS)(recipe, tiny_models("tiny-student"), known)
        if method.lacks():
            method.keep(*(units(7, teacher.width, seed=seed) for seed in (21, 22)))
        for selector in selectors_of(method):
            selector.pairs = lambda step: batch()
        return method

    return make


def units(rows: int, width: int, seed: int) -> torch.Tensor:
    """Random unit vectors [rows,width]."""
    return torch.nn.functional.normalize(
        torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


@pytest.fixture
def twins(make_teacher: Callable[..., Teacher]) -> Callable[[Recipe], tuple[Method, Teacher]]:
    """A student that is the teacher: same towers, same fitted levels."""

    def make(recipe: Recipe) -> tuple[Method, Teacher]:
        teacher = make_teacher(grid=6, width=recipe.pyramid.width)
        method = load("method", recipe.method.name, METHODS)(recipe, copy.deepcopy(teacher.backbone), teacher)
        if hasattr(method, "levels"):
            method.levels.load_state_dict(teacher.levels.state_dict())
        return method.requires_grad_(True), teacher

    return make


def _images(size: int, pairs: int) -> torch.Tensor:
    """Low-frequency pictures: the same ones at every size."""
    coarse = torch.randn(pairs, 3, 4, 4, generator=torch.Generator().manual_seed(11))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


@pytest.fixture
def batch(backbones: dict[str, Backbone]) -> Callable[..., Batch]:
    """Five pairs; `student` names the model whose sizes the student's side has."""

    def make(student: str = "tiny-student") -> Batch:
        models = {"student": backbones[student], "teacher": backbones["tiny-teacher"]}
        return Batch(
            keys=[f"k{i}" for i in range(len(CAPTIONS))],
            index=torch.arange(len(CAPTIONS)),
            images={side: _images(m.spec.image_size, len(CAPTIONS)) for side, m in models.items()},
            tokens={side: m.tokenize(CAPTIONS) for side, m in models.items()},
            replaced=[],
        )

    return make


@pytest.fixture
def ask() -> Callable[..., Targets]:
    """The teacher targets of a batch at a method's levels of a phase."""

    def targets(teacher: Teacher, batch: Batch, levels: tuple[str, ...]) -> Targets:
        return teacher.targets(batch.images["teacher"], batch.tokens["teacher"], levels)

    return targets


@pytest.fixture
def terms_of_row(
    make_method: Callable[..., Method], make_teacher: Callable[..., Teacher], batch: Callable[..., Batch]
) -> Callable[..., tuple[Method, Targets, Batch, dict[str, torch.Tensor]]]:
    """`terms_of_row(row, phase)`: the method of a row in training mode, its targets and its pairs, and its terms."""

    def run(row: str, phase: str = "fine") -> tuple[Method, Targets, Batch, dict[str, torch.Tensor]]:
        recipe, teacher, pairs = resolve("tiny", row, "optim.batch=5"), make_teacher(), batch()
        method = make_method(recipe, teacher).train()
        targets = teacher.targets(pairs.images["teacher"], pairs.tokens["teacher"], ())
        return method, targets, pairs, method(pairs, targets, getattr(recipe.schedule, phase), 0).terms

    return run
