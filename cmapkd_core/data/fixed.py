"""Fixed crops of the training pictures, and a teacher's embeddings of them made once (dataset reinforcement).

A picture has crops 0..n-1; a crop's box follows from the picture's key and its number alone, so an embedding of it
serves every run. Training then draws one of them for each epoch (`order.crop_of`), and the student sees exactly
the pixels that the stored embedding was made of.

Shapes: N pictures of the training split in table order, n crops each, M captions of all of them, E embedding width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmapkd_core.data.augment import View, normalise, train_pixels
from cmapkd_core.data.feed import Feed, Items
from cmapkd_core.data.images import BadImageError, decode
from cmapkd_core.data.order import crop_seed, hashes
from cmapkd_core.data.shards import CorruptSampleError, ShardSet
from cmapkd_core.errors import InputError

STORE = "embeddings.safetensors"


def fixed_pixels(
    image: Image.Image, sizes: Sequence[int], scale: tuple[float, float], key_hash: int, crop: int
) -> list[Tensor]:
    """Fixed crop number `crop` of the picture with this hash of its key, at each size: uint8 [3, size, size] each."""
    return train_pixels(image, sizes, scale, torch.Generator().manual_seed(crop_seed(key_hash, crop)))


def crop_batches(
    shards: ShardSet,
    split: str,
    view: View,
    rows: Sequence[int],
    *,
    crops: int,
    crop_scale: tuple[float, float],
    batch: int,
    workers: int,
    max_pixels: int,
) -> Iterator[Tensor]:
    """All fixed crops of the pictures `rows`, float [b, crops, 3, size, size], b of them at a time.

    A corrupt picture gives zeros: training does not use it either, see `TrainLoader`.
    """
    items = _CropBatches(shards, split, view, rows, crops, crop_scale, batch, max_pixels)
    yield from Feed(items, workers).items(0, -(-len(rows) // batch))


class _CropBatches(Items[Tensor]):
    def __init__(
        self,
        shards: ShardSet,
        split: str,
        view: View,
        rows: Sequence[int],
        crops: int,
        crop_scale: tuple[float, float],
        batch: int,
        max_pixels: int,
    ) -> None:
        self.shards, self.split, self.view, self.rows = shards, split, view, rows
        self.crops, self.crop_scale, self.batch, self.max_pixels = crops, crop_scale, batch, max_pixels
        keys = shards.table(split)["key"]
        self.hashes = hashes([keys[i].as_py() for i in rows])

    def make(self, number: int) -> Tensor:
        places = range(len(self.rows))[number * self.batch : (number + 1) * self.batch]
        return normalise(torch.stack([self._crops(place) for place in places]), self.view)

    def _crops(self, place: int) -> Tensor:
        sizes, key_hash = [self.view.size], int(self.hashes[place])
        try:
            image = decode(self.shards.read_image(self.split, self.rows[place]), self.max_pixels)
        except (CorruptSampleError, BadImageError):
            return torch.zeros(self.crops, 3, self.view.size, self.view.size, dtype=torch.uint8)
        found = [fixed_pixels(image, sizes, self.crop_scale, key_hash, crop)[0] for crop in range(self.crops)]
        return torch.stack(found)


class EmbeddingStore:
    """A teacher's unit embeddings: image [N,n,E] of the fixed crops, text [M,E] of the captions, fp32.

    `open` makes one. The file stays on disk and is mapped into memory, for all loader workers together.
    """

    def __init__(self, image: Tensor, text: Tensor, offsets: Tensor) -> None:
        self.image, self.text, self.offsets = image, text, offsets

    @classmethod
    def open(cls, path: Path, made_from: Mapping[str, str]) -> EmbeddingStore:
        """The store at `path`.

        Args:
            made_from: what it must have been made from, as `write_store` was told.

        Raises:
            InputError: it was made from something else.
        """
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("made_from", "{}"))
            tensors = {name: file.get_tensor(name) for name in ("image", "text", "offsets")}
        wrong = [f"{n}: {found.get(n)} -> {made_from.get(n)}" for n in made_from if found.get(n) != made_from[n]]
        if wrong:
            lines = "\n  ".join(wrong)
            raise InputError(
                f"{path} holds a teacher's embeddings made from something else than this run has:\n  {lines}\n"
                "run stage teacher with this recipe and these shards, or set teacher_fit.views=0"
            )
        return cls(**tensors)

    def rows(self, index: np.ndarray, crops: Sequence[int], captions: Sequence[int]) -> dict[str, Tensor]:
        """image [b,E] and text [b,E] of samples by position in the split, number of the crop and of the caption."""
        places = torch.from_numpy(index)
        return {
            "image": self.image[places, torch.tensor(crops)],
            "text": self.text[self.offsets[places] + torch.tensor(captions)],
        }


def write_store(path: Path, image: Tensor, text: Tensor, captions: Sequence[int], made_from: Mapping[str, str]) -> None:
    """Write an `EmbeddingStore`.

    Args:
        image, text: as in the store.
        captions: number of captions of each picture, N of them.
        made_from: what decides the embeddings, such as digests; `open` compares it.
    """
    offsets = torch.tensor([0, *captions]).cumsum(0)
    assert int(offsets[-1]) == len(text), "one embedding a caption"
    tensors = {"image": image.float(), "text": text.float(), "offsets": offsets}
    save_file({name: x.contiguous() for name, x in tensors.items()}, path, {"made_from": json.dumps(dict(made_from))})
