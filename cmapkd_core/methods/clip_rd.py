"""CLIP-RD: relations between the two models, down each modality and across them (Chung et al. 2026, arXiv 2603.25383).

    L = L_clip + kd + 2000 mse + icl + vrd + vrd_contrast + xrd
    kd, mse, icl   as CLIP-KD has them; their HRD is kd                                     (methods/clip_kd.py)
    vrd, vrd_contrast, xrd   vertical and crossed relations                          (methods/relations.py)

The scale of the crossed ones is icl's, those of the vertical ones are their own.

Of the paper the abstract could be read here; the terms are those of the code at github.com/Rosieyang01/CLIP-RD, with
the weights of its training script. They fit the abstract: vrd asks both modalities for one distribution of similarities
between teacher and student, xrd asks for symmetric ones across modalities.
"""

from __future__ import annotations

from torch import Tensor, nn

from cmapkd_core.config import Phase, Recipe
from cmapkd_core.methods.clip_kd import ClipKd
from cmapkd_core.methods.global_batch import Pair
from cmapkd_core.methods.relations import Scale, relations
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.frozen_teacher import Teacher


class ClipRd(ClipKd):
    """CLIP-KD's parts, and a scale for the relations of each modality."""

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__(recipe, student, teacher)
        self.vertical = nn.ModuleList([Scale(), Scale()])  # of images, of captions

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """CLIP-KD's, and the scales."""
        groups = super().groups(phase)
        return groups | {"extra": [*groups["extra"], *self.vertical.parameters()]}

    def in_teacher_space(self, student: Pair, teacher: Pair) -> dict[str, Tensor]:
        """CLIP-KD's terms, and `vrd`, `vrd_contrast` and `xrd`."""
        images, captions = (scale() for scale in self.vertical)
        return super().in_teacher_space(student, teacher) | relations(
            student, teacher, (images, captions), self.log_scale.exp()
        )
