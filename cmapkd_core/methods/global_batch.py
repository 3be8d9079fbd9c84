"""What a method compares over all ranks' pairs: embeddings and levels, gathered at once.

Shapes: b local and B global batch, E embedding width, W width of the levels, K and J levels of images and of captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd_core.losses.relation import Grams
from cmapkd_core.losses.streamed import Similarities
from cmapkd_core.methods.base import gathered, ranks, similar
from cmapkd_core.models.bridge import Levels

Pair = tuple[Tensor, Tensor]  # of images and of captions


@dataclass(frozen=True)
class Units:
    """Unit vectors of one side's active levels, [K,B,W] of images and [J,B,W] of captions; mapped: into the other."""

    image: Tensor
    image_mapped: Tensor
    text: Tensor
    text_mapped: Tensor

    @staticmethod
    def of(levels: Levels) -> Units:
        """Finest level first."""

        def stack(table: dict[str, Tensor], names: list[str]) -> Tensor:
            return F.normalize(torch.stack([table[name] for name in names]), dim=-1)

        v, l = levels.vision(), levels.text()
        return Units(
            stack(levels.vectors, v), stack(levels.mapped, v), stack(levels.vectors, l), stack(levels.mapped, l)
        )

    def coarsest(self) -> Units:
        """Of the coarsest level alone."""
        return Units(self.image[-1:], self.image_mapped[-1:], self.text[-1:], self.text_mapped[-1:])

    def meet(self, texts: Units, scale: Tensor | float) -> Similarities:
        """models.bridge.similarities of these images and of `texts`' captions, all pairs of levels."""
        rows, columns = (self.image_mapped, self.image), (texts.text, texts.text_mapped)
        return Similarities.between(rows, columns, 0.5 * scale, ranks())

    def grams(self) -> Grams:
        """Image-image, text-text and (bridged) image-text cosines of a single level."""
        return similar(self.image[0], self.image[0]), similar(self.text[0], self.text[0]), self.meet(self, 1.0)


@dataclass(frozen=True)
class GlobalBatch:
    """What all ranks' pairs are compared by: embeddings [B,E] of images and captions, and levels; maps stay local."""

    student: Pair
    student_levels: Levels
    student_units: Units
    teacher: Pair
    teacher_levels: Levels
    teacher_units: Units

    @staticmethod
    def of(
        student: tuple[Tensor, Tensor], mine: Levels, teacher: tuple[Tensor, Tensor], targets: Levels
    ) -> GlobalBatch:
        """Gathered at once: a rank waits for the others twice a step, not once a level."""
        tables = [table for side in (mine, targets) for table in (side.vectors, side.mapped)]
        found = iter(gathered(*student, *teacher, *(x for table in tables for x in table.values())))
        embeddings = [next(found) for _ in range(4)]
        tables = [{name: next(found) for name in table} for table in tables]
        ours, others = Levels(mine.maps, *tables[:2]), Levels(targets.maps, *tables[2:])
        image, text, image_t, text_t = embeddings
        return GlobalBatch((image, text), ours, Units.of(ours), (image_t, text_t), others, Units.of(others))


def gathered_levels(levels: Levels) -> Levels:
    """Vectors of all ranks; maps stay local, since only per-sample distances read them."""
    tables = levels.vectors, levels.mapped
    found = iter(gathered(*(x for table in tables for x in table.values())))
    return Levels(levels.maps, *({name: next(found) for name in table} for table in tables))


def embedding_grams(image: Tensor, text: Tensor) -> Grams:
    """Image-image, text-text and image-text cosines of CLIP embeddings, [B,E] twice."""
    image, text = (F.normalize(x, dim=-1) for x in (image, text))
    return similar(image, image), similar(text, text), similar(image, text)
