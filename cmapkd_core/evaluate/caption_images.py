"""What a frozen image tower gives to a caption decoder, computed once where it fits into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd_core.data.loader import eval_batches
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.evaluate.memory import free_memory
from cmapkd_core.evaluate.subject import Subject
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.progress import Progress

HELD = 12 * 2**30  # bytes kept at most, and never more than half of the free memory; COCO with ViT-B/16 takes 8.7 GB


@dataclass(frozen=True)
class ImageFeatures:
    """The tower's answer to B images; P positions of C channels and the joint embedding, fp16, each layer-normed.

    The norm takes away the scale of a tower, and with it the danger that fp16 overflows.
    """

    maps: Tensor  # [B, P, C]
    embeddings: Tensor  # [B, E]

    def to(self, device: torch.device) -> ImageFeatures:
        """The same on a device."""
        return ImageFeatures(self.maps.to(device, non_blocking=True), self.embeddings.to(device, non_blocking=True))

    def __getitem__(self, rows: Tensor) -> ImageFeatures:
        """Those of some rows, long [b] -> B = b."""
        return ImageFeatures(self.maps[rows], self.embeddings[rows])


@torch.no_grad()  # not inference mode: what comes out of that cannot train a decoder
def tower_features(backbone: Backbone, images: Tensor, grid: int) -> ImageFeatures:
    """Images [B, 3, H, H] through the tower; a map with more than `grid` positions a side is averaged down to it."""
    features = backbone.vision(images)
    final = backbone.final_map(features).float()
    pooled = F.adaptive_avg_pool2d(final, tuple(min(side, grid) for side in final.shape[2:]))  # type: ignore[arg-type]
    parts = pooled.flatten(2).transpose(1, 2), features.embedding.float()
    return ImageFeatures(*(F.layer_norm(part, part.shape[-1:]).half() for part in parts))


def image_features(subject: Subject, split: str, rows: Sequence[int], batch: int) -> Iterator[ImageFeatures]:
    """The pictures at `rows` of a split's table, in that order, `batch` at a time, on the subject's device.

    Raises:
        InputError: a stored image that does not match its checksum.
    """
    backbone, grid = subject.backbone, subject.config.captioning.grid
    given = (batch, subject.workers, rows, subject.device)
    for _, images in eval_batches(subject.shards, split, side_of(backbone), *given):
        yield tower_features(backbone, images, grid)


class TrainingFeatures:
    """The training pictures for as many epochs as asked: held in memory, or seen again in every epoch.

    Which of the two changes speed alone: both give the same fp16 numbers up to the rounding of a batch's size.

    Attributes:
        example: of one picture, for its sizes.
        bytes: what all pictures take.
        held: whether they are kept.
    """

    def __init__(self, subject: Subject, rows: Sequence[int], most: int = HELD) -> None:
        """`rows` are places in the table of split `train`; `most` bounds the bytes that are kept."""
        self._subject, self._rows = subject, list(rows)
        self.example = next(image_features(subject, "train", self._rows[:1], 1))
        self.bytes = 2 * len(self._rows) * (self.example.maps[0].numel() + self.example.embeddings[0].numel())
        self.held = self.bytes <= min(most, free_memory() // 2)
        self._all = self._compute_all() if self.held else self.example

    def _compute_all(self) -> ImageFeatures:
        count = len(self._rows)
        maps, embeddings = self.example.maps, self.example.embeddings
        whole = ImageFeatures(
            maps.new_empty(count, *maps.shape[1:], device="cpu"),
            embeddings.new_empty(count, embeddings.shape[1], device="cpu"),
        )
        batch, done = self._subject.config.batch, 0
        progress = Progress(self._subject.say, "captioning", count, "images")
        for part in image_features(self._subject, "train", self._rows, batch):
            place = slice(done, done + len(part.maps))
            whole.maps[place], whole.embeddings[place] = part.maps.cpu(), part.embeddings.cpu()
            done = place.stop
            progress(done, f"{done}/{count} training images seen")
        return whole

    def batches(self, order: Tensor, batch: int) -> Iterator[tuple[Tensor, ImageFeatures]]:
        """(places [b] in the constructor's rows, their features) on the subject's device, in `order`, long [n]."""
        parts = order.split(batch)
        if self.held:
            yield from ((part, self._all[part].to(self._subject.device)) for part in parts)
        else:
            rows = [self._rows[i] for i in order.tolist()]
            yield from zip(parts, image_features(self._subject, "train", rows, batch), strict=True)
