"""The live teacher on a stream of its own, one batch ahead of the student.

The teacher's outputs follow from a batch alone, so the next batch's can be computed while this one trains: where the
student's kernels leave a GPU idle, between small ones and while gradients are summed over the ranks, the teacher's
fill it. What is computed is the same, and so are the bits. It costs the memory of one more batch and its targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from cmapkd_core.data.loader import Batch, TrainLoader
from cmapkd_core.data.with_pictures import WithPictures

TargetsT = TypeVar("TargetsT")


@dataclass
class _Made(Generic[TargetsT]):
    """A batch on the device with its targets. ready: what whoever reads them waits for; None: they are there."""

    batch: Batch
    targets: TargetsT
    ready: torch.cuda.Event | None


class TargetsAhead(Generic[TargetsT]):
    """A loader whose batches' targets are begun before they are asked for, and the function that gives them.

    Args:
        compute: the targets of a batch on the device; must read nothing that training changes.
        device: where both are computed; on a CPU, which has no streams, each is simply computed when its batch is.
    """

    def __init__(
        self, loader: TrainLoader | WithPictures, compute: Callable[[Batch], TargetsT], device: torch.device
    ) -> None:
        self._loader, self._compute, self._device = loader, compute, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._given: _Made[TargetsT] | None = None
        self.steps_per_epoch = loader.steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The loader's, each when the targets of the one after it have been begun."""
        waiting: _Made[TargetsT] | None = None
        for batch in self._loader.batches(start, stop):
            begun = self._begin(batch.to(self._device))
            if waiting is not None:
                yield self._give(waiting)
            waiting = begun
        if waiting is not None:
            yield self._give(waiting)
        self._given = None

    def reorder(self, turn: int) -> None:
        """As the loader's."""
        self._loader.reorder(turn)

    def require_few_corrupt(self, corrupt: Mapping[str, str]) -> None:
        """As the loader's."""
        self._loader.require_few_corrupt(corrupt)

    def targets(self, batch: Batch) -> TargetsT:
        """Of the batch that was given last, as begun; of another, such as a part of it, computed here and now."""
        made = self._given
        if made is None or made.batch.keys is not batch.keys:
            return self._compute(batch)
        if made.ready is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(made.ready)
            _record(made.targets, current)
        return made.targets

    def _give(self, made: _Made[TargetsT]) -> Batch:
        self._given = made
        return made.batch

    def _begin(self, batch: Batch) -> _Made[TargetsT]:
        if self._stream is None:
            return _Made(batch, self._compute(batch), None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # on which the pictures were normalised
        with torch.cuda.stream(self._stream):
            targets = self._compute(batch)
            _record(batch, self._stream)
            return _Made(batch, targets, self._stream.record_event())


def _record(value: Any, stream: torch.cuda.Stream) -> None:
    """The memory of its tensors [..] is given to nobody else before the stream has done what was asked of it so far."""
    for tensor in tensors_in(value):
        if tensor.is_cuda:
            tensor.record_stream(stream)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors [..] that a value holds in dataclasses, mappings and sequences; each as often as it is there."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, Mapping):
        yield from tensors_in([*value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)
