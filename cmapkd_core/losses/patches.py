"""Terms on every patch of an image: LLaVA-KD's visual and relation distillation, carried over to CLIP.

Shapes: b local batch, n patches, B global batch of captions, E joint width (each side its own); all unit vectors.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cmapkd_core.losses.kendall import row_divergence


def patch_responses(student: Tensor, teacher: Tensor) -> Tensor:
    """L_vis: mean over patches of KL(teacher || student) over the batch's captions, [b,n,B] twice -> scalar.

    Args:
        student, teacher: scaled similarities of every patch with every caption.
    """
    return row_divergence(teacher, student).mean()


def patch_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """L_rel = 1 - cos(vec R_S, vec R_T), R = Y Y^T the cosines between an image's patches; mean over images.

    Args:
        student, teacher: patches [b,n,E] and [b,n,E'].
    """
    relation, teacher_relation = ((x @ x.transpose(1, 2)).flatten(1) for x in (student, teacher.detach()))
    return (1 - F.cosine_similarity(relation, teacher_relation, dim=1)).mean()
