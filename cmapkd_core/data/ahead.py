"""Fetches the shards of a stream of batches a block ahead, with what is cached for their pictures."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from cmapkd_core.data.fixed_crops import TeacherCache
from cmapkd_core.data.order import Order
from cmapkd_core.data.shard_cache import NOTHING, NoRoomError, RemoteFile, in_gb, too_small
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.stored_parts import StoredParts
from cmapkd_core.errors import InputError

log = logging.getLogger(__name__)
T = TypeVar("T")
Block = tuple[int, int]  # epoch, and its number there
_THREADS = 4  # files at a time
_PAUSE = 0.5  # seconds between two looks for room


class BlockFiles:
    """What is read together with some shards of a split: their files, and those of what is cached for their rows.

    Args:
        caches: of teachers' outputs.
    """

    def __init__(self, shards: ShardSet, split: str, caches: Iterable[TeacherCache]) -> None:
        self.shards, self.split = shards, split
        self.stored = [cache for cache in caches if isinstance(cache, StoredParts)]  # of others the files are all here
        self.copied = bool(shards.remote or self.stored)
        self._block = (-1, -1)

    def __call__(self, numbers: np.ndarray) -> list[RemoteFile]:
        """The files of shards by their numbers; none of a local root."""
        shards = self.shards.shard_files(self.split, numbers)
        if not self.stored:
            return shards
        rows = np.flatnonzero(np.isin(self.shards.shard_numbers(self.split), numbers))
        return [*shards, *(file for cache in self.stored for file in cache.files(rows))]

    def enter(self, order: Order, number: int) -> None:
        """Copies of the block that a step ends in, and of the next one, go last from here on."""
        if self.shards.room.bound and (block := order.block_of(number)) != self._block:
            self._block = block
            both = [*self(_shards_of(order, *block)), *self(_shards_of(order, *_after(order, *block)))]
            self.shards.wanted = frozenset(file.copy for file in both)
            for cache in self.stored:
                cache.wanted = self.shards.wanted


class Ahead:
    """Copies that batches will read: those of the block that they are in and of the next one.

    The threads are of this process alone; a copy that another process fetches is waited for.

    Args:
        order: of the batches; its rank turns the files, so that the ranks of a machine do not begin with the same one.
        files: of its shards.
        lead: batches that workers may be ahead of the one that is handed out.
    """

    def __init__(self, order: Order, files: BlockFiles, lead: int) -> None:
        self.order, self.files, self.lead, self.room = order, files, lead, files.shards.room
        self._waiting: deque[RemoteFile] = deque()
        self._wanted, self._blocks = NOTHING, list[Block]()
        self._change, self._threads, self._stopped = threading.Condition(), 0, False

    def follow(self, made: Iterator[T], start: int, stop: int) -> Iterator[T]:
        """The batches as they are, those of global steps start..stop-1; fetching goes before them."""
        if not self.files.copied:
            yield from made
            return
        try:
            for number, batch in enumerate(made, start):
                self._fetch(self._blocks_at(number, stop - 1))
                yield batch
        finally:
            with self._change:
                self._stopped, self._wanted = True, NOTHING
                self._waiting.clear()
                self._change.notify_all()

    def _blocks_at(self, number: int, last: int) -> list[Block]:
        """Those that are read while a step is handed out, and the one after them; `last` is the last step of all."""
        block = self.order.block_of(number, first=True)  # another rank may still be there, and none is before it
        end = self.order.block_of(min(number + self.lead, last))
        blocks = [block]
        while blocks[-1] < end:
            blocks.append(_after(self.order, *blocks[-1]))
        return [*blocks, _after(self.order, *end)] if end < self.order.block_of(last) else blocks

    def _fetch(self, blocks: list[Block]) -> None:
        """Not before the first batch is there: workers are forked before threads run."""
        if blocks == self._blocks:
            return
        files = [file for block in blocks for file in self._turned(self.files(_shards_of(self.order, *block)))]
        with self._change:
            self._blocks, self._wanted = blocks, frozenset(file.copy for file in files)
            self._waiting = deque(dict.fromkeys(files))
            self._change.notify_all()
        for _ in range(self._threads, _THREADS if self._waiting else 0):
            threading.Thread(target=self._work, name="ahead", daemon=True).start()
            self._threads += 1

    def _turned(self, files: list[RemoteFile]) -> list[RemoteFile]:
        begin = self.order.rank * len(files) // self.order.world
        return [*files[begin:], *files[:begin]]

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopped or self._waiting)
                if self._stopped:
                    return
                file, blocks = self._waiting.popleft(), self._blocks
            try:
                self.room.ahead(file, lambda: self._wanted)  # as it is then: the batches may have gone on
            except NoRoomError:
                self._later(file, blocks)
            except (InputError, OSError) as error:  # who reads the file says so, where it is read
                log.debug("%s was not fetched ahead: %s", file.name, error)

    def _later(self, file: RemoteFile, blocks: list[Block]) -> None:
        """Try again after a while, or never where the batches have gone on."""
        with self._change:
            self._change.wait_for(lambda: self._stopped or self._blocks != blocks, timeout=_PAUSE)
            if self._blocks == blocks and not self._stopped:
                self._waiting.appendleft(file)


def _shards_of(order: Order, epoch: int, block: int) -> np.ndarray:
    """Numbers of the shards of a block."""
    return order.blocks(epoch)[block]


def _after(order: Order, epoch: int, block: int) -> Block:
    """The block after one, which may be the next epoch's first."""
    return (epoch, block + 1) if block + 1 < len(order.blocks(epoch)) else (epoch + 1, 0)


def require_room(order: Order, files: BlockFiles, lead: int) -> None:
    """Refuse a bound that does not hold every block that an order can have; `lead` as of `Ahead`.

    Raises:
        InputError: says what would do.
    """
    room, numbers = files.shards.room, order.numbers
    if not room.bound or not files.copied:
        return
    together = len(order.blocks(0)[0])
    sizes = sorted(sum(file.bytes for file in files(numbers[i : i + 1])) for i in range(len(numbers)))
    needed = sum(sizes[-together:])
    if needed > room.bound:
        more = " and the teacher's outputs for them" if files.stored else ""
        what = f"the {together} shards that are shuffled together{more}"
        meanwhile = needed * (2 + lead * order.batch // order.block_samples)
        raise InputError(
            f"{too_small(room.bound, needed, what)}, or {in_gb(meanwhile)} for the next ones to be fetched meanwhile"
        )
