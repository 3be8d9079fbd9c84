"""PromptKD in its retrieval form (Li et al., CVPR 2024).

    L = w tau^2 / (B C) sum_k KL(softmax(s_T v^T_k W^T / tau) || softmax(s_S q_k W^T / tau)),   w = 1000
    q = g(v^S) / |g(v^S)|,   g = Linear-BN-ReLU-Linear,   W: teacher's text embeddings of C captions

The student's image tower and g learn to answer in the teacher's space; no label and no student text tower is
needed, in training or at inference. So the exported model is the student's image tower with g, and the *teacher's*
text tower: its parameters are what a query costs, and the evaluation counts them. s_S is the student's own scale,
frozen as released.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd_core.config import Phase, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.embeddings import class_divergence
from cmapkd_core.methods.base import Method, Outcome, Rows, gathered, require, require_teacher
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.compose import with_text_of
from cmapkd_core.models.frozen_teacher import Embeddings, Teacher
from cmapkd_core.models.headed import ImageHead


class InTeacherSpace(Method):
    """The student's image tower and the projector g: what both forms of PromptKD train and export."""

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__(recipe, student, teacher)
        self.projector = ImageHead(student.spec.embed_dim, require_teacher(teacher).backbone.spec.embed_dim)

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """The image tower, and g; the scale stays as the student's weights have it."""
        image = {id(p) for p in self.student.model.visual.parameters()}
        student = [p for p in super().groups(phase)["student"] if id(p) in image]
        return {"student": student, "extra": list(self.projector.parameters())}

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """The images' embeddings alone; of the teacher both."""
        teacher = require(targets, Embeddings)
        with self.autocast():
            vision = self.student.vision(batch.images["student"])
        teacher_rows = {"image": teacher.image, "text": teacher.text}
        return Rows({"image": vision.embedding}, teacher_rows, [vision.root], [(batch, teacher)])

    def divergence(self, image: Tensor, image_t: Tensor, scale_t: Tensor, classes: Tensor) -> Tensor:
        """The loss without w for gathered embeddings [B,E], [B,E'] over classes [C,E'].

        After the gather: the batch norm sees the global batch, whatever the number of ranks.
        """
        answer = F.normalize(self.projector(image), dim=-1)
        teacher, student = scale_t * image_t @ classes.T, self.student.scale() * answer @ classes.T
        return class_divergence(teacher, student, self.recipe.method.kd_tau)

    def exported(self, teacher: Teacher | None) -> Backbone:
        """The image tower with g, and the teacher's text tower."""
        return with_text_of(self.student, self.projector, require_teacher(teacher).backbone)


class PromptKd(InTeacherSpace):
    """The student's image tower, the projector g, and the bank of captions."""

    bank: Tensor
    filled: Tensor

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__(recipe, student, teacher)
        # Buffers, so that a resumed run meets the same classes.
        self.register_buffer("bank", torch.zeros(recipe.method.bank, require_teacher(teacher).backbone.spec.embed_dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self._held: int | None = 0  # `filled`, known here so that no step waits for the device to say it

    def _load_from_state_dict(self, *given: Any, **more: Any) -> None:
        super()._load_from_state_dict(*given, **more)
        self.recount()

    def recount(self) -> None:
        """The buffers are others."""
        self._held = None

    def held(self) -> int:
        """Captions in the bank."""
        if self._held is None:
            self._held = int(self.filled)
        return self._held

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """Term `prompt`."""
        image, image_t, caption_t = gathered(rows.student["image"], rows.teacher["image"], rows.teacher["text"])
        classes = torch.cat([caption_t, self.bank[: self.held()]])
        if self.training:
            self._keep(caption_t)
        term = self.divergence(image, image_t, rows.targets(Embeddings).scale, classes)
        return Outcome({"prompt": term}, roots=rows.roots)

    def _keep(self, captions: Tensor) -> None:
        """Captions [B,E'] into the bank; first in, first out."""
        size = len(self.bank)
        self.bank.copy_(torch.cat([captions, self.bank])[:size])
        self._held = min(size, self.held() + len(captions))
        self.filled.fill_(self._held)
