"""One side's levels and the bridge between its modalities (paper 4.2.3).

Shapes: B samples, W common width, K active levels of one modality.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd_core.config import TEXT_LEVELS, VISION_LEVELS
from cmapkd_core.models.features import Features, Spec
from cmapkd_core.models.hierarchy import LanguageHierarchy
from cmapkd_core.models.pyramid import VisualPyramid


@dataclass
class Levels:
    """Active levels of one side, by name.

    maps: P_i [B,W,h,h]. vectors: pooled P_i and L_j [B,W]. mapped: the same vectors carried into
    the other modality by this side's bridge, f_v2l(GAP P_i) and f_l2v(L_j) [B,W].
    """

    maps: dict[str, Tensor]
    vectors: dict[str, Tensor]
    mapped: dict[str, Tensor]

    def float(self) -> Levels:
        """The same in fp32: losses are computed in full precision."""
        tables = (self.maps, self.vectors, self.mapped)
        return Levels(*({name: x.float() for name, x in table.items()} for table in tables))

    def part(self, rows: slice) -> Levels:
        """Of these samples."""
        tables = (self.maps, self.vectors, self.mapped)
        return Levels(*({name: x[rows] for name, x in table.items()} for table in tables))

    def coarsest(self) -> Levels:
        """Only the coarsest active level of each modality: P5 and L4 where they are active."""
        names = (self.vision()[-1], self.text()[-1])
        tables = (self.maps, self.vectors, self.mapped)
        return Levels(*({name: table[name] for name in names if name in table} for table in tables))

    def vision(self) -> list[str]:
        """Names of the active P levels, finest first."""
        return [name for name in VISION_LEVELS if name in self.vectors]

    def text(self) -> list[str]:
        """Names of the active L levels, finest first."""
        return [name for name in TEXT_LEVELS if name in self.vectors]


class Bridge(nn.Module):
    """f_v2l and f_l2v, each W -> W, and the learned scale s of their similarities."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.v2l = nn.Linear(width, width)
        self.l2v = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def scale(self) -> Tensor:
        """exp(s), a scalar; where it is trained, models/scales.py keeps it within CLIP's bound."""
        return self.log_scale.exp()


def similarities(images: Levels, texts: Levels, scale: Tensor | float) -> Tensor:
    """Similarity of every image with every caption for every pair of active levels.

    sim_ij = 1/2 [cos(f_v2l(GAP P_i), L_j) + cos(GAP P_i, f_l2v(L_j))] * scale. Each modality comes
    mapped by its own side's bridge, so images of the student can meet captions of the teacher.

    Returns:
        [K,J,B,B] for K levels of `images` and J of `texts`; rows images, columns captions.
    """

    def stack(table: dict[str, Tensor], names: list[str]) -> Tensor:
        return F.normalize(torch.stack([table[name] for name in names]), dim=-1)

    v, l = images.vision(), texts.text()
    there = torch.einsum("kbd,jcd->kjbc", stack(images.mapped, v), stack(texts.vectors, l))
    back = torch.einsum("kbd,jcd->kjbc", stack(images.vectors, v), stack(texts.mapped, l))
    return 0.5 * (there + back) * scale


class LevelTower(nn.Module):
    """Pyramid, hierarchy and bridge of one side (teacher or student)."""

    def __init__(self, spec: Spec, grid: int, width: int) -> None:
        super().__init__()
        self.pyramid = VisualPyramid(spec.vision_widths, grid, width)
        self.hierarchy = LanguageHierarchy(spec.text_widths, spec.text_pooled, width)
        self.bridge = Bridge(width)

    def forward(self, vision: Features, text: Features, levels: tuple[str, ...]) -> Levels:
        """The active `levels` of a batch of pairs."""
        maps, pooled = self.pyramid(vision.taps, levels)
        return self.bridged(maps, pooled, self.hierarchy(text, levels))

    def bridged(self, maps: dict[str, Tensor], pooled: dict[str, Tensor], states: dict[str, Tensor]) -> Levels:
        """Levels of their maps [B,W,h,h], the means of these over positions and text vectors [B,W]."""
        mapped = {n: self.bridge.v2l(x) for n, x in pooled.items()} | {n: self.bridge.l2v(x) for n, x in states.items()}
        return Levels(maps, pooled | states, mapped)

    def used(self, levels: tuple[str, ...]) -> list[nn.Parameter]:
        """The parameters that the active levels depend on."""
        return [*self.pyramid.used(levels), *self.hierarchy.used(levels), *self.bridge.parameters()]
