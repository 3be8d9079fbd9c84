"""Visual pyramid P2..P5 from four tapped maps (paper 4.2.1; sizes as there, FPN of Lin et al. 2017).

Shapes: B samples, C_k channels of tap k, W common width, g the student's patch grid.
P5 [B,W,g/2,g/2], P4 [B,W,g,g], P3 [B,W,2g,2g], P2 [B,W,4g,4g].

How a tap comes to its level: where all four taps have one size (transformers) each is resized to g first and from
there to its level; where they have several (convolutional towers) each is resized to its level at once.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cmapkd_core.config import VISION_LEVELS


def level_sizes(grid: int) -> dict[str, int]:
    """Side length of each level for a common grid g: P2 4g, P3 2g, P4 g, P5 g/2."""
    return {"P2": 4 * grid, "P3": 2 * grid, "P4": grid, "P5": max(1, grid // 2)}


def needed(levels: tuple[str, ...]) -> list[str]:
    """The vision levels that the active `levels` are made of: each, and everything above it; coarsest first."""
    return [name for i, name in enumerate(VISION_LEVELS) if set(levels) & set(VISION_LEVELS[: i + 1])][::-1]


def resize(x: Tensor, size: int) -> Tensor:
    """[B,C,h,h] -> [B,C,size,size]: nearest up, mean down by whole factors, antialiased bilinear otherwise."""
    side = x.shape[-1]
    if side == size:
        return x
    if size % side == 0:
        return F.interpolate(x, size=(size, size), mode="nearest")
    if side % size == 0:
        return F.avg_pool2d(x, side // size)
    # In fp32, since this kernel does not know half precision on every device.
    exact = F.interpolate(x.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return exact.to(x.dtype)


def smooth_upsampled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv(nearest x2 of x)` for a 3x3 convolution, [B,W,h,h] -> [B,W,2h,2h], at 4/9 of its cost.

    Each output pixel sees only 2x2 different inputs, so its phase (row and column parity) is a 2x2
    convolution whose taps are sums of the 3x3 ones.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    rows = []
    for a in (0, 1):
        columns = []
        for b in (0, 1):
            kernel = _fold(_fold(conv.weight, a, 2), b, 3)
            columns.append(F.conv2d(padded[:, :, a : a + height + 1, b : b + width + 1], kernel, conv.bias))
        rows.append(torch.stack(columns, dim=-1))
    phases = torch.stack(rows, dim=-3)  # [B,W,h,2,w,2]
    return rearrange(phases, "b c h p w q -> b c (h p) (w q)")


def _fold(weight: Tensor, phase: int, dim: int) -> Tensor:
    """Three taps as two along axis `dim`, [O,I,3,..] -> [O,I,2,..].

    (k0, k1+k2) for even outputs, (k0+k1, k2) for odd ones.
    """
    k0, k1, k2 = weight.unbind(dim)
    return torch.stack((k0, k1 + k2) if phase == 0 else (k0 + k1, k2), dim)


class VisualPyramid(nn.Module):
    """LayerNorm and 1x1 lateral per tap, then top-down sums: P_i = smooth_i(lateral_i + up(P_{i+1})).

    No nonlinearity anywhere, so laterals run at the taps' own size and upsampling is folded into
    the smoothing convolution: exact, see `smooth_upsampled`. A lateral of at most half its level's
    size is brought to that half and then doubled, which for whole factors is the same nearest map.

    One grid for both sides: of a 16x16 teacher beside a 14x14 student the finest levels are doublings of 14x14 as the
    student's are, so neither is asked for detail that the other's grid cannot hold, and a store keeps 14x14 a tap.
    """

    def __init__(self, widths: tuple[int, ...], grid: int, width: int) -> None:
        super().__init__()
        self.grid, self.sizes = grid, level_sizes(grid)
        self.norms = nn.ModuleDict({n: nn.LayerNorm(w) for n, w in zip(VISION_LEVELS, widths, strict=True)})
        self.laterals = nn.ModuleDict({n: nn.Linear(w, width) for n, w in zip(VISION_LEVELS, widths, strict=True)})
        self.smooths = nn.ModuleDict({n: nn.Conv2d(width, width, 3, padding=1) for n in VISION_LEVELS[:-1]})

    def forward(self, taps: list[Tensor], levels: tuple[str, ...]) -> dict[str, Tensor]:
        """Maps of the active `levels` from taps [B,C_k,h_k,h_k], earliest first."""
        return self.merge(self.laterals_of(taps, levels), levels)

    def laterals_of(self, taps: list[Tensor], levels: tuple[str, ...]) -> dict[str, Tensor]:
        """All that `merge` wants for the active `levels`: laterals [B,W,h,h], none larger than its level.

        Of taps of one size none is larger than the common grid either.
        """
        tapped, alike = dict(zip(VISION_LEVELS, taps, strict=True)), len({tap.shape[-1] for tap in taps}) == 1
        found = {name: self.lateral(name, tapped[name]) for name in needed(levels)}
        if alike:
            found = {name: self._on_grid(x) for name, x in found.items()}
        return {name: resize(x, min(x.shape[-1], self.sizes[name])) for name, x in found.items()}

    def _on_grid(self, lateral: Tensor) -> Tensor:
        """[B,W,h,h] -> [B,W,g,g]; as it is where its side divides g and g/2, so that every level repeats it anyway."""
        side = lateral.shape[-1]
        return lateral if self.grid % side == 0 == self.sizes["P5"] % side else resize(lateral, self.grid)

    def merge(self, laterals: dict[str, Tensor], levels: tuple[str, ...]) -> dict[str, Tensor]:
        """Maps [B,W,S_i,S_i] of the active `levels` from their laterals [B,W,h,h], coarse to fine."""
        maps: dict[str, Tensor] = {}
        for name in needed(levels):
            coarser = list(maps.values())[-1:]
            maps[name] = self._merge(name, laterals[name], *coarser)
        return {name: maps[name] for name in VISION_LEVELS if name in levels}

    def lateral(self, name: str, tap: Tensor) -> Tensor:
        """[B,C,h,h] -> [B,W,h,h]: LayerNorm over channels, then the 1x1 convolution as a linear layer."""
        normed = self.norms[name](rearrange(tap, "b c h w -> b h w c"))
        result: Tensor = rearrange(self.laterals[name](normed), "b h w c -> b c h w")
        return result

    def _merge(self, name: str, lateral: Tensor, above: Tensor | None = None) -> Tensor:
        """The level's map [B,W,S,S] from its lateral [B,W,h,h] and the map above it, [B,W,s,s]."""
        if above is None:
            return resize(lateral, self.sizes[name])
        size, half, conv = self.sizes[name], above.shape[-1], cast(nn.Conv2d, self.smooths[name])
        if 2 * half == size and lateral.shape[-1] <= half:
            return smooth_upsampled(resize(lateral, half) + above, conv)
        upsampled = F.interpolate(above, size=(size, size), mode="nearest")
        result: Tensor = conv(resize(lateral, size) + upsampled)
        return result

    def used(self, levels: tuple[str, ...]) -> list[nn.Parameter]:
        """The parameters that the active levels depend on: a level and everything above it."""
        names = needed(levels)
        modules = [table[n] for table in (self.norms, self.laterals, self.smooths) for n in names if n in table]
        return [p for module in modules for p in module.parameters()]
