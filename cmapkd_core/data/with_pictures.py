"""Batches of pairs, each with as many pictures without captions (data.unpaired)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from cmapkd_core.data.loader import Batch, TrainLoader, require_few


class WithPictures:
    """A loader of pairs whose batches carry those of a loader of pictures, with the interface of TrainLoader.

    An epoch is one of the pairs; the pictures go on through their own meanwhile.

    Args:
        pictures: gives the same number of samples a step; of its batches nothing is kept that a caption told.
    """

    def __init__(self, pairs: TrainLoader, pictures: TrainLoader) -> None:
        self._pairs, self._pictures = pairs, pictures
        self.steps_per_epoch = pairs.steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The pairs of global steps start..stop-1, with their pictures."""
        both = zip(self._pairs.batches(start, stop), self._pictures.batches(start, stop), strict=True)
        for pairs, alone in both:
            replaced = [*pairs.replaced, *alone.replaced]
            yield replace(pairs, pictures=replace(alone, tokens={}, replaced=[]), replaced=replaced)

    def reorder(self, turn: int) -> None:
        """As of `TrainLoader`, both."""
        self._pairs.reorder(turn)
        self._pictures.reorder(turn)

    def require_few_corrupt(self, corrupt: Mapping[str, str]) -> None:
        """As of `TrainLoader`, of all pictures together."""
        require_few(corrupt, self._pairs.count + self._pictures.count, self._pairs.bound)
