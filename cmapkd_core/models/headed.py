"""A student's image tower that answers in another model's space: what PromptKD trains and exports.

A composed model has the image tower of one model, a trained head on its embedding, and the text tower
of another. Its folder loads with `load_model`; open_clip itself has no name for the head.

Shapes: B batch, E embedding width below the head, E' above it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from cmapkd_core.models.lifted import IMAGE_TOWERS
from cmapkd_core.models.vision_towers import Layout, VisionTower


class ImageHead(nn.Module):
    """Linear-BN-ReLU-Linear from one embedding space into another (PromptKD's projector), [B, E] -> [B, E']."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        # No bias where the batch norm takes the mean away.
        self.layers = nn.Sequential(
            nn.Linear(width, out, bias=False), nn.BatchNorm1d(out), nn.ReLU(), nn.Linear(out, out)
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, width] -> [B, out], not normalised."""
        result: Tensor = self.layers(embedding)
        return result


class HeadedVisual(nn.Module):
    """An image tower of open_clip with an `ImageHead` on its unit embedding."""

    def __init__(self, tower: nn.Module, head: ImageHead) -> None:
        super().__init__()
        self.tower, self.head = tower, head
        self.image_size = tower.image_size

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, out]: the head of the tower's unit embedding."""
        result: Tensor = self.head(F.normalize(self.tower(images), dim=-1))
        return result


class HeadedTower(VisionTower):
    """The tower below the head, with its own adapter."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__(tower)
        self.below = IMAGE_TOWERS[type(self.tower.tower)](self.tower.tower)

    @override
    def blocks(self) -> list[nn.Module]:
        return self.below.blocks()

    @override
    def ends(self) -> list[nn.Module]:
        return self.below.ends()

    @override
    def repeatable(self) -> list[nn.Module]:
        return self.below.repeatable()

    @override
    def layout(self) -> Layout:
        return self.below.layout()

    @override
    def final(self, images: Tensor) -> Tensor:
        return self.below.final(images)

    @override
    def pool(self, final: Tensor) -> Tensor:
        return self.below.pool(final)

    @override
    def single(self, vectors: Tensor) -> Tensor:
        return self.below.single(vectors)

    @override
    def alone(self, vectors: Tensor) -> Tensor:
        return self.below.alone(vectors)

    @override
    def project(self, pooled: Tensor) -> Tensor:
        result: Tensor = self.tower.head(F.normalize(self.below.project(pooled), dim=-1))
        return result

    @override
    def head(self) -> list[nn.Parameter]:
        return [*self.below.head(), *self.tower.head.parameters()]
