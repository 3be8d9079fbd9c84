"""Numbered items, made in this process or ahead of time by workers."""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from cmapkd_core.errors import InputError

T = TypeVar("T")
AHEAD = 2  # items that a worker makes before they are asked for
# Of a folder in which multiprocessing makes a socket for a worker's results: a socket's path has 107 bytes at most.
_LONGEST = 107 - len("/pymp-12345678/listener-12345678")


class Items(Dataset[T | InputError]):
    """Numbered batches; an InputError is an item too, so that it leaves a worker as it is."""

    def __getitem__(self, number: int) -> T | InputError:
        try:
            return self.make(number)
        except InputError as error:
            return error

    def make(self, number: int) -> T:
        """Item `number`."""
        raise NotImplementedError


def room(*shape: int) -> Tensor:
    """Empty uint8 memory; a worker's is shared with the rank from the start, so that it is not copied on the way."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(shared, 0, shape)  # type: ignore[call-overload,no-any-return]


class _Range(Sampler[int]):
    def __init__(self) -> None:
        self.range = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.range)

    def __len__(self) -> int:
        return len(self.range)


def _own_group(worker: int) -> None:
    """Leave the rank's process group.

    torchrun passes SIGTERM on to all of a rank's group, and a worker that dies of it fails the step that the rank was
    to finish and save. The rank ends its workers itself, and they end by themselves when it is gone.
    """
    os.setpgid(0, 0)


def _own_groups() -> None:
    """The same from outside: a worker that is still starting when the first item is there would die of a SIGTERM."""
    for pid in (worker.pid for worker in multiprocessing.active_children() if worker.pid):
        with suppress(ProcessLookupError, PermissionError):  # it has ended
            os.setpgid(pid, pid)


def require_short_temporary_folder() -> None:
    """What workers make would be lost there, with a traceback of theirs alone, and a rank would wait for ever.

    Raises:
        InputError: says what to do.
    """
    place = tempfile.gettempdir()
    if (length := len(os.fsencode(place))) > _LONGEST:
        raise InputError(
            f"the path of the folder for temporary files has {length} bytes, and with loader processes it may have "
            f"{_LONGEST}: {place}; give this process a TMPDIR with a shorter one, or --set runtime.workers=0"
        )


class Feed(Generic[T]):
    """Items by number, made here or ahead by workers that live as long as this object.

    Args:
        device: where they go next; what workers make for a GPU lies in pinned memory, so that the copy does not wait.

    Raises:
        InputError: workers cannot hand over what they make.
    """

    def __init__(self, items: Items[T], workers: int, device: torch.device | str = "cpu") -> None:
        self._items, self._range = items, _Range()
        self._loader: DataLoader[T | InputError] | None = None
        if workers:
            require_short_temporary_folder()
            self._loader = DataLoader(
                items,
                batch_size=None,
                sampler=self._range,
                num_workers=workers,
                prefetch_factor=AHEAD,
                persistent_workers=True,
                pin_memory=torch.device(device).type == "cuda",
                worker_init_fn=_own_group,
                generator=torch.Generator(),  # else every pass would draw from the global one, and resuming would show
            )

    def items(self, start: int, stop: int) -> Iterator[T]:
        """Items start..stop-1; raises what one of them could not be made for."""
        self._range.range = range(start, stop)
        ahead = map(self._items.__getitem__, self._range.range) if self._loader is None else iter(self._loader)
        if self._loader is not None:
            _own_groups()
        for item in ahead:
            if isinstance(item, InputError):
                raise item
            yield item
