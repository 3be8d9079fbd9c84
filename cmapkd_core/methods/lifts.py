"""From the student's joint space into the teacher's, used by a loss and never exported.

    n(h(x)), h linear from E to E', x the raw projection of the tower, n to unit length

As CLIP-KD releases it: a modality has its own h, which reads the features before they are made unit vectors. Of a unit
vector its signal would be as small as its bias, and unrelated features would look alike at the start.

With `method.one_map` both have one h (docs/decisions/0035). Then a picture and a caption that the teacher has side by
side are so in the student's space too; with one each, only the task sees that they belong together.
Shapes: b local batch, B global batch, E and E' the widths of the student's and the teacher's joint space,
of several teachers all of theirs beside each other.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd_core.methods.base import Rows, gathered
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.features import Features
from cmapkd_core.models.frozen_teacher import Teacher


class Lift(nn.Linear):
    """h of one modality, where the widths differ."""

    def own(self, features: Features) -> Tensor:
        """Unit vectors of the local batch in the teacher's space, [b,E']."""
        return F.normalize(self(raw_of(features).float()), dim=-1)

    def into(self, raw: Tensor, embedding: Tensor) -> Tensor:
        """Unit vectors of all ranks in the teacher's space, [B,E'].

        Args:
            raw: projections of the local batch, [b,E].
            embedding: its unit embeddings, gathered already, [B,E].
        """
        (lifted,) = gathered(self(raw.float()))
        return F.normalize(lifted, dim=-1)


class OneMap(Lift):
    """h of both modalities, where the widths differ.

    It starts orthogonal, so that angles in the student's space are those in the teacher's where that is the wider one;
    without a bias, which would add the same to pictures and captions.
    """

    def __init__(self, own_width: int, teacher_width: int) -> None:
        super().__init__(own_width, teacher_width, bias=False)
        nn.init.orthogonal_(self.weight)


class NoLift(nn.Module):
    """The same where the widths are equal: the student's embedding lies in the teacher's space, nothing is learned."""

    def own(self, features: Features) -> Tensor:
        """The local batch's embeddings themselves, [b,E]."""
        return F.normalize(features.embedding.float(), dim=-1)

    def into(self, raw: Tensor, embedding: Tensor) -> Tensor:
        """`embedding` itself, [B,E], whatever raw [b,E]."""
        return F.normalize(embedding, dim=-1)


class Lifts(nn.Module):
    """h_v and h_t; one module under both names with `one_map`."""

    def __init__(self, student: Backbone, teacher: Teacher, one_map: bool) -> None:
        super().__init__()
        widths = student.spec.embed_dim, teacher.width
        self.image: Lift | NoLift
        self.text: Lift | NoLift
        if widths[0] == widths[1]:
            self.image, self.text = NoLift(), NoLift()
        elif one_map:
            self.image = self.text = OneMap(*widths)
        else:
            self.image, self.text = Lift(*widths), Lift(*widths)

    def forward(self, rows: Rows, image: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """Images and captions of all ranks in the teacher's space, [B,E'] each.

        Args:
            rows: local, with `image_raw` and `text_raw` (`add_raw`).
            image, caption: their unit embeddings, gathered, [B,E].
        """
        return self.image.into(rows.student["image_raw"], image), self.text.into(rows.student["text_raw"], caption)

    def advice(self) -> list[str]:
        """What to know of two maps of a narrower student, a line; nothing of one, or of none."""
        narrower = isinstance(self.image, Lift) and self.image.in_features < self.image.out_features
        if self.image is self.text or not narrower:
            return []
        return [
            f"the student's embedding has {self.image.in_features} numbers, the teacher's {self.image.out_features}: "
            "pictures and captions are led there by a map each; method.one_map=true has one for both, which was better "
            "where it was measured (docs/method.md)"
        ]

    def own(self, vision: Features, text: Features) -> tuple[Tensor, Tensor]:
        """The local batch's images and captions in the teacher's space, [b,E'] each."""
        return self.image.own(vision), self.text.own(text)


def raw_of(features: Features) -> Tensor:
    """A tower's projections before they are made unit vectors, [b,E]."""
    assert features.raw is not None, "a tower's features carry its raw projection"
    return features.raw


def add_raw(rows: Rows, vision: Features, text: Features) -> Rows:
    """The rows with what `Lifts` reads: `image_raw` and `text_raw`, [b,E]."""
    rows.student |= {"image_raw": raw_of(vision), "text_raw": raw_of(text)}
    return rows
