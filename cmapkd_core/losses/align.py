"""Cross-modal alignment distillation (paper 4.4.2; docs/decisions/0005).

Shapes: B global batch, K vision and J text levels; rows of similarities are images.
"""

from __future__ import annotations

from torch import Tensor

from cmapkd_core.losses.streamed import Similarities, info_nce, relative_entropy


def single(student_images: Similarities, student_texts: Similarities) -> Tensor:
    """L_single = 1/2 [InfoNCE(student P5 . teacher L4) + InfoNCE(teacher P5 . student L4)].

    Args:
        student_images: the student's coarsest image level against the teacher's coarsest text level.
        student_texts: the teacher's coarsest image level against the student's coarsest text level.
    """
    return 0.5 * (info_nce(student_images) + info_nce(student_texts))


def pyramid(student: Similarities, teacher: Similarities, alpha: Tensor, tau: float) -> Tensor:
    """L_pyramid = sum_ij alpha_ij tau^2 KL(teacher || student) over the rows and columns of sim_ij.

    Args:
        student, teacher: of all K x J pairs of levels.
        alpha: compatibility of the active levels, [K,J]; renormalised to sum 1.
    """
    return relative_entropy(teacher, student, tau, alpha / alpha.sum())


def align(single_term: Tensor, pyramid_term: Tensor, beta: float) -> Tensor:
    """L_align = L_single + beta L_pyramid."""
    return single_term + beta * pyramid_term
