"""Batches of pictures and tokens for training and evaluation.

Step n of a run has the same samples, captions and crops whatever the number of workers and processes and
wherever the run was resumed: everything follows from (seed, n) and the keys, see `order`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cmapkd_core.data.augment import View, eval_pixels, normalise, train_pixels
from cmapkd_core.data.images import BadImageError, decode
from cmapkd_core.data.order import Order, chosen, hashes, sample_seed
from cmapkd_core.data.shards import CorruptSampleError, ShardSet
from cmapkd_core.errors import InputError

_ATTEMPTS = 100  # samples tried in the place of a corrupt one
_SHOWN = 5
T = TypeVar("T")


@dataclass(frozen=True)
class Side:
    """How one model wants its inputs; picklable, so that workers can have it.

    `tokenize` maps captions to int64 [n, context length].
    """

    view: View
    tokenize: Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step.

    Attributes:
        keys: of the samples, b of them.
        index: positions in the split's table, int64 [b].
        images: float [b, 3, size, size] by side; all sides show the same crop.
        tokens: int64 [b, context length] by side, of the same caption.
        replaced: (key, reason) of corrupt samples that others stand in for.
    """

    keys: list[str]
    index: Tensor
    images: dict[str, Tensor]
    tokens: dict[str, Tensor]
    replaced: list[tuple[str, str]]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        images = {name: tensor.to(device, non_blocking=True) for name, tensor in self.images.items()}
        tokens = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tokens.items()}
        return replace(self, index=self.index.to(device), images=images, tokens=tokens)


class TrainLoader:
    """Shuffled, augmented batches of one rank, addressed by global step.

    Args:
        shards: the data set.
        sides: by name; usually "student" and "teacher".
        split: which split to train on.
        batch: global; a rank gets batch / world samples.
        fraction: share of the split's pairs that take part, chosen by key and not by seed.
        crop_scale: share of the area that a crop keeps.
        workers: processes that decode; 0: none, in this one.
        max_pixels: a larger picture counts as corrupt.
        quarantine_bound: share of the samples that may turn out corrupt before `batches` raises.

    Raises:
        InputError: no such split or nothing in it, fewer pairs than a batch, a batch that does not divide.
    """

    def __init__(
        self,
        shards: ShardSet,
        sides: dict[str, Side],
        *,
        split: str = "train",
        batch: int,
        rank: int,
        world: int,
        seed: int,
        fraction: float,
        crop_scale: tuple[float, float],
        workers: int,
        max_pixels: int,
        quarantine_bound: float,
    ) -> None:
        key_hashes = hashes(shards.keys(split))
        ids = chosen(key_hashes, fraction)
        numbers = shards.shard_numbers(split)[ids]
        order = Order(ids, key_hashes[ids], numbers, batch=batch, rank=rank, world=world, seed=seed)
        self.steps_per_epoch, self.count = order.steps_per_epoch, len(ids)
        self._feed = _Feed(_TrainBatches(shards, sides, split, order, crop_scale, max_pixels), workers)
        self._bound = quarantine_bound
        self._corrupt: dict[str, str] = {}

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of global steps start..stop-1; the first costs the same wherever it is.

        Raises:
            InputError: more corrupt samples than the bound allows, or a shard that is missing.
        """
        for batch in self._feed.items(start, stop):
            self._corrupt.update(batch.replaced)
            if len(self._corrupt) > self._bound * self.count:
                listed = "\n  ".join(f"{key}: {reason}" for key, reason in list(self._corrupt.items())[:_SHOWN])
                raise InputError(
                    f"{len(self._corrupt)} of {self.count} training samples are corrupt, more than "
                    f"data.quarantine_bound={self._bound} allows:\n  {listed}\nRun stage prepare again"
                )
            yield batch


class TableLoader:
    """Shuffled batches from columns in memory, with the interface of TrainLoader.

    Args:
        columns: tensors of equal first dimension.
    """

    def __init__(self, columns: dict[str, Tensor], *, batch: int, rank: int, world: int, seed: int) -> None:
        self.count = len(next(iter(columns.values())))
        rows = np.arange(self.count)
        self._order = Order(
            rows, rows.astype(np.uint64), np.zeros_like(rows), batch=batch, rank=rank, world=world, seed=seed
        )
        self._columns = columns
        self.steps_per_epoch = self._order.steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        """This rank's rows of global steps start..stop-1."""
        for number in range(start, stop):
            rows = torch.from_numpy(self._order.step(number)[1])
            yield {name: column[rows] for name, column in self._columns.items()}


def eval_batches(shards: ShardSet, split: str, side: Side, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All pictures of a split in table order: (index int64 [b], images float [b, 3, size, size]), the last b smaller.

    Raises:
        InputError: no such split, or a corrupt sample: an evaluation over fewer pictures would be another one.
    """
    count = shards.count(split)
    feed = _Feed(_EvalBatches(shards, split, side.view, batch), workers)
    yield from feed.items(0, -(-count // batch))


class _Items(Dataset[T | InputError]):
    """Numbered batches; an InputError is an item too, so that it leaves a worker as it is."""

    def __getitem__(self, number: int) -> T | InputError:
        try:
            return self.make(number)
        except InputError as error:
            return error

    def make(self, number: int) -> T:
        raise NotImplementedError


class _Range(Sampler[int]):
    def __init__(self) -> None:
        self.range = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.range)

    def __len__(self) -> int:
        return len(self.range)


class _Feed(Generic[T]):
    """Items by number, made here or ahead by workers that live as long as this object."""

    def __init__(self, items: _Items[T], workers: int) -> None:
        self._items, self._range = items, _Range()
        self._loader: DataLoader[T | InputError] | None = None
        if workers:
            self._loader = DataLoader(
                items,
                batch_size=None,
                sampler=self._range,
                num_workers=workers,
                persistent_workers=True,
                generator=torch.Generator(),  # else every pass would draw from the global one, and resuming would show
            )

    def items(self, start: int, stop: int) -> Iterator[T]:
        self._range.range = range(start, stop)
        ahead = self._loader if self._loader is not None else map(self._items.__getitem__, self._range.range)
        for item in ahead:
            if isinstance(item, InputError):
                raise item
            yield item


class _TrainBatches(_Items[Batch]):
    def __init__(
        self,
        shards: ShardSet,
        sides: dict[str, Side],
        split: str,
        order: Order,
        crop_scale: tuple[float, float],
        max_pixels: int,
    ) -> None:
        self.shards, self.sides, self.split, self.order = shards, sides, split, order
        self.crop_scale, self.max_pixels = crop_scale, max_pixels
        self.sizes = sorted({side.view.size for side in sides.values()})
        self.keys = shards.table(split)["key"]

    def make(self, number: int) -> Batch:
        epoch, ids = self.order.step(number)
        pixels = {size: torch.empty(len(ids), 3, size, size, dtype=torch.uint8) for size in self.sizes}
        used, captions, replaced = ids.copy(), [], []
        for slot in range(len(ids)):
            for attempt in range(_ATTEMPTS):
                index = int(ids[slot]) if attempt == 0 else self.order.substitute(number, slot, attempt)
                try:
                    captions.append(self._sample(index, epoch, slot, pixels))
                    used[slot] = index
                    break
                except (CorruptSampleError, BadImageError) as error:
                    replaced.append((self.keys[index].as_py(), str(error)))
            else:
                raise InputError(f"{_ATTEMPTS} corrupt samples in a row, the last: {replaced[-1][1]}")
        views = {name: side.view for name, side in self.sides.items()}
        return Batch(
            keys=[self.keys[int(i)].as_py() for i in used],
            index=torch.from_numpy(used),
            images={name: normalise(pixels[view.size], view) for name, view in views.items()},
            tokens={name: side.tokenize(captions) for name, side in self.sides.items()},
            replaced=replaced,
        )

    def _sample(self, index: int, epoch: int, slot: int, pixels: dict[int, Tensor]) -> str:
        """Write one sample's crop into `pixels` at every size; returns the caption drawn for it."""
        image = decode(self.shards.read_image(self.split, index), self.max_pixels)
        generator = torch.Generator().manual_seed(sample_seed(self.order.seed, epoch, index))
        for size, array in zip(self.sizes, train_pixels(image, self.sizes, self.crop_scale, generator), strict=True):
            pixels[size][slot] = array
        captions = self.shards.captions(self.split, index)
        return captions[int(torch.randint(len(captions), (), generator=generator))]


class _EvalBatches(_Items[tuple[Tensor, Tensor]]):
    def __init__(self, shards: ShardSet, split: str, view: View, batch: int) -> None:
        self.shards, self.split, self.view, self.batch = shards, split, view, batch

    def make(self, number: int) -> tuple[Tensor, Tensor]:
        first = number * self.batch
        index = range(first, min(first + self.batch, self.shards.count(self.split)))
        pixels = torch.stack([self._pixels(i) for i in index])
        return torch.tensor(index), normalise(pixels, self.view)

    def _pixels(self, i: int) -> Tensor:
        data = self.shards.read_image(self.split, i)
        try:
            return eval_pixels(decode(data, self.shards.max_pixels), self.view.size)
        except BadImageError as error:
            key = self.shards.table(self.split)["key"][i].as_py()
            raise InputError(f"sample {key} of split {self.split}: {error}") from None
