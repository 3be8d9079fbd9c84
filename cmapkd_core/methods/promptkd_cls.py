"""PromptKD as published, over class names (Li et al., CVPR 2024).

    L = w tau^2 / (B C) sum_k KL(softmax(s_T v^T_k W^T / tau) || softmax(s_S q_k W^T / tau)),   w = 1000
    q = g(v^S) / |g(v^S)|,   g = Linear-BN-ReLU-Linear
    W_c = the teacher's text feature of class c, the mean over the recipe's templates        (evaluate/zeroshot.py)

The data's classes are the ones; no picture's own class is read. W is computed once from the frozen teacher, and kept
beside the student (method.safetensors, `classes`): to choose among these classes, image tower, g and W are enough.
Captions and other classes need the *teacher's* text tower; the exported model has it, and the evaluation counts it.
s_S is the student's own scale, frozen as released.
"""

from __future__ import annotations

from torch import Tensor

from cmapkd_core.config import Phase, Recipe
from cmapkd_core.methods.base import Outcome, Rows, gathered, require_teacher
from cmapkd_core.methods.promptkd import InTeacherSpace
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.compose import SCALARS
from cmapkd_core.models.frozen_teacher import Embeddings, Teacher


class PromptKdCls(InTeacherSpace):
    """The student's image tower, the projector g, and the teacher's features of the classes."""

    classes: Tensor

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__(recipe, student, teacher)
        classes = require_teacher(teacher).classes
        assert len(classes) > 1, "method_specs.METHODS says that this method compares classes"
        self.register_buffer("classes", classes.clone())

    def begin(self, teacher: Teacher | None) -> list[str]:
        """Says what an answer costs, with the text tower and with the stored classes alone."""
        modules = (self.student.model.visual, self.projector)
        image = sum(p.numel() for module in modules for p in module.parameters())
        named = require_teacher(teacher).backbone.model.named_parameters()
        text = sum(p.numel() for name, p in named if not name.startswith("visual.") and name not in SCALARS)
        count, width = self.classes.shape
        return [
            f"inference takes {image / 1e6:.2f} M parameters of the image side and {text / 1e6:.2f} M of the teacher's "
            f"text tower; among the {count} stored classes {image / 1e6:.2f} M and {count} x {width} numbers"
        ]

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """Term `prompt`."""
        image, image_t = gathered(rows.student["image"], rows.teacher["image"])
        term = self.divergence(image, image_t, rows.targets(Embeddings).scale, self.classes)
        return Outcome({"prompt": term}, roots=rows.roots)
