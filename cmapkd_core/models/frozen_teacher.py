"""The frozen teacher and its outputs that losses take as targets.

Shapes: b local batch, E the teacher's embedding width, of several teachers the sum of theirs. The teacher is never a
part of a method: it is in no optimiser, no checkpoint of a student, and gives every tensor without a graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd_core.config import TEXT_LEVELS, VISION_LEVELS
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import Levels, LevelTower
from cmapkd_core.models.features import Features
from cmapkd_core.models.level_codes import decoded
from cmapkd_core.models.pyramid import needed


@dataclass
class Embeddings:
    """The teacher's embeddings of a batch of pairs, computed live or read from a cache.

    image, text: unit embeddings [b,E]. scale: exp of its logit scale, a scalar.

    Of K teachers an embedding is that of all of them: each one's unit embedding beside the others', made a unit vector
    again. scale: [K]. widths: of each one's part of it; () of a single teacher.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    widths: tuple[int, ...] = field(default=(), kw_only=True)

    def each(self, x: Tensor) -> list[Tensor]:
        """Vectors [n,E] in the space of all teachers as unit vectors in that of each, K of [n,E_k].

        Of a single teacher `x` itself.
        """
        return [F.normalize(part, dim=-1) for part in x.split(self.widths, dim=-1)] if self.widths else [x]

    def scales(self) -> list[Tensor]:
        """The scale of each, K scalars."""
        return list(self.scale.unbind()) if self.widths else [self.scale]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor:
            """Only called for what the targets lack."""
            raise AttributeError(
                f"the method reads '{name}' of its teacher targets, which are {type(self).__name__} by its row of "
                "METHODS in cmapkd_core/method_specs.py: set the row's `targets`"
            )


@dataclass
class PictureTargets:
    """Of pictures without captions: unit embeddings [b,E] and maps P_i [b,W,h,h] of the active levels, by name."""

    image: Tensor
    maps: dict[str, Tensor]


@dataclass
class LevelTargets(Embeddings):
    """Embeddings and levels, computed live or read from a cache.

    level_scale: exp(s) of the teacher's bridge. levels: its active levels, mapped by its own bridge.
    alpha: [4,4] compatibility of P_i with L_j, sums to 1. pictures: of those that come without captions, if any.
    """

    level_scale: Tensor
    levels: Levels
    alpha: Tensor
    pictures: PictureTargets | None = field(default=None, kw_only=True)


@dataclass
class Targets(LevelTargets):
    """All of the teacher's outputs for a batch of pairs; only live.

    vision, language: what its towers gave (taps, pooled states).
    """

    vision: Features
    language: Features


TargetsT = TypeVar("TargetsT", bound=Embeddings)
# What a method's row may declare as its `targets`, and what it then gets.
KINDS: dict[str, type[Embeddings]] = {"towers": Targets, "levels": LevelTargets, "embeddings": Embeddings}


def narrowed(targets: Embeddings, kind: type[TargetsT]) -> TargetsT:
    """Of the targets of b pairs what `kind` has and no more, the same tensors [b,...].

    So a method meets the same live, where the teacher gives all that it has, as with a cache.
    """
    return kind(**{own.name: getattr(targets, own.name) for own in fields(kind)})


def diagonal_prior() -> Tensor:
    """The paper's compatibility: 1 for i = j, 0.5 otherwise, normalised, [4,4]."""
    table = torch.full((len(VISION_LEVELS), len(TEXT_LEVELS)), 0.5)
    return (table + 0.5 * torch.eye(len(VISION_LEVELS))) / (table.sum() + 0.5 * len(VISION_LEVELS))


def beside(embeddings: Sequence[Tensor]) -> Tensor:
    """Unit embeddings of several teachers [n,E_k] as one of all of them, [n,E]; each weighs the same in a cosine."""
    return F.normalize(torch.cat([x.float() for x in embeddings], dim=-1), dim=-1)


class Teacher(nn.Module):
    """Backbone, fitted levels and compatibility of the teacher, frozen and in eval mode for good.

    further: the towers of further teachers, of which there are embeddings alone (ensemble.py).
    classes: unit text features of the data's classes [C,E]; none but for a method that compares classes.
    """

    alpha: Tensor
    classes: Tensor

    def __init__(self, backbone: Backbone, levels: LevelTower, alpha: Tensor, further: Sequence[Backbone] = ()) -> None:
        """alpha: [4,4] compatibility of P_i with L_j."""
        super().__init__()
        self.backbone, self.levels, self._further = backbone, levels, nn.ModuleList(further)
        self.register_buffer("alpha", alpha)
        self.register_buffer("classes", torch.zeros(0, backbone.spec.embed_dim))
        self.amp: torch.dtype | None = None  # the towers' autocast type; what the losses see is fp32
        self.requires_grad_(False)
        self.eval()

    @property
    def further(self) -> list[Backbone]:
        """Those beside `backbone`, in order."""
        return [cast(Backbone, module) for module in self._further]

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the embedding of each teacher."""
        return tuple(one.spec.embed_dim for one in (self.backbone, *self.further))

    @property
    def width(self) -> int:
        """Of an embedding of all teachers, E."""
        return sum(self.widths)

    @torch.no_grad()
    def image_of(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Unit embeddings [b,E_k] by one of the teachers of images [b,3,h,w] in its own form; fp32."""
        with self._autocast(images):
            return backbone.vision(images).embedding.float()

    @torch.no_grad()
    def text_of(self, backbone: Backbone, tokens: Tensor) -> Tensor:
        """The same of captions [b,N]."""
        with self._autocast(tokens):
            return backbone.text(tokens).embedding.float()

    @torch.no_grad()
    def joined(self, targets: TargetsT, outputs: Sequence[dict[str, Tensor]]) -> TargetsT:
        """The targets with the embeddings of all teachers.

        Args:
            targets: those of the first one.
            outputs: of each further one `image` and `text` [b,E_k], live or from a cache.
        """
        if not outputs:
            return targets
        image, text = (beside([getattr(targets, n), *(other[n] for other in outputs)]) for n in ("image", "text"))
        scales = [one.scale().to(image.device) for one in self.further]
        scale = torch.stack([targets.scale, *scales])
        return replace(targets, image=image, text=text, scale=scale, widths=self.widths)

    @torch.no_grad()
    def targets(self, images: Tensor, tokens: Tensor, levels: tuple[str, ...]) -> Targets:
        """Live targets of images [b,3,h,w] and tokens [b,N] in the teacher's own form, at the active `levels`; fp32."""
        with self._autocast(images):
            vision, text = self.backbone.vision(images), self.backbone.text(tokens)
            computed = self.levels(vision, text, levels).float()
        scale, level_scale = self.backbone.scale(), self.levels.bridge.scale()
        vision, text = vision.float(), text.float()
        return Targets(vision.embedding, text.embedding, scale, level_scale, computed, self.alpha, vision, text)

    @torch.no_grad()
    def image_outputs(self, images: Tensor, levels: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """What a cache keeps of images [b,3,h,w]: `image` [b,E] and the laterals [b,W,h,h] of `levels`."""
        with self._autocast(images):
            vision = self.backbone.vision(images)
            laterals = self.levels.pyramid.laterals_of(vision.taps, levels)
        return {"image": vision.embedding.float(), **{name: x.float() for name, x in laterals.items()}}

    @torch.no_grad()
    def text_outputs(self, tokens: Tensor, levels: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """What a cache keeps of captions [b,N]: `text` [b,E] and the vectors [b,W] of `levels`."""
        with self._autocast(tokens):
            text = self.backbone.text(tokens)
            vectors = self.levels.hierarchy(text, levels)
        return {"text": text.embedding.float(), **{name: x.float() for name, x in vectors.items()}}

    @torch.no_grad()
    def cached_targets(self, cached: dict[str, Tensor], levels: tuple[str, ...]) -> LevelTargets:
        """The targets of a batch from what `image_outputs` and `text_outputs` gave once; the towers do not run.

        cached: by name, `image` and `text` [b,E], laterals [b,W,h,h] and text levels [b,W]; levels as
            `level_codes` gives them.
        """
        with self._autocast(cached["image"]):
            laterals = {name: decoded(cached, name) for name in needed(levels)}
            states = {name: decoded(cached, name) for name in TEXT_LEVELS if name in levels}
            merged = self.levels.bridged(*self.levels.pyramid.merge(laterals, levels), states).float()
        image, text = (cached[name].float() for name in ("image", "text"))
        scale, level_scale = self.backbone.scale(), self.levels.bridge.scale()
        return LevelTargets(image, text, scale.to(image.device), level_scale, merged, self.alpha)

    @torch.no_grad()
    def of_pictures(self, outputs: dict[str, Tensor], levels: tuple[str, ...]) -> PictureTargets:
        """The targets of pictures from what `image_outputs` gave, now or once; by name, as of `cached_targets`."""
        with self._autocast(outputs["image"]):
            laterals = {name: decoded(outputs, name) for name in needed(levels)}
            maps, _ = self.levels.pyramid.merge(laterals, levels)
        return PictureTargets(outputs["image"].float(), {name: x.float() for name, x in maps.items()})

    def _autocast(self, x: Tensor) -> contextlib.AbstractContextManager[object]:
        """Of the device of x [..]."""
        return contextlib.nullcontext() if self.amp is None else torch.autocast(x.device.type, self.amp)
