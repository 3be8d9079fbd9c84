"""Relations between student and teacher, down each modality and across them: those of CLIP-RD (methods/clip_rd.py).

    vrd            KL(R_t || R_v) over rows and columns, R_t without a gradient: images follow captions
    vrd_contrast   InfoNCE(R_v) + InfoNCE(R_t): what makes R_v and R_t say something
    xrd            1/2 [KL(X_t || X_v) + KL(X_v || X_t)] over rows and columns, the target without a gradient

Vertical: R_v = s_v V^T V^S', R_t = s_t T^T T^S', the teacher's images against the student's, captions against captions.
Crossed: X_v = s V^T T^S', X_t = s T^T V^S', the teacher's images against the student's captions, and vice versa.
V^S, T^S are the student's embeddings in the teacher's space (methods/lifts.py); s_v, s_t and s are learned. The KL over
rows and columns is half of each (losses/similarity.py, at temperature 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cmapkd_core.losses.streamed import info_nce, relative_entropy
from cmapkd_core.methods.base import mean_over, similar
from cmapkd_core.methods.global_batch import Pair
from cmapkd_core.models.frozen_teacher import Embeddings

# Each term, and the scales that its gradient reaches.
SCALES = {"vrd": ("images",), "vrd_contrast": ("images", "captions"), "xrd": ("across",)}
TERMS = tuple(SCALES)
START = 1 / 0.07


class Scale(nn.Module):
    """A learned scale of similarities, an exponent; kept in bounds by its name, as all `log_scale` are."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(START)))

    def forward(self) -> Tensor:
        """A scalar."""
        return self.log_scale.exp()


class Relations(nn.Module):
    """Those of the terms that are wanted, with the scales that they train; nothing at all where none is."""

    def __init__(self, wanted: tuple[str, ...]) -> None:
        super().__init__()
        self.wanted = wanted
        self.scales = nn.ModuleDict({name: Scale() for term in wanted for name in SCALES[term]})

    def terms(self, student: Pair, teacher: Pair, of: Embeddings) -> dict[str, Tensor]:
        """Those wanted of `vrd`, `vrd_contrast` and `xrd`, each a mean over teachers.

        Args:
            student, teacher: images and captions in the teacher's space, gathered, [B,E'] each.
            of: the teacher's targets, by which E' is that of several teachers.
        """
        if not self.wanted:
            return {}
        images, captions, across = (self._scale(name, student[0]) for name in ("images", "captions", "across"))
        each = zip(*(of.each(x) for x in (*student, *teacher)), strict=True)
        made = [relations((v, t), (v_t, t_t), (images, captions), across, self.wanted) for v, t, v_t, t_t in each]
        return {name: mean_over([one[name] for one in made]) for name in self.wanted}

    def _scale(self, name: str, like: Tensor) -> Tensor:
        """A scalar; of a scale that nothing trains its start."""
        return self.scales[name]() if name in self.scales else like.new_tensor(START)


def relations(
    student: Pair, teacher: Pair, vertical: Pair, across: Tensor, wanted: tuple[str, ...] = TERMS
) -> dict[str, Tensor]:
    """Those wanted of the three terms, scalars.

    Args:
        student, teacher: unit embeddings of images and captions in one space, gathered, [B,E'] each.
        vertical: s_v and s_t. across: s.
    """
    images, captions = (similar(t, s, scale) for t, s, scale in zip(teacher, student, vertical, strict=True))
    to_captions, to_images = (similar(t, s, across) for t, s in zip(teacher, student[::-1], strict=True))
    terms: dict[str, Callable[[], Tensor]] = {
        "vrd": lambda: relative_entropy(captions, images, 1.0),
        "vrd_contrast": lambda: info_nce(images) + info_nce(captions),
        "xrd": lambda: (
            0.5 * (relative_entropy(to_images, to_captions, 1.0) + relative_entropy(to_captions, to_images, 1.0))
        ),
    }
    return {term: terms[term]() for term in wanted}
