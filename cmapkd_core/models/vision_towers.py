"""How each kind of image tower gives its taps, its pooled state and its projection.

A tap has to lie on the way from the parameters to the embedding: the utilities of the selector are
gradients with respect to it. open_clip's and timm's `forward_intermediates` return reshaped copies
beside that way, which no gradient of the embedding reaches. So the towers run their own forward, and
hooks on four blocks pass each output through the map that is the tap.

Shapes: B batch, C channels, D width, h = w side of a map, n = prefix + h * w tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.model import TimmModel
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from typing_extensions import override

from cmapkd_core.errors import InputError

# A block's output as a map [B, C, h, w], and the same output rebuilt from that map.
Layout = Callable[[Tensor], tuple[Tensor, Tensor]]
_LISTS = (nn.Sequential, nn.ModuleList)


def quarters(depth: int) -> list[int]:
    """Indices of the blocks that end each quarter of `depth` blocks: ceil(depth * k / 4) - 1, k = 1..4.

    Towers of fewer than four blocks give their last block more than once (3 blocks: 0, 1, 2, 2).
    """
    return [math.ceil(depth * k / 4) - 1 for k in (1, 2, 3, 4)]


def as_map(output: Tensor) -> tuple[Tensor, Tensor]:
    """Layout of convolutional blocks, [B, C, h, w]."""
    return output, output


def as_channels_last(output: Tensor) -> tuple[Tensor, Tensor]:
    """Layout of blocks that give [B, h, w, C]."""
    grid = output.permute(0, 3, 1, 2)
    return grid, grid.permute(0, 2, 3, 1)


def as_tokens(prefix: int) -> Layout:
    """Layout of transformer blocks, [B, prefix + h * w, D]; the prefix (CLS, registers) is no part of the map."""

    def layout(output: Tensor) -> tuple[Tensor, Tensor]:
        count = output.shape[1] - prefix
        side = math.isqrt(count)
        if side * side != count:
            raise InputError(
                f"{count} image tokens form no square map: use square images, and no patch dropout in vision_cfg"
            )
        grid = output[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
        return grid, torch.cat([output[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)

    return layout


@contextmanager
def tapped(blocks: Sequence[nn.Module], layout: Layout) -> Iterator[dict[nn.Module, Tensor]]:
    """Inside, every forward of a block leaves its tap [B, C, h, w] in the dict that is yielded."""
    taps: dict[nn.Module, Tensor] = {}

    def hook(block: nn.Module, _: Any, output: Tensor) -> Tensor:
        taps[block], output = layout(output)
        return output

    handles = [block.register_forward_hook(hook) for block in dict.fromkeys(blocks)]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


class VisionTower(ABC):
    """One kind of image tower; `tower` stays a part of the open_clip model, weights and all."""

    def __init__(self, tower: nn.Module) -> None:
        self.tower: Any = tower

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Everything that counts as depth, in order."""

    def ends(self) -> list[nn.Module]:
        """Whose outputs the taps are of, one for each of `blocks`: mostly they themselves."""
        return self.blocks()

    def repeatable(self) -> list[nn.Module]:
        """What may run again in place of keeping its activations: modules that all of the depth is made of."""
        return self.blocks()

    @abstractmethod
    def layout(self) -> Layout:
        """How a block's output becomes a map."""

    @abstractmethod
    def final(self, images: Tensor) -> Tensor:
        """[B, 3, H, H] -> what the tower pools, in its blocks' layout: [B, n, D], [B, C, h, w] or [B, h, w, C]."""

    @abstractmethod
    def pool(self, final: Tensor) -> Tensor:
        """[B, D] before the projection into the joint space."""

    @abstractmethod
    def single(self, vectors: Tensor) -> Tensor:
        """`final` of maps with one position, from its vectors [M, C]."""

    def alone(self, vectors: Tensor) -> Tensor:
        """What the tower pools from a map that holds one position alone, [M, C] -> [M, D]."""
        return self.pool(self.single(vectors))

    @abstractmethod
    def project(self, pooled: Tensor) -> Tensor:
        """[B, D] -> [B, E], not normalised."""

    @abstractmethod
    def head(self) -> list[nn.Parameter]:
        """Parameters of `project`."""

    def run(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Pooled state [B, D], the four taps [B, C_k, h_k, w_k] and the final state of images [B, 3, H, H]."""
        ends = self.ends()
        chosen = [ends[index] for index in quarters(len(ends))]
        with tapped(chosen, self.layout()) as taps:
            final = self.final(images)
        return self.pool(final), [taps[block] for block in chosen], final


class ClipViT(VisionTower):
    """open_clip's own vision transformer, CLS first."""

    @override
    def blocks(self) -> list[nn.Module]:
        return list(self.tower.transformer.resblocks)

    @override
    def layout(self) -> Layout:
        return as_tokens(prefix=1)

    @override
    def final(self, images: Tensor) -> Tensor:
        result: Tensor = self.tower.transformer(self.tower._embeds(images))
        return result

    @override
    def pool(self, final: Tensor) -> Tensor:
        pooled: Tensor = self.tower._pool(final)[0]
        return pooled

    @override
    def single(self, vectors: Tensor) -> Tensor:
        return vectors[:, None].expand(-1, 2, -1)  # as CLS and as the one patch: whichever is pooled

    @override
    def project(self, pooled: Tensor) -> Tensor:
        return pooled if self.tower.proj is None else pooled @ self.tower.proj

    @override
    def head(self) -> list[nn.Parameter]:
        return [] if self.tower.proj is None else [self.tower.proj]


class ClipResNet(VisionTower):
    """OpenAI's ResNet. Its attention pooling ends in the projection, so `pooled` is in the joint space already."""

    @override
    def blocks(self) -> list[nn.Module]:
        return [self.tower.layer1, self.tower.layer2, self.tower.layer3, self.tower.layer4]

    @override
    def repeatable(self) -> list[nn.Module]:
        return [bottleneck for layer in self.blocks() for bottleneck in layer.children()]

    @override
    def layout(self) -> Layout:
        return as_map

    @override
    def final(self, images: Tensor) -> Tensor:
        state: Tensor = self.tower.stem(images)
        for layer in self.blocks():
            state = layer(state)
        return state

    @override
    def pool(self, final: Tensor) -> Tensor:
        result: Tensor = self.tower.attnpool(final)
        return result

    @override
    def single(self, vectors: Tensor) -> Tensor:
        return vectors[:, :, None, None]

    def alone(self, vectors: Tensor) -> Tensor:
        """[M, C] -> [M, E]: attention over one position gives its value, whatever the query and the position."""
        result: Tensor = self.tower.attnpool.c_proj(self.tower.attnpool.v_proj(vectors))
        return result

    @override
    def project(self, pooled: Tensor) -> Tensor:
        return pooled

    @override
    def head(self) -> list[nn.Parameter]:
        return []


class TimmTower(VisionTower):
    """Any timm trunk that says where its features are (`feature_info`), with open_clip's head on it.

    Attention pooling of the head counts as pooling, its classifier or linear layer as projection.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__(tower)
        if not hasattr(self.tower.trunk, "feature_info"):
            name = type(self.tower.trunk).__name__
            raise InputError(f"timm's {name} names no intermediate features: choose a model that has feature_info")

    @override
    def blocks(self) -> list[nn.Module]:
        return [self.tower.trunk.get_submodule(info["module"]) for info in self.tower.trunk.feature_info]

    @override
    def repeatable(self) -> list[nn.Module]:
        """Blocks one by one where they are listed, alone or in stages."""
        parents = dict.fromkeys(info["module"].rpartition(".")[0] for info in self.tower.trunk.feature_info)
        listed = [module for name in parents if _is_list(module := self.tower.trunk.get_submodule(name))]
        stages = [stage for module in listed for stage in module.children()] or self.blocks()
        parts = [part for stage in stages for part in (stage.children() if _is_list(stage) else [stage])]
        # What has no parameters keeps little, and may change its input in place.
        parts = [part for part in parts if any(True for _ in part.parameters())]
        if not parts:
            raise InputError(
                f"runtime.grad_checkpointing=true: timm's {type(self.tower.trunk).__name__} has no blocks that could "
                "run again: leave it at false, or choose another model"
            )
        return parts

    @override
    def layout(self) -> Layout:
        trunk = self.tower.trunk
        if hasattr(trunk, "num_prefix_tokens"):
            return as_tokens(trunk.num_prefix_tokens)
        return as_channels_last if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else as_map

    @override
    def final(self, images: Tensor) -> Tensor:
        result: Tensor = self.tower.trunk.forward_features(images)
        return result

    @override
    def pool(self, final: Tensor) -> Tensor:
        pooled = self.tower.trunk.forward_head(final, pre_logits=True)
        result: Tensor = self.tower.head.pool(pooled) if hasattr(self.tower.head, "pool") else pooled
        return result

    @override
    def single(self, vectors: Tensor) -> Tensor:
        trunk = self.tower.trunk
        if hasattr(trunk, "num_prefix_tokens"):
            return vectors[:, None].expand(-1, trunk.num_prefix_tokens + 1, -1)
        return vectors[:, None, None] if self.layout() is as_channels_last else vectors[:, :, None, None]

    def _projection(self) -> list[nn.Module]:
        rest = [module for name, module in self.tower.head.named_children() if name != "pool"]
        return [self.tower.trunk.get_classifier(), *rest]

    @override
    def project(self, pooled: Tensor) -> Tensor:
        for module in self._projection():
            pooled = module(pooled)
        return pooled

    @override
    def head(self) -> list[nn.Parameter]:
        return [parameter for module in self._projection() for parameter in module.parameters()]


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, _LISTS)


VISION_TOWERS: dict[type[nn.Module], type[VisionTower]] = {
    VisionTransformer: ClipViT,
    ModifiedResNet: ClipResNet,
    TimmModel: TimmTower,
}
