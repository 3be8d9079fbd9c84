"""LLaVA-KD carried over to CLIP (Cai et al., ICCV 2025): three phases, and distillation on every patch.

    L = task + kd + patches + patch_relation
    kd              the response: in-batch similarities both ways                             (methods/kd.py)
    patches         mean over patches of KL(softmax(s_T y^T t^T) || softmax(s_S y^S t^S)) over the batch's captions
    patch_relation  1 - cos(vec R_S, vec R_T), R = Y Y^T the cosines between an image's patches   (losses/patches.py)

    phase coarse   DPT: all terms, and only the projections into the joint space and the logit scale train
    phase medium   SFT: the task alone, everything trains
    phase fine     DFT: all terms, everything trains

y is a position of the last map, pooled alone and projected into the joint space; the teacher's map is resized to the
student's. Nothing is trained beside the student.
"""

from __future__ import annotations

import torch
from torch import nn

from cmapkd_core.config import Phase, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.losses.patches import patch_relation, patch_responses
from cmapkd_core.losses.streamed import info_nce
from cmapkd_core.methods.base import Method, Outcome, Rows, require, require_teacher
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.frozen_teacher import Embeddings, Targets, Teacher
from cmapkd_core.models.pyramid import resize


class LlavaKd(Method):
    """The student, whose heads a phase may train alone."""

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__(recipe, student, teacher)
        teacher = require_teacher(teacher)
        self._frozen = (teacher.backbone,)  # in a tuple: the teacher is no part of this module's state

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """Heads apart from the towers where a phase gives them a rate of their own, else all as one."""
        everything = super().groups(phase)["student"]
        heads = {id(p) for p in self.student.heads()} if phase.lr.heads > 0 else set()
        parts = {"student": False, "heads": True}
        return {name: [p for p in everything if (id(p) in heads) is inside] for name, inside in parts.items()}

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """The embeddings, and `patches`: those of every position, [b,n,E]."""
        teacher = require(targets, Targets)
        vision, text = self.towers(batch)
        rows = Rows.of(batch, teacher, vision, text)
        student_map = self.student.final_map(vision.float())
        rows.student["patches"] = self.student.project_map(student_map)
        with torch.no_grad():
            (frozen,) = self._frozen
            teacher_map = resize(frozen.final_map(teacher.vision), student_map.shape[-1])
            rows.teacher["patches"] = frozen.project_map(teacher_map)
        return rows

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """Terms `task`, `kd`, `patches` and `patch_relation`; the last two of local images, over all captions."""
        image, caption, image_t, caption_t = rows.gathered()
        logits, scale_t = self.logits(image, caption), rows.targets(Targets).scale
        patches, patches_t = rows.student["patches"], rows.teacher["patches"]
        responses = self.student.scale() * patches @ caption.T, scale_t * patches_t @ caption_t.T
        terms = {
            "task": info_nce(logits),
            "kd": self.kd(logits, (image, caption), (image_t, caption_t), scale_t),
            "patches": patch_responses(*responses),
            "patch_relation": patch_relation(patches, patches_t),
        }
        return Outcome(terms, roots=rows.roots)
