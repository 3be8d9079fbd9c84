"""What a frozen teacher reads to fill a store: all fixed crops and all captions of a split, a part after another.

One stream for all parts, so that workers decode the next part's pictures while the teacher is at this one's. A chunk
goes through the teacher at once and never crosses a part: what a part holds does not depend on which others are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from cmapkd_core.data.augment import canvas, normalise
from cmapkd_core.data.feed import Feed, Items
from cmapkd_core.data.fixed_crops import fixed_pixels
from cmapkd_core.data.loader import Side
from cmapkd_core.data.pixels import shown_pixels
from cmapkd_core.data.shards import CorruptSampleError, ShardSet
from cmapkd_core.errors import BadImageError


@dataclass(frozen=True)
class Chunk:
    """All crops of consecutive pictures or, where `captions` says how many, some of their captions.

    skipped: captions of these pictures that other chunks have.
    """

    rows: range
    captions: int = 0
    skipped: int = 0


def caption_counts(shards: ShardSet, split: str) -> np.ndarray:
    """How many captions each picture of a split has, int64 [n]."""
    return np.asarray(pc.list_value_length(shards.table(split)["captions"]).to_numpy(), dtype=np.int64)


def chunks_of(rows: range, counts: np.ndarray, pictures: int, captions: int) -> list[Chunk]:
    """The chunks of a part, pictures first.

    Args:
        counts: captions of each picture, int64 [n].
        pictures, captions: of a chunk; the last has the rest.
    """
    picture_chunks = [Chunk(rows[start : start + pictures]) for start in range(0, len(rows), pictures)]
    ends = counts[rows.start : rows.stop].cumsum()
    caption_chunks = []
    for start in range(0, int(ends[-1]), captions):
        stop = min(start + captions, int(ends[-1]))
        first, last = (int(i) for i in np.searchsorted(ends, (start, stop - 1), side="right"))
        before = int(ends[first - 1]) if first else 0
        caption_chunks.append(Chunk(rows[first : last + 1], stop - start, start - before))
    return [*picture_chunks, *caption_chunks]


def teacher_inputs(
    shards: ShardSet,
    split: str,
    side: Side,
    chunks: Sequence[Chunk],
    *,
    crops: int,
    crop_scale: tuple[float, float],
    workers: int,
    max_pixels: int,
    device: torch.device | str = "cpu",
    pictures: np.ndarray | None = None,
) -> Iterator[Tensor]:
    """What the teacher reads of each chunk, in order, on `device`.

    pictures: positions in the split of those that chunks count, int64 [m]; None: they count all of it.

    Of b pictures float [b * crops, 3, size, size], zeros of a corrupt one: training does not use it either, see
    `TrainLoader`. Of captions int64 [c, context length].
    """
    rows = np.arange(shards.count(split)) if pictures is None else pictures
    items = _Chunks(shards, split, side, chunks, crops, crop_scale, max_pixels, rows)
    made = Feed(items, workers, device).items(0, len(chunks))
    for chunk, tensor in zip(chunks, made, strict=True):
        moved = tensor.to(device, non_blocking=True)
        yield moved if chunk.captions else normalise(moved, side.view)


class _Chunks(Items[Tensor]):
    def __init__(
        self,
        shards: ShardSet,
        split: str,
        side: Side,
        chunks: Sequence[Chunk],
        crops: int,
        crop_scale: tuple[float, float],
        max_pixels: int,
        pictures: np.ndarray,
    ) -> None:
        self.pictures = pictures
        self.shards, self.split, self.side, self.chunks = shards, split, side, chunks
        self.crops, self.crop_scale, self.max_pixels = crops, crop_scale, max_pixels
        self.hashes = shards.key_hashes(split)

    def make(self, number: int) -> Tensor:
        """uint8 pixels [b * crops, 3, size, size], or tokens."""
        chunk = self.chunks[number]
        if chunk.captions:
            texts = [text for i in chunk.rows for text in self._captions(i)]
            return self.side.tokenize(texts[chunk.skipped : chunk.skipped + chunk.captions])
        pixels = canvas(len(chunk.rows) * self.crops, self.side.view.size)
        for slots, row in zip(pixels.split(self.crops), chunk.rows, strict=True):
            self._crops(int(self.pictures[row]), slots)
        return pixels

    def _captions(self, number: int) -> list[str]:
        return self.shards.captions(self.split, int(self.pictures[number]))

    def _crops(self, row: int, slots: Tensor) -> None:
        """All crops of a picture into uint8 [crops, 3, size, size]; zeros of a corrupt one."""
        renderings, key_hash = [self.side.view.rendering], int(self.hashes[row])
        try:
            with shown_pixels(self.shards.read_image(self.split, row), self.max_pixels) as image:
                for crop, slot in enumerate(slots):
                    fixed_pixels(image, renderings, self.crop_scale, key_hash, crop, [slot])
        except (CorruptSampleError, BadImageError):
            slots.zero_()
