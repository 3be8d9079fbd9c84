"""CLIP-KD: features, contrast with the teacher, and similarities together (Yang et al., CVPR 2024).

    L = L_clip + kd + 2000 mse + icl
    kd    their CRD: in-batch similarities both ways at temperature 1                          (methods/kd.py)
    mse   |n(h_v(x_v)) - v^T|^2 / E + the same for captions, n to unit length
    icl   1/2 [CE(s n(h_v(x_v)) . t^T, i) + CE(s n(h_t(x_t)) . v^T, i)], s learned      (losses/embeddings.py)

h_v, h_t: linear from the student's joint space into the teacher's where their widths differ; x: the towers' projections
before they are made unit vectors (methods/lifts.py). Of several teachers h leads into the space of all, and each term
is the mean over them, in the part of it that is each one's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cmapkd_core.config import Phase, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.embeddings import squared_error
from cmapkd_core.losses.streamed import info_nce, interactive
from cmapkd_core.methods.base import Method, Outcome, Rows, mean_over, require, require_teacher, similar
from cmapkd_core.methods.global_batch import Pair
from cmapkd_core.methods.lifts import Lifts, add_raw
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.frozen_teacher import Embeddings, Teacher


class ClipKd(Method):
    """The student, its projections into the teacher's space, and the scale of the contrast there."""

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__(recipe, student, teacher)
        teacher = require_teacher(teacher)
        self.lifts = Lifts(student, teacher, recipe.method.one_map)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """The student, and what only its losses need."""
        return super().groups(phase) | {"extra": [*self.lifts.parameters(), self.log_scale]}

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """The embeddings, and before they are made unit vectors."""
        vision, text = self.towers(batch)
        return add_raw(Rows.of(batch, require(targets, Embeddings), vision, text), vision, text)

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """Terms `task`, `kd`, `mse` and `icl`."""
        image, caption, *teacher = rows.gathered()
        logits, of = self.logits(image, caption), rows.targets(Embeddings)
        lifted = self.lifts(rows, image, caption)
        terms = {
            "task": info_nce(logits),
            "kd": self.kd_of_each(logits, (image, caption), (teacher[0], teacher[1]), of),
        }
        in_each = zip(*(of.each(x) for x in (*lifted, *teacher)), strict=True)
        there = [self.in_teacher_space((image, text), (image_t, text_t)) for image, text, image_t, text_t in in_each]
        terms |= {name: mean_over([one[name] for one in there]) for name in there[0]}
        return Outcome(terms, roots=rows.roots)

    def in_teacher_space(self, student: Pair, teacher: Pair) -> dict[str, Tensor]:
        """The terms of lifted embeddings [B,E'] of images and captions, and those of one teacher, all gathered."""
        scale, crossed = self.log_scale.exp(), zip(student, teacher[::-1], strict=True)
        return {
            "mse": squared_error(student[0], teacher[0]) + squared_error(student[1], teacher[1]),
            "icl": interactive(*(similar(rows, columns, scale) for rows, columns in crossed)),
        }
