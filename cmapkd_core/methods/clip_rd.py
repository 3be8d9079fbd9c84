"""CLIP-RD: relations between the two models, down each modality and across them (Chung et al. 2026, arXiv 2603.25383).

    L = L_clip + kd + 2000 mse + icl + vrd + vrd_contrast + xrd
    kd, mse, icl   as CLIP-KD has them; their HRD is kd                                     (methods/clip_kd.py)
    vrd            KL(R_t || R_v) over rows and columns, R_t without a gradient: images follow captions
    vrd_contrast   InfoNCE(R_v) + InfoNCE(R_t): what makes R_v and R_t say something
    xrd            1/2 [KL(X_t || X_v) + KL(X_v || X_t)] over rows and columns, the target without a gradient

Vertical: R_v = s_v V^T V^S', R_t = s_t T^T T^S', the teacher's images against the student's, captions against captions.
Crossed: X_v = s V^T T^S', X_t = s T^T V^S', the teacher's images against the student's captions, and vice versa.
V^S, T^S are the student's embeddings in the teacher's space (methods/lifts.py); s_v, s_t and s, which icl has too, are
learned. The KL over rows and columns is half of each (losses/similarity.py, at temperature 1).

Of the paper the abstract could be read here; the terms are those of the code at github.com/Rosieyang01/CLIP-RD, with
the weights of its training script. They fit the abstract: vrd asks both modalities for one distribution of similarities
between teacher and student, xrd asks for symmetric ones across modalities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cmapkd_core.config import Phase, Recipe
from cmapkd_core.losses.streamed import info_nce, relative_entropy
from cmapkd_core.methods.base import similar
from cmapkd_core.methods.clip_kd import ClipKd
from cmapkd_core.methods.global_batch import Pair
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.frozen_teacher import Teacher


class Scale(nn.Module):
    """A learned scale of similarities, an exponent; kept in bounds by its name, as all `log_scale` are."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> Tensor:
        """A scalar."""
        return self.log_scale.exp()


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
        images, captions = (
            similar(rows, columns, scale())
            for rows, columns, scale in zip(teacher, student, self.vertical, strict=True)
        )
        scale, crossed = self.log_scale.exp(), zip(teacher, student[::-1], strict=True)
        to_captions, to_images = (similar(rows, columns, scale) for rows, columns in crossed)
        both = relative_entropy(to_images, to_captions, 1.0) + relative_entropy(to_captions, to_images, 1.0)
        return super().in_teacher_space(student, teacher) | {
            "vrd": relative_entropy(captions, images, 1.0),
            "vrd_contrast": info_nce(images) + info_nce(captions),
            "xrd": 0.5 * both,
        }
