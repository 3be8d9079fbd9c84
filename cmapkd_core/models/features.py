"""What one tower gives for a batch, and how large each part is.

Shapes: B batch, E joint embedding, D width of a tower, N tokens, C_k h_k w_k a vision tap.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Features:
    """One tower's answer to a batch (paper, section 3.2).

    Every tap lies on the way from the parameters to `pooled` and `embedding`, so gradients with respect
    to it exist. Where a tower pools one token alone, the other tokens of its last tap get zeros.
    """

    embedding: Tensor  # [B, E], unit norm: what CLIP compares
    pooled: Tensor  # [B, D], the tower's state before its projection into the joint space
    taps: list[Tensor]  # four, after 1/4, 1/2, 3/4 and all of the depth: vision [B, C_k, h_k, w_k], text [B, N, D]
    mask: Tensor | None = None  # bool [B, N], text only: True from the start to the end-of-text token
    final: Tensor | None = None  # vision only: what the tower pools, in its own layout (`Backbone.final_map`)
    raw: Tensor | None = None  # [B, E], the projection itself: the embedding before it is made a unit vector
    first: int = 0  # the first tap that training moves; below it the tower is frozen

    @property
    def root(self) -> Tensor:
        """The tap at which gradients are measured: the lowest that all of them reach."""
        return self.taps[self.first]

    def float(self) -> Features:
        """The same in fp32: losses are computed in full precision."""
        taps, final = [tap.float() for tap in self.taps], None if self.final is None else self.final.float()
        raw = None if self.raw is None else self.raw.float()
        return Features(self.embedding.float(), self.pooled.float(), taps, self.mask, final, raw, self.first)


@dataclass(frozen=True)
class Spec:
    """Sizes of a model, measured on the model itself by a forward pass on zeros."""

    image_size: int
    context_length: int
    embed_dim: int
    vision_widths: tuple[int, ...]  # C_k of the four taps
    vision_grids: tuple[int, ...]  # side h_k = w_k of the four taps
    vision_pooled: int
    text_widths: tuple[int, ...]
    text_pooled: int
