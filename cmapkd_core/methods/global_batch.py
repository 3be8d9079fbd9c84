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
from cmapkd_core.methods.base import Rows, gathered, ranks, similar
from cmapkd_core.models.bridge import Levels
from cmapkd_core.models.frozen_teacher import Embeddings

Pair = tuple[Tensor, Tensor]  # of images and of captions
_PREFIXES = VECTOR, MAPPED = "vector/", "mapped/"


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
    """What all ranks' pairs are compared by: embeddings [B,E] of images and captions, and levels without their maps.

    targets: those of the first batch; its scales and widths are the same for all.
    """

    student: Pair
    student_levels: Levels
    student_units: Units
    teacher: Pair
    teacher_levels: Levels
    teacher_units: Units
    targets: Embeddings

    @staticmethod
    def of(rows: Rows) -> GlobalBatch:
        """Gathered at once: a rank waits for the others twice a step, not once a level."""
        names = ["image", "text", *(name for name in rows.student if name.startswith((VECTOR, MAPPED)))]
        whole = gathered(*(side[name] for side in (rows.student, rows.teacher) for name in names))
        student, teacher = (dict(zip(names, half, strict=True)) for half in (whole[: len(names)], whole[len(names) :]))
        student_levels, teacher_levels = _levels(student), _levels(teacher)
        pairs = (student["image"], student["text"]), (teacher["image"], teacher["text"])
        return GlobalBatch(
            pairs[0],
            student_levels,
            Units.of(student_levels),
            pairs[1],
            teacher_levels,
            Units.of(teacher_levels),
            rows.targets(Embeddings),
        )


def add_levels(rows: Rows, student: Levels, teacher: Levels) -> Rows:
    """The rows with the vectors of the student's levels, as they are and mapped, and of the teacher's same ones."""
    for side, levels in ((rows.student, student), (rows.teacher, teacher)):
        for prefix, table in ((VECTOR, levels.vectors), (MAPPED, levels.mapped)):
            side |= {f"{prefix}{name}": table[name] for name in student.vectors}
    return rows


def _levels(table: dict[str, Tensor]) -> Levels:
    """What `add_levels` has put among the rows; without maps."""
    parts = ({n.removeprefix(prefix): x for n, x in table.items() if n.startswith(prefix)} for prefix in _PREFIXES)
    return Levels({}, *parts)


def gathered_levels(levels: Levels) -> Levels:
    """Vectors of all ranks; maps stay local, since only per-sample distances read them."""
    tables = levels.vectors, levels.mapped
    tensors = iter(gathered(*(x for table in tables for x in table.values())))
    return Levels(levels.maps, *({name: next(tensors) for name in table} for table in tables))


def embedding_grams(image: Tensor, text: Tensor) -> Grams:
    """Image-image, text-text and image-text cosines of CLIP embeddings, [B,E] twice."""
    image, text = (F.normalize(x, dim=-1) for x in (image, text))
    return similar(image, image), similar(text, text), similar(image, text)
