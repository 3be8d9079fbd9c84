"""The pair of models that is measured, with random weights, and batches of noise."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.gpu_parts.machine import Machine
from benchmarks.methods import random_batch
from cmapkd_core.catalog import load
from cmapkd_core.config import ModelConfig, Phase, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.engine.optim import choose_teacher_precision
from cmapkd_core.engine.runtime import seed_everything
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.build import build
from cmapkd_core.models.frozen_teacher import Embeddings, Teacher, diagonal_prior
from cmapkd_core.recipes import resolve

PAIRS = {False: ("ViT-L-14", "ViT-B-16"), True: ("tiny-teacher", "tiny-student")}  # teacher, student


@dataclass
class Pair:
    """Teacher and student on the device. precision: a word of optim.precision, of both."""

    machine: Machine
    precision: str

    def recipe(self, row: str, batch: int, more: str = "") -> Recipe:
        """The paper's, or the tiny one, for this batch."""
        settings = f"optim.batch={batch} optim.precision={self.precision} runtime.checkpoint_every=0 {more}"
        return resolve("tiny" if self.machine.tiny else "paper", row, f"{settings} runtime.checkpoint_minutes=60")

    @cached_property
    def teacher(self) -> Teacher:
        """Frozen; its pyramid is as random as its towers."""
        backbone = self._build(0)
        base = self.recipe("none", 16)
        levels = LevelTower(backbone.spec, self._build(1).spec.vision_grids[2], base.pyramid.width)
        made = Teacher(backbone, levels, diagonal_prior()).to(self.machine.device)
        made.amp = choose_teacher_precision(base.optim, self.machine.device)
        return made

    def method(self, recipe: Recipe) -> Method:
        """The row's method around a fresh student, on the device."""
        seed_everything(recipe.seed, rank=0)
        teacher = self.teacher if METHODS[recipe.method.name].teacher else None
        made: Method = load("method", recipe.method.name, METHODS)(recipe, self._build(1), teacher)
        return made.to(self.machine.device).train()

    def place_towers(self, used: bool) -> None:
        """The teacher's towers come to the device where they are used, and leave its memory to others where not."""
        if used or "teacher" in vars(self):
            self.teacher.backbone.to(self.machine.device if used else "cpu")

    def batch(self, size: int, whole: bool = False) -> Batch:
        """Noise and captions of four to eleven words, on the device; `whole`: of the context's length, as others do.

        Else as the package's loader gives them, without what stands behind the longest.
        """
        student, teacher = self.built[1], self.built[0]
        made = random_batch(student, teacher, size)
        if not whole:
            sides = {"student": student, "teacher": teacher}
            made = dataclasses.replace(
                made, tokens={name: sides[name].trimming()(x) for name, x in made.tokens.items()}
            )
        return made.to(self.machine.device)

    def _build(self, side: int) -> Backbone:
        with tempfile.TemporaryDirectory() as folder:
            return build(ModelConfig(PAIRS[self.machine.tiny][side], "random"), side, Path(folder))

    @cached_property
    def built(self) -> tuple[Backbone, Backbone]:
        """Kept on the CPU for their tokenizers and sizes."""
        return self._build(0), self._build(1)

    def targets(self, live: bool, batch: Batch, levels: tuple[str, ...]) -> Embeddings:
        """The teacher's, from its towers or from what they gave before."""
        images, tokens = batch.images["teacher"], batch.tokens["teacher"]
        return (
            self.teacher.targets(images, tokens, levels) if live else self.teacher.cached_targets(batch.cached, levels)
        )

    def stored(self, batch: Batch, levels: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """What a store keeps of a batch, by name; levels in half precision."""
        image = self.teacher.image_outputs(batch.images["teacher"], levels)
        text = self.teacher.text_outputs(batch.tokens["teacher"], levels)
        return {name: x if name == "image" else x.half() for name, x in image.items()} | text


def phase_of(recipe: Recipe, name: str) -> Phase:
    """A phase by its name."""
    phase: Phase = getattr(recipe.schedule, name)
    return phase
