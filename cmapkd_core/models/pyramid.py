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
from einops import rearrange, reduce
from torch import Tensor, nn

from cmapkd_core.config import VISION_LEVELS

Table = dict[str, Tensor]  # by level


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

    Each output pixel sees only 2x2 different inputs, and which of the 3x3 taps fall on one of them depends on whether
    its row and column are even or odd alone. So it is one transposed convolution of stride 2, whose 4x4 taps are sums.
    """
    kernel = _fold(_fold(conv.weight, 2), 3).transpose(0, 1)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def mean_smoothed(x: Tensor, conv: nn.Conv2d, times: int) -> Tensor:
    """Mean over all positions of `conv(nearest x times of x)` for a 3x3 convolution, [B,W,h,h] -> [B,W].

    A tap of the kernel meets every position of its input but the outermost row or column that it never reaches. So the
    mean of the map is the kernel with nine sums of the input, and neither it nor its gradient goes through the map.
    """
    x = x.float() / (x.shape[-1] * x.shape[-2])  # sums of it are then means, which half precision can hold too
    whole, nothing = x.sum((2, 3)), torch.zeros_like(x[:, :, 0, 0])
    last, first = [-1, None, 0], range(3)  # the row that the taps above, at and below a position do not meet
    rows = [nothing if at is None else x[:, :, at].sum(-1) / times for at in last]
    columns = [nothing if at is None else x[..., at].sum(-1) / times for at in last]
    sums = [
        whole - rows[a] - columns[b] + (nothing if a == 1 or b == 1 else x[:, :, last[a], last[b]] / times**2)
        for a in first
        for b in first
    ]
    return F.linear(torch.cat(sums, dim=1), rearrange(conv.weight, "o i a b -> o (a b i)"), conv.bias)


def _fold(weight: Tensor, dim: int) -> Tensor:
    """Three taps as four along axis `dim`, [O,I,3,..] -> [O,I,4,..].

    Input i gives them to outputs 2i-1 .. 2i+2. An even output has k1 + k2 of the input at its half and k0 of the one
    before it; an odd one has k0 + k1, and k2 of the one after it.
    """
    k0, k1, k2 = weight.unbind(dim)
    return torch.stack((k2, k1 + k2, k0 + k1, k0), dim)


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

    def forward(self, taps: list[Tensor], levels: tuple[str, ...]) -> tuple[Table, Table]:
        """What `merge` gives, from taps [B,C_k,h_k,h_k], earliest first."""
        return self.merge(self.laterals_of(taps, levels), levels)

    def laterals_of(self, taps: list[Tensor], levels: tuple[str, ...]) -> Table:
        """All that `merge` wants for the active `levels`: laterals [B,W,h,h], none larger than its level.

        Of taps of one size none is larger than the common grid either.
        """
        tapped, alike = dict(zip(VISION_LEVELS, taps, strict=True)), len({tap.shape[-1] for tap in taps}) == 1
        return {name: self._lateral(name, tapped[name], alike) for name in needed(levels)}

    def _lateral(self, name: str, tap: Tensor, alike: bool) -> Tensor:
        """[B,C,h,h] -> [B,W,s,s], s as `laterals_of` says; `alike`: the taps have one size."""
        side = tap.shape[-1]
        common = self._common(side) if alike else side
        size = min(common, self.sizes[name])
        if common == side > size and side % size == 0:
            return self.lateral(name, tap, size)
        return resize(resize(self.lateral(name, tap, side), common), size)

    def _common(self, side: int) -> int:
        """The common grid; `side` itself where it divides g and g/2, so that every level repeats its map anyway."""
        return side if self.grid % side == 0 == self.sizes["P5"] % side else self.grid

    def merge(self, laterals: Table, levels: tuple[str, ...]) -> tuple[Table, Table]:
        """Maps [B,W,S_i,S_i] of the active `levels` from their laterals [B,W,h,h], and the means of the maps [B,W]."""
        maps: Table = {}
        means: Table = {}
        for name in needed(levels):
            coarser = list(maps.values())[-1:]
            maps[name], means[name] = self._merge(name, laterals[name], *coarser)
        chosen = [name for name in VISION_LEVELS if name in levels]
        return {name: maps[name] for name in chosen}, {name: means[name] for name in chosen}

    def lateral(self, name: str, tap: Tensor, size: int) -> Tensor:
        """[B,C,h,h] -> [B,W,size,size]: LayerNorm over channels, mean down to `size`, a linear map of channels.

        The mean, by a whole factor, is taken before the map, which is the same and leaves it fewer positions.
        """
        normed = self.norms[name](rearrange(tap, "b c h w -> b h w c"))
        if (factor := tap.shape[-1] // size) > 1:
            normed = reduce(normed, "b (h p) (w q) c -> b h w c", "mean", p=factor, q=factor)
        result: Tensor = rearrange(self.laterals[name](normed), "b h w c -> b c h w")
        return result

    def _merge(self, name: str, lateral: Tensor, above: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The level's map [B,W,S,S] and its mean [B,W] from its lateral [B,W,h,h] and the map above it, [B,W,s,s]."""
        if above is None:
            level = resize(lateral, self.sizes[name])
            return level, level.mean((2, 3))
        size, half, conv = self.sizes[name], above.shape[-1], cast(nn.Conv2d, self.smooths[name])
        if 2 * half == size and lateral.shape[-1] <= half:
            merged = resize(lateral, half) + above
            return smooth_upsampled(merged, conv), mean_smoothed(merged, conv, 2)
        merged = resize(lateral, size) + F.interpolate(above, size=(size, size), mode="nearest")
        return conv(merged), mean_smoothed(merged, conv, 1)

    def used(self, levels: tuple[str, ...]) -> list[nn.Parameter]:
        """The parameters that the active levels depend on: a level and everything above it."""
        names = needed(levels)
        modules = [table[n] for table in (self.norms, self.laterals, self.smooths) for n in names if n in table]
        return [p for module in modules for p in module.parameters()]
