"""A student's image tower whose last features are wider than its blocks: a lift that stays at inference.

arXiv 2511.15572 (ICML 2026) finds that matching a wide teacher's late features fails on small vision transformers: a
token of the teacher uses most of its channels, and the student has fewer. One of its remedies is to *lift* the
student's last features by a light projector, as part of the student and not of the loss.

    x = ln_post(blocks(image)) [B, n, D],   y = x W^T + b [B, n, D'],   embedding = pool(y) P,   P [D', E]

Taken from the abstract: a projector behind the last features, to the teacher's width, kept at inference. Chosen here:
it is linear; it stands behind the tower's last norm; its first D channels start as x, the others as random
combinations of x with zeros in P. So a lifted tower begins as the tower that it was made of, to rounding.

Shapes: B batch, n tokens with CLS, D width of the blocks, D' width of the lift, E embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from typing_extensions import override

from cmapkd_core.errors import InputError
from cmapkd_core.models.named import NARROW_LIFT, NO_LIFT, POOLED_BEFORE
from cmapkd_core.models.vision_towers import VISION_TOWERS, ClipViT, VisionTower


class LiftedVisual(nn.Module):
    """A vision transformer of open_clip with a lift; its projection is replaced by one of D' rows."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        """width: D'.

        Raises:
            InputError: the tower has no such place for a lift, or is wider.
        """
        super().__init__()
        self.tower: Any = liftable(tower, width)
        proj = self.tower.proj.detach()
        self.image_size = self.tower.image_size
        self.lift = nn.Linear(len(proj), width)
        with torch.no_grad():
            self.lift.weight[: len(proj)] = torch.eye(len(proj))
            self.lift.bias.zero_()
        self.tower.proj = nn.Parameter(torch.cat([proj, proj.new_zeros(width - len(proj), proj.shape[1])]))

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, H] -> lifted tokens [B, n, D']."""
        below = self.tower
        result: Tensor = self.lift(below.ln_post(below.transformer(below._embeds(images))))
        return result

    def pool(self, tokens: Tensor) -> Tensor:
        """[B, n, D'] -> [B, D']."""
        pooled: Tensor = self.tower._global_pool(tokens)[0]
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, H] -> [B, E], not normalised."""
        result: Tensor = self.pool(self.tokens(images)) @ self.tower.proj
        return result


def liftable(tower: nn.Module, width: int) -> VisionTransformer:
    """The tower, if a lift to `width` channels has its place in it.

    Raises:
        InputError: another kind of tower, one that pools in another way, or a wider one; names what is wrong.
    """
    if not isinstance(tower, VisionTransformer):
        kind = type(getattr(tower, "trunk", tower)).__name__
        raise InputError(NO_LIFT.format(width, kind))
    if tower.attn_pool is not None or tower.final_ln_after_pool or tower.proj is None:
        raise InputError(POOLED_BEFORE.format(width))
    if width < len(tower.proj):
        raise InputError(NARROW_LIFT.format(width, len(tower.proj)))
    return tower


class LiftedTower(ClipViT):
    """The last tap, the pooled state and the projection read the lifted tokens."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__(tower)
        self.lifted, self.tower = self.tower, self.tower.tower

    @override
    def ends(self) -> list[nn.Module]:
        return [*self.blocks()[:-1], self.lifted.lift]

    @override
    def final(self, images: Tensor) -> Tensor:
        result: Tensor = self.lifted.tokens(images)
        return result

    @override
    def pool(self, final: Tensor) -> Tensor:
        result: Tensor = self.lifted.pool(final)
        return result


# What a head may stand on.
IMAGE_TOWERS: dict[type[nn.Module], type[VisionTower]] = {**VISION_TOWERS, LiftedVisual: LiftedTower}
