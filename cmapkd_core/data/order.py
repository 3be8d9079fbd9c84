"""Which sample is where: splits, fractions and the order of training, as pure functions of keys.

Everything is a 64-bit hash of the key mixed with a salt or a seed (splitmix64), so that no result
depends on a library's random stream, on the worker count or on the world size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from cmapkd_core.errors import InputError

_ALL = 2**64 - 1
BLOCK_SHARDS = 16  # shards whose samples are shuffled together: bounds what is open or fetched at a time


def hash64(text: str, salt: str = "") -> int:
    """A stable 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=salt.encode()).digest(), "little")


def hashes(texts: Sequence[str]) -> np.ndarray:
    """`hash64` of every text: uint64 [n]."""
    return np.fromiter((hash64(text) for text in texts), dtype=np.uint64, count=len(texts))


def mix(values: np.ndarray, *seeds: int) -> np.ndarray:
    """uint64 [n] scrambled by each seed in turn; equal inputs give equal outputs."""
    for seed in seeds:
        with np.errstate(over="ignore"):
            x = values + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            values = x ^ (x >> np.uint64(31))
    return values


def mix_one(value: int, *seeds: int) -> int:
    """`mix` of a single value, for a twentieth of what an array of one costs."""
    for seed in seeds:
        x = (value + seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _ALL
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _ALL
        value = x ^ (x >> 31)
    return value


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The seed of one sample's augmentation and caption in one epoch, below 2**63."""
    return mix_one(index, seed, epoch) >> 1


def crop_of(key_hash: int, seed: int, epoch: int, crops: int) -> int:
    """Which of a sample's fixed crops an epoch shows."""
    return mix_one(key_hash, seed, epoch, 3) % crops


def crop_seed(key_hash: int, crop: int) -> int:
    """The seed of a fixed crop, below 2**63: of no run, so that what is stored of it serves all."""
    return mix_one(key_hash, 0xC409, crop) >> 1


def split_of(group: str, val_share: float, test_share: float) -> str:
    """The side of the split on which a group falls, by its hash alone."""
    place = hash64(group, "split") / 2**64
    if place < test_share:
        return "test"
    return "val" if place < test_share + val_share else "train"


def chosen(key_hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Positions of the `fraction` of samples with the smallest hashes, uint64 [n] -> int64 [k], ascending.

    k = round(n * fraction).

    A smaller fraction is a subset of a larger one, whatever the seed.
    """
    ranked = np.argsort(mix(key_hashes, 0xF4AC), kind="stable")
    return np.sort(ranked[: round(len(ranked) * fraction)])


def drawn(key_hashes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of `count` samples, or of all there are, that a seed draws: uint64 [n] -> int64 [k], ascending.

    More are those of fewer and others beside them.
    """
    return np.sort(np.argsort(mix(key_hashes, seed, 0xBA4D), kind="stable")[:count])


def withheld(key_hashes: np.ndarray, share: float) -> np.ndarray:
    """Which of k samples have their captions withheld, uint64 [k] -> bool [k]: round(k * share), whatever the seed."""
    ranked = np.argsort(mix(key_hashes, 0x0A10), kind="stable")
    mask = np.zeros(len(key_hashes), dtype=bool)
    mask[ranked[: round(len(ranked) * share)]] = True
    return mask


TOO_FEW = (
    "{} training samples are fewer than one batch of {}: lower optim.batch, raise data.fraction or give more pairs"
)


class Order:
    """The sequence of global batches, and one rank's share of each.

    Shards are permuted, then samples within blocks of BLOCK_SHARDS shards, so that reads stay near each
    other. A global batch is the same for every world size; rank r takes its contiguous slice. The last
    incomplete batch of an epoch is dropped.

    Args:
        ids: positions in the split's table that take part, int64 [n].
        key_hashes: of those samples, uint64 [n].
        shards: number of the shard that holds each, int64 [n].
        batch: global.
        too_few: the message where they are fewer than one batch.

    Raises:
        InputError: the batch does not divide over the ranks, or there are fewer samples than one batch.
    """

    def __init__(
        self,
        ids: np.ndarray,
        key_hashes: np.ndarray,
        shards: np.ndarray,
        *,
        batch: int,
        rank: int,
        world: int,
        seed: int,
        too_few: str = TOO_FEW,
    ) -> None:
        if batch < world:
            raise InputError(f"optim.batch={batch} is smaller than the {world} processes: raise it or use fewer")
        if batch % world:
            raise InputError(f"optim.batch={batch} does not divide over {world} processes: use a multiple of {world}")
        if len(ids) < batch:
            raise InputError(too_few.format(len(ids), batch))
        self.ids, self.hashes, self.shards = ids, key_hashes, shards
        self.batch, self.rank, self.world, self.seed = batch, rank, world, seed
        self.numbers, self._counts = np.unique(shards, return_counts=True)
        self._turn: tuple[int, ...] = ()
        self._epoch, self._sequence = -1, ids
        self._ends = -1, ids  # an epoch, and how many samples there are up to each of its shards

    def reorder(self, turn: int) -> None:
        """The same samples in every epoch, in another order; 0 is the usual one."""
        self._turn, self._epoch, self._ends = (turn,) if turn else (), -1, (-1, self.ids)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of all ranks; what is left over comes in no batch of an epoch."""
        return len(self.ids) // self.batch

    def sequence(self, epoch: int) -> np.ndarray:
        """All of `ids` [n] in the order of `epoch`, [n]."""
        if epoch != self._epoch:
            rank = np.empty(len(self.numbers), dtype=np.int64)
            rank[self._permuted(epoch)] = range(len(rank))
            block = rank[np.searchsorted(self.numbers, self.shards)] // BLOCK_SHARDS
            self._sequence = self.ids[np.lexsort((mix(self.hashes, self.seed, epoch, 2, *self._turn), block))]
            self._epoch = epoch
        return self._sequence

    @property
    def block_samples(self) -> int:
        """Samples of a block, about."""
        return -(-len(self.ids) * BLOCK_SHARDS // len(self.numbers))

    def blocks(self, epoch: int) -> list[np.ndarray]:
        """Numbers of the shards that are read together, in the order of `epoch`."""
        numbers = self.numbers[self._permuted(epoch)]
        return [numbers[first : first + BLOCK_SHARDS] for first in range(0, len(numbers), BLOCK_SHARDS)]

    def block_of(self, number: int, first: bool = False) -> tuple[int, int]:
        """Epoch of a global step, and the block of its last sample, or of its first."""
        epoch, step = divmod(number, self.steps_per_epoch)
        if epoch != self._ends[0]:
            self._ends = epoch, np.cumsum(self._counts[self._permuted(epoch)])
        sample = step * self.batch if first else (step + 1) * self.batch - 1
        place = int(np.searchsorted(self._ends[1], sample, side="right"))
        return epoch, place // BLOCK_SHARDS

    def _permuted(self, epoch: int) -> np.ndarray:
        """Positions in the shards' numbers, in the order of `epoch`."""
        return np.argsort(mix(self.numbers.astype(np.uint64), self.seed, epoch, 1, *self._turn), kind="stable")

    def step(self, number: int) -> tuple[int, np.ndarray]:
        """The epoch of a global step, and the ids of this rank's slice: int64 [batch / world]."""
        epoch, step = divmod(number, self.steps_per_epoch)
        size = self.batch // self.world
        first = step * self.batch + self.rank * size
        return epoch, self.sequence(epoch)[first : first + size]

    def substitute(self, number: int, slot: int, attempt: int) -> int:
        """The id that stands in for slot `slot` of this rank at step `number`: the sample a whole batch further on.

        Ranks need not talk: different slots get different samples, `attempt` = 1, 2, .. tries the following ones.
        """
        epoch, step = divmod(number, self.steps_per_epoch)
        place = (step + 1) * self.batch + self.rank * (self.batch // self.world) + slot + attempt - 1
        return int(self.sequence(epoch)[place % len(self.ids)])
