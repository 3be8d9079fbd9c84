"""A second, finer comparison of pictures that the perceptual hash puts together: the same picture, or another like it?

The hash is of brightness in 8 x 8 places, so drawings on plain ground share it in other colours and with other
details. Here both pictures become 32 x 32 pixels in colour. A pixel differs by as much as its most different channel
does from the nearest in colour of the other's 3 x 3 pixels at its place, so that a crop of some percent, which moves
all, does not count; a picture differs by the mean over its most different 4 x 4 pixels. Where one of the two is grey,
brightness alone is compared. `benchmarks/look_alikes.py` measures what DIFFERENT tells apart.

Only pictures of candidate pairs are read, each at its place in its shard, and of no more than MOST pairs. The pairs
behind those count as the same, which is what the hash says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from cmapkd_core import storage
from cmapkd_core.data.pixels import shown_quickly
from cmapkd_core.errors import BadImageError

SIDE, BLOCK = 32, 4  # pixels
DIFFERENT = 40.0  # of 255; pictures that differ by more are not the same
MOST = 2000  # pairs that are looked at
GREY = 12  # the most that the channels of a grey picture are apart, after JPEG
PLACED = ["key", "shard", "image_offset", "image_size"]  # columns of the index: where a picture lies
_ANY_SIZE = 2**31  # pixels: each was checked when it was stored, by its own data set's data.max_pixels
_BRIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)
_PERCEPTUAL, _FINER = "perceptual", "finer"  # what their reasons begin with


@dataclass(frozen=True)
class Pair:
    """A training picture and a held-out one that is the same, or looks like it.

    Attributes:
        train, held_out: their keys.
        split: val or test, the held-out one's.
        data: the artifact that it is from, "" for this data set.
        reasons: the check and what it found, one for each check.
    """

    train: str
    held_out: str
    split: str
    data: str
    reasons: tuple[str, ...]

    @property
    def by_looks(self) -> bool:
        """Whether looks alone say so, and neither an id nor the bytes."""
        return all(reason.startswith((_PERCEPTUAL, _FINER)) for reason in self.reasons)


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of a data set lie. folder: of its shards. lines: gives its index with the columns PLACED."""

    folder: str
    lines: Callable[[], Iterable[pa.Table]]

    def reader(self, keys: Iterable[str]) -> Reader:
        """Reads the pictures of these keys, whose places are looked up in one pass over the index."""
        wanted, places = pa.array(sorted(set(keys)), pa.string()), dict[str, tuple[str, int, int]]()
        for part in self.lines() if len(wanted) else ():
            lines = part.select(PLACED).filter(pc.is_in(part["key"], value_set=wanted))
            places |= {
                key: (shard, first, size) for key, shard, first, size in zip(*lines.to_pydict().values(), strict=True)
            }
        return Reader(self.folder, places)


@dataclass(frozen=True)
class Reader:
    """Pictures by key."""

    folder: str
    places: Mapping[str, tuple[str, int, int]]

    @contextmanager
    def shown(self, key: str) -> Iterator[Image.Image | None]:
        """The picture for as long as it is used; None where its shard is gone or damaged."""
        shard, first, size = self.places[key]
        with ExitStack() as stack:
            image = None
            with suppress(FileNotFoundError, BadImageError):
                data = storage.read_part(storage.join(self.folder, shard), first, size)
                image = stack.enter_context(shown_quickly(data, _ANY_SIZE))
            yield image


@dataclass(frozen=True)
class ComparedPairs:
    """Pairs by what the second comparison says of them."""

    same: tuple[Pair, ...]
    look_alikes: tuple[Pair, ...]


def compared(pairs: Sequence[Pair], train: Pictures, held: Mapping[str, Pictures]) -> ComparedPairs:
    """Which pairs are the same picture; reasons of those that were looked at say by how much they differ.

    A pair of which a picture is gone, as of an artifact whose shards were deleted, counts as the same.

    Args:
        train: the data set with the training pictures.
        held: those with the held-out ones, by `Pair.data`.
    """
    candidates = [pair for pair in pairs if pair.by_looks][:MOST]
    train_thumbnails = Thumbnails(train.reader(pair.train for pair in candidates))
    held_thumbnails = {
        data: Thumbnails(pictures.reader(pair.held_out for pair in candidates if pair.data == data))
        for data, pictures in held.items()
    }
    looked = set(candidates)
    same, look_alikes = list[Pair](), list[Pair]()
    for pair in pairs:
        if pair not in looked:
            same.append(pair)
            continue
        one, other = train_thumbnails[pair.train], held_thumbnails[pair.data][pair.held_out]
        distance = 0.0 if one is None or other is None else difference(one, other)
        reason = "a picture is gone" if one is None or other is None else f"up to {distance:.0f} of 255 apart"
        pair = replace(pair, reasons=(*pair.reasons, f"{_FINER}: {reason}"))
        (look_alikes if distance > DIFFERENT else same).append(pair)
    return ComparedPairs(tuple(same), tuple(look_alikes))


class Thumbnails:
    """Thumbnails by key, made when they are asked for first: uint8 [SIDE, SIDE, 3]; None of a picture that is gone."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._made: dict[str, np.ndarray | None] = {}

    def __getitem__(self, key: str) -> np.ndarray | None:
        if key not in self._made:
            with self._read.shown(key) as image:
                self._made[key] = None if image is None else thumbnail(image)
        return self._made[key]


def thumbnail(image: Image.Image) -> np.ndarray:
    """A picture squeezed to uint8 [SIDE, SIDE, 3], as the hash sees it but in colour."""
    small = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(small)[..., :3]


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """How much two thumbnails differ where they differ most: 0 to 255, the same in both orders."""
    pixels = [picture.astype(np.float32) for picture in (one, other)]
    if any((picture.max(-1) - picture.min(-1)).max() <= GREY for picture in pixels):
        pixels = [(picture @ _BRIGHTNESS)[..., None] for picture in pixels]
    first, second = pixels
    return max(_most(first, second), _most(second, first))


def _most(one: np.ndarray, other: np.ndarray) -> float:
    """The mean difference of the block of `one` that is least like anything near it in `other`."""
    around = np.pad(other, ((1, 1), (1, 1), (0, 0)), mode="edge")
    nearest = np.full(one.shape[:2], 255, np.float32)
    for down in range(3):
        for right in range(3):
            moved = around[down : down + SIDE, right : right + SIDE]
            nearest = np.minimum(nearest, np.abs(one - moved).max(-1))
    blocks = nearest.reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK).mean((1, 3))
    return float(blocks.max())
