"""TinyCLIP: affinity mimicking, from inherited weights (Wu et al., ICCV 2023).

L = kd: cross entropy between the teacher's and the student's in-batch similarities, rows and columns, with no term of
the pairs themselves (losses/similarity.py, the KL: the same gradient). As released both scales are 50, whatever the
models came with: neither is learned, and the exported student has it.

Before the first step each tower whose widths all equal the teacher's gets layers of the teacher's tower, of N for n
every (N // n)-th from the first on (models/compose.py); the log says of each tower what it inherited. Between ViT-L/14
and ViT-B/16 no width is equal, so there this is affinity mimicking alone.
"""

from __future__ import annotations

import math

import torch

from cmapkd_core.config import Phase, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.methods.base import Method, Outcome, Rows, require, require_teacher
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.compose import inherit
from cmapkd_core.models.frozen_teacher import Embeddings, Teacher

SCALE = 50.0  # of both models' similarities, as released


class TinyClip(Method):
    """The student alone; the teacher's layers where they fit."""

    fixed = (*Method.fixed, "logit_scale")

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__(recipe, student, teacher)
        with torch.no_grad():
            student.model.logit_scale.fill_(math.log(SCALE))

    def begin(self, teacher: Teacher | None) -> list[str]:
        """Inherit weights; says of each tower what it got."""
        teacher = require_teacher(teacher)
        return [f"{tower} tower {message}" for tower, message in inherit(self.student, teacher.backbone).items()]

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """The embeddings."""
        return Rows.of(batch, require(targets, Embeddings), *self.towers(batch))

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """Term `kd`."""
        image, caption, image_t, caption_t = rows.gathered()
        kd = self.kd(self.logits(image, caption), (image, caption), (image_t, caption_t), SCALE)
        return Outcome({"kd": kd}, roots=rows.roots)
