"""The frozen teacher and what the losses hear of it.

Shapes: b local batch, E the teacher's embedding width. The teacher is never a part of a method: it
is in no optimiser, no checkpoint of a student, and gives every tensor without a graph.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmapkd_core.config import TEXT_LEVELS, VISION_LEVELS
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import Levels, LevelTower
from cmapkd_core.models.features import Features


@dataclass
class Embeddings:
    """What the teacher says of a batch of pairs by its embeddings alone, which may come from a store.

    image, text: unit embeddings [b,E]. scale: exp of its logit scale.
    """

    image: Tensor
    text: Tensor
    scale: Tensor


@dataclass
class Targets(Embeddings):
    """All that the teacher says of a batch of pairs.

    vision, language: what its towers gave (taps, pooled states). level_scale: exp(s) of its bridge. levels: its
    active levels, mapped by its own bridge. alpha: [4,4] compatibility of P_i with L_j, sums to 1.
    """

    vision: Features
    language: Features
    level_scale: Tensor
    levels: Levels
    alpha: Tensor


def diagonal_prior() -> Tensor:
    """The paper's compatibility: 1 for i = j, 0.5 otherwise, normalised, [4,4]."""
    table = torch.full((len(VISION_LEVELS), len(TEXT_LEVELS)), 0.5)
    return (table + 0.5 * torch.eye(len(VISION_LEVELS))) / (table.sum() + 0.5 * len(VISION_LEVELS))


class Teacher(nn.Module):
    """Backbone, fitted levels and compatibility of the teacher, frozen and in eval mode for good.

    classes: unit text features of the data's classes [C,E]; none but for a method that compares classes.
    """

    alpha: Tensor
    classes: Tensor

    def __init__(self, backbone: Backbone, levels: LevelTower, alpha: Tensor) -> None:
        super().__init__()
        self.backbone, self.levels = backbone, levels
        self.register_buffer("alpha", alpha)
        self.register_buffer("classes", torch.zeros(0, backbone.spec.embed_dim))
        self.amp: torch.dtype | None = None  # the towers' autocast type; what the losses see is fp32
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def targets(self, images: Tensor, tokens: Tensor, levels: tuple[str, ...]) -> Targets:
        """Images [b,3,h,w] and tokens [b,N] in the teacher's own form, at the active `levels`; fp32."""
        with contextlib.nullcontext() if self.amp is None else torch.autocast(images.device.type, self.amp):
            vision, text = self.backbone.vision(images), self.backbone.text(tokens)
            found = self.levels(vision, text, levels).float()
        scale, level_scale = self.backbone.scale(), self.levels.bridge.scale()
        vision, text = vision.float(), text.float()
        return Targets(vision.embedding, text.embedding, scale, vision, text, level_scale, found, self.alpha)
