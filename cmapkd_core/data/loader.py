"""Batches of pictures and tokens for training and evaluation.

Step n of a run has the same samples, captions and crops whatever the number of workers and processes and
wherever the run was resumed: everything follows from (seed, n) and the keys, see `order`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from cmapkd_core.data.ahead import Ahead, BlockFiles, require_room
from cmapkd_core.data.augment import Rendering, View, canvas, eval_pixels, normalise, train_pixels
from cmapkd_core.data.feed import AHEAD, Feed, Items
from cmapkd_core.data.fixed_crops import TeacherCache, fixed_pixels
from cmapkd_core.data.images import shown
from cmapkd_core.data.order import TOO_FEW, Order, chosen, crop_of, sample_seed, withheld
from cmapkd_core.data.pixels import shown_pixels
from cmapkd_core.data.rendered import Rendered, pinned, require_pixels
from cmapkd_core.data.shards import CorruptSampleError, ShardSet
from cmapkd_core.data.wrong_captions import caption_owners
from cmapkd_core.errors import BadImageError, DamagedInput, InputError, again

NO_CACHES: Mapping[str, TeacherCache] = MappingProxyType({})
_ATTEMPTS = 100  # samples tried in the place of a corrupt one
_SHOWN = 5


@dataclass(frozen=True)
class Side:
    """How one model wants its inputs; picklable, so that workers can have it.

    tokenize: captions as int64 [n, context length]. trim: of those the columns that the model has to see, [n, N].
    """

    view: View
    tokenize: Callable[[list[str]], Tensor]
    trim: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step.

    Attributes:
        keys: of the samples, b of them.
        index: positions in the split's table, int64 [b].
        images: float [b, 3, size, size] by side; all sides show the same crop.
        tokens: int64 [b, N] by side, of the same caption; N is the context length, or what the longest caption needs.
        replaced: (key, reason) of corrupt samples that others stand in for.
        cached: the teacher's outputs for these very crops and captions, [b, ...] by name, where the loader has a cache
            of them: unit embeddings `image` and `text` [b, E], and the levels, where the cache has them; of a further
            teacher `NAME/image` and `NAME/text`.
        pictures: b more pictures, which have no caption and so no tokens; None: there are none.
    """

    keys: list[str]
    index: Tensor
    images: dict[str, Tensor]
    tokens: dict[str, Tensor]
    replaced: list[tuple[str, str]]
    cached: dict[str, Tensor] = field(default_factory=dict)
    pictures: Batch | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        images = {name: tensor.to(device, non_blocking=True) for name, tensor in self.images.items()}
        tokens = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tokens.items()}
        cached = {name: tensor.to(device, non_blocking=True) for name, tensor in self.cached.items()}
        index = self.index.to(device, non_blocking=True)
        pictures = self.pictures and self.pictures.to(device)
        return replace(self, index=index, images=images, tokens=tokens, cached=cached, pictures=pictures)

    def part(self, rows: slice) -> Batch:
        """These of its samples, no copies; `replaced` stays with the whole."""
        tables = (self.images, self.tokens, self.cached)
        images, tokens, cached = ({name: tensor[rows] for name, tensor in table.items()} for table in tables)
        pictures = self.pictures and self.pictures.part(rows)
        return Batch(self.keys[rows], self.index[rows], images, tokens, [], cached, pictures)


@dataclass(frozen=True)
class Captions:
    """What becomes of the captions of the pairs that take part, by key and not by seed.

    unpaired: share of them without theirs, which take no part; alone: which alone take part. noise: share of the rest
    that shows another's.
    """

    unpaired: float = 0.0
    alone: bool = False
    noise: float = 0.0

    @property
    def too_few(self) -> str:
        """What to say where fewer take part than a batch has."""
        if not self.unpaired:
            return TOO_FEW
        share = f"data.unpaired={self.unpaired:g}"
        if self.alone:
            return (
                f"{{}} pictures without captions ({share}) are fewer than the {{}} beside a batch of pairs: "
                "withhold more captions by a larger data.unpaired, raise data.fraction, lower optim.batch, or leave "
                "those pictures out with method.unpaired=0"
            )
        return (
            f"{{}} training pairs that keep their captions ({share}) are fewer than one batch of {{}}: lower "
            "data.unpaired or optim.batch, raise data.fraction, or give more pairs"
        )


ALL_CAPTIONS = Captions()


class TrainLoader:
    """Shuffled, augmented batches of one rank, addressed by global step.

    Args:
        shards: the data set.
        sides: by name; usually "student" and "teacher", and further teachers.
        split: which split to train on.
        batch: global; a rank gets batch / world samples.
        fraction: share of the split's pairs that take part, chosen by key and not by seed.
        crop_scale: share of the area that a crop keeps.
        captions: which of those pairs keep theirs; `owners` says whose captions the wrong ones have.
        crops: a picture's fixed crops, of which each epoch shows one; 0: a new crop every time.
        cache: a teacher's outputs for these crops, which the batches then carry.
        further: caches of further teachers by name, which they carry too.
        workers: processes that decode; 0: none, in this one.
        device: where the pictures are normalised, and then are; their bytes go there once for all sides that see them.
        max_pixels: a larger picture counts as corrupt.
        quarantine_bound: share of the samples that may turn out corrupt. A loader knows only what this rank met since
            it started, so who counts for all of them asks `require_few_corrupt`.

    Raises:
        InputError: no such split or nothing in it, a picture without caption, fewer pairs than a batch, a batch
            that does not divide, pictures repacked to less than a side wants, a bound of copies that holds less than
            is read together, captions that cannot be exchanged.
    """

    owners: np.ndarray | None = None  # positions of the pictures whose captions are shown [n]; None: each its own

    def __init__(  # noqa: PLR0913  # what a stream of batches depends on, by name
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
        captions: Captions = ALL_CAPTIONS,
        crops: int = 0,
        cache: TeacherCache | None = None,
        further: Mapping[str, TeacherCache] = NO_CACHES,
        device: torch.device | str = "cpu",
    ) -> None:
        shards.require_captions(split)
        self._views, self._device = {name: side.view for name, side in sides.items()}, torch.device(device)
        require_pixels(shards.manifest.get("repack", 0), self._views, shards.url)
        key_hashes = shards.key_hashes(split)
        ids = chosen(key_hashes, fraction)
        ids = ids[withheld(key_hashes[ids], captions.unpaired) == captions.alone]
        self.owners = caption_owners(shards, split, ids, captions.noise)
        numbers = shards.shard_numbers(split)[ids]
        few = captions.too_few
        order = Order(ids, key_hashes[ids], numbers, batch=batch, rank=rank, world=world, seed=seed, too_few=few)
        self.steps_per_epoch, self.count = order.steps_per_epoch, len(ids)
        draw = _Draw(key_hashes, crop_scale, crops, seed, self.owners)
        caches = ({"": cache} if cache else {}) | {f"{name}/": one for name, one in further.items()}
        require_room(order, BlockFiles(shards, split, caches.values()), AHEAD * workers)
        self._items, self._workers = _TrainBatches(shards, sides, split, order, draw, max_pixels, caches), workers
        self._feed, self._turn = Feed(self._items, workers, self._device), 0
        self.bound = quarantine_bound

    def wrong(self, index: Tensor) -> list[bool] | None:
        """Which of the pictures at these positions [b] show another's caption; None where no picture does."""
        rows = index.cpu().numpy()
        return None if self.owners is None else (self.owners[rows] != rows).tolist()

    def reorder(self, turn: int) -> None:
        """From the next call of `batches` on the pairs of each epoch in another order; 0 is the usual one."""
        if turn != self._turn:
            self._items.reorder(turn)
            # Workers have copies of the order.
            self._feed, self._turn = Feed(self._items, self._workers, self._device), turn

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of global steps start..stop-1; the first costs the same wherever it is.

        Raises:
            InputError: a shard is missing, or a hundred samples in a row are corrupt.
        """
        ahead = Ahead(self._items.order, self._items.files, AHEAD * self._workers)
        for made in ahead.follow(self._feed.items(start, stop), start, stop):
            yield replace(made.batch, images=made.rendered.normalised(self._views, self._device))

    def require_few_corrupt(self, corrupt: Mapping[str, str]) -> None:
        """Raises InputError where more samples are corrupt than the bound allows.

        Args:
            corrupt: by key, with the reason; as far as they are known those of all ranks and of earlier attempts.
        """
        require_few(corrupt, self.count, self.bound)


def require_few(corrupt: Mapping[str, str], count: int, bound: float) -> None:
    """Raises InputError where more of `count` samples are corrupt than the bound allows; `corrupt`: by key."""
    if len(corrupt) > bound * count:
        listed = "\n  ".join(f"{key}: {reason}" for key, reason in list(corrupt.items())[:_SHOWN])
        raise DamagedInput(
            f"{len(corrupt)} of {count} training samples are corrupt, more than "
            f"data.quarantine_bound={bound} allows:\n  {listed}\nSo {again('prepare')}"
        )


Named = Callable[[np.ndarray], list[str]]  # numbers of rows, int64 [b] -> what the rows are called


class TableBatch(dict[str, Tensor]):
    """One rank's rows [b, ...] of a step by column, and what they are called: looked up where someone asks."""

    def __init__(self, columns: dict[str, Tensor], rows: np.ndarray, named: Named) -> None:
        super().__init__(columns)
        self.names = RowNames(rows, named)


@dataclass(frozen=True)
class RowNames(Iterable[str]):
    """Names of rows, which may cost a look into a file: of a skipped update alone they are wanted."""

    rows: np.ndarray
    named: Named

    def __iter__(self) -> Iterator[str]:
        return iter(self.named(self.rows))


def numbered(rows: np.ndarray) -> list[str]:
    """Names of rows that have no other."""
    return [f"row {number}" for number in rows]


class TableLoader:
    """Shuffled batches from columns in memory, with the interface of TrainLoader.

    Args:
        columns: tensors [n, ...] by name, of n rows each.
        named: gives the keys of rows, for messages.
    """

    def __init__(
        self,
        columns: dict[str, Tensor],
        *,
        batch: int,
        rank: int,
        world: int,
        seed: int,
        named: Named = numbered,
    ) -> None:
        self.batch, self.count = batch, len(next(iter(columns.values())))
        rows = np.arange(self.count)
        self._order = Order(
            rows, rows.astype(np.uint64), np.zeros_like(rows), batch=batch, rank=rank, world=world, seed=seed
        )
        self._columns, self._named = columns, named
        self.steps_per_epoch = self._order.steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[TableBatch]:
        """This rank's rows [b, ...] by column, of global steps start..stop-1."""
        for number in range(start, stop):
            rows = self._order.step(number)[1]
            index = torch.from_numpy(rows)
            yield TableBatch({name: column[index] for name, column in self._columns.items()}, rows, self._named)

    def reorder(self, turn: int) -> None:
        """The rows of each epoch in another order; 0 is the usual one."""
        self._order.reorder(turn)

    def require_few_corrupt(self, corrupt: Mapping[str, str]) -> None:
        """Rows of a table cannot be corrupt."""


def eval_batches(
    shards: ShardSet,
    split: str,
    side: Side,
    batch: int,
    workers: int,
    rows: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures of a split: (index int64 [b], images float [b, 3, size, size] on `device`), the last b smaller.

    Args:
        rows: positions in the split's table, in the order wanted; None: all of them in table order.

    Raises:
        InputError: no such split, or a corrupt sample: an evaluation over fewer pictures would be another one.
    """
    chosen = range(shards.count(split)) if rows is None else rows
    feed = Feed(_EvalBatches(shards, split, side.view, batch, chosen), workers, device)
    for index, pixels in feed.items(0, -(-len(chosen) // batch)):
        yield index, normalise(pixels.to(device, non_blocking=True), side.view)


@dataclass(frozen=True)
class _Made:
    """A batch without its images, and those as bytes."""

    batch: Batch
    rendered: Rendered

    def pin_memory(self) -> _Made:
        """The same with its tensors in pinned memory; torch's DataLoader calls it by this name."""
        tokens, cached = pinned(self.batch.tokens), pinned(self.batch.cached)
        # The index too: a copy from other memory would have the rank wait for all that the device was asked before.
        batch = replace(self.batch, index=self.batch.index.pin_memory(), tokens=tokens, cached=cached)
        return _Made(batch, self.rendered.pinned())


@dataclass(frozen=True)
class _Draw:
    """What of a sample an epoch shows: one of its fixed crops or a new one, and one of its captions."""

    hashes: np.ndarray  # of all the split's keys
    scale: tuple[float, float]
    crops: int
    seed: int
    owners: np.ndarray | None  # of the captions, where not all pictures have their own

    def owner(self, index: int) -> int:
        """Position of the picture whose caption is shown."""
        return index if self.owners is None else int(self.owners[index])

    def crop(self, index: int, epoch: int) -> int:
        """Number of the fixed crop; 0 where there are none."""
        return crop_of(int(self.hashes[index]), self.seed, epoch, self.crops) if self.crops else 0

    def pixels(
        self, image: np.ndarray, index: int, crop: int, generator: torch.Generator, into: dict[Rendering, Tensor]
    ) -> None:
        """The crop each way, to where it belongs."""
        renderings, places = list(into), list(into.values())
        if self.crops:
            fixed_pixels(image, renderings, self.scale, int(self.hashes[index]), crop, places)
        else:
            train_pixels(image, renderings, self.scale, generator, places)


class _TrainBatches(Items[_Made]):
    def __init__(
        self,
        shards: ShardSet,
        sides: dict[str, Side],
        split: str,
        order: Order,
        draw: _Draw,
        max_pixels: int,
        caches: Mapping[str, TeacherCache],
    ) -> None:
        """caches: by what stands before their names in a batch."""
        self.shards, self.sides, self.split, self.order = shards, sides, split, order
        self.draw, self.max_pixels, self.caches = draw, max_pixels, caches
        self.renderings = sorted({side.view.rendering for side in sides.values()})
        self.keys = shards.table(split)["key"]
        self.files = BlockFiles(shards, split, caches.values())

    def reorder(self, turn: int) -> None:
        """The same samples in another order."""
        self.order.reorder(turn)
        self.files = BlockFiles(self.shards, self.split, self.caches.values())

    def make(self, number: int) -> _Made:
        self.files.enter(self.order, number)
        epoch, ids = self.order.step(number)
        pixels = {way: canvas(len(ids), way[0]) for way in self.renderings}
        used, shown, replaced = ids.copy(), [], []
        for slot in range(len(ids)):
            for attempt in range(_ATTEMPTS):
                index = int(ids[slot]) if attempt == 0 else self.order.substitute(number, slot, attempt)
                try:
                    shown.append(self._sample(index, epoch, slot, pixels))
                    used[slot] = index
                    break
                except (CorruptSampleError, BadImageError) as error:
                    replaced.append((self.keys[index].as_py(), str(error)))
            else:
                raise DamagedInput(
                    f"{_ATTEMPTS} corrupt samples in a row, the last: {replaced[-1][1]}: {again('prepare')}"
                )
        crops, numbers, captions = (list(column) for column in zip(*shown, strict=True))
        batch = Batch(
            keys=[self.keys[int(i)].as_py() for i in used],
            index=torch.from_numpy(used),
            images={},
            tokens=self._tokens(captions),
            replaced=replaced,
            cached=self._cached(used, crops, numbers),
        )
        return _Made(batch, Rendered(pixels))

    def _cached(self, used: np.ndarray, crops: list[int], captions: list[int]) -> dict[str, Tensor]:
        """What the caches have of samples, of their crops and of their captions by number; [b,...] by name."""
        rows = {start: cache.rows(used, crops, captions, self.draw.owners) for start, cache in self.caches.items()}
        return {start + name: x for start, own in rows.items() for name, x in own.items()}

    def _tokens(self, captions: list[str]) -> dict[str, Tensor]:
        """By side; those with the same tokenizer and the same rule of trimming share them."""
        made = {id(side.tokenize): side.tokenize for side in self.sides.values()}
        tokens = {number: tokenize(captions) for number, tokenize in made.items()}
        trims = {(id(side.tokenize), side.trim) for side in self.sides.values()}
        trimmed = {(n, trim): trim(tokens[n]).contiguous() if trim else tokens[n] for n, trim in trims}
        return {name: trimmed[id(side.tokenize), side.trim] for name, side in self.sides.items()}

    def _sample(self, index: int, epoch: int, slot: int, pixels: dict[Rendering, Tensor]) -> tuple[int, int, str]:
        """Write one sample's crop into `pixels` each way; returns its number, the caption's number and text."""
        generator = torch.Generator().manual_seed(sample_seed(self.order.seed, epoch, index))
        crop = self.draw.crop(index, epoch)
        with shown_pixels(self.shards.read_image(self.split, index), self.max_pixels) as image:
            self.draw.pixels(image, index, crop, generator, {way: own[slot] for way, own in pixels.items()})
        captions = self.shards.captions(self.split, self.draw.owner(index))
        number = int(torch.randint(len(captions), (), generator=generator))
        return crop, number, captions[number]


class _EvalBatches(Items[tuple[Tensor, Tensor]]):
    def __init__(self, shards: ShardSet, split: str, view: View, batch: int, rows: Sequence[int]) -> None:
        self.shards, self.split, self.view, self.batch, self.rows = shards, split, view, batch, rows

    def make(self, number: int) -> tuple[Tensor, Tensor]:
        first = number * self.batch
        index = self.rows[first : first + self.batch]
        pixels = canvas(len(index), self.view.size)
        for slot, i in zip(pixels, index, strict=True):
            slot.copy_(self._pixels(i))
        return torch.tensor(index), pixels

    def _pixels(self, i: int) -> Tensor:
        data = self.shards.read_image(self.split, i)
        try:
            with shown(data, self.shards.max_pixels) as image:
                return eval_pixels(image, self.view)
        except BadImageError as error:
            key = self.shards.table(self.split)["key"][i].as_py()
            raise InputError(f"sample {key} of split {self.split}: {error}") from None
