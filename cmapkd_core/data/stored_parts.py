"""A teacher's cached outputs on S3 whose parts come and go with the shards: of each read the rows of a batch alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmapkd_core.data.fixed_crops import TeacherCache, check_part, lacking
from cmapkd_core.data.shard_cache import NOTHING, RemoteFile, ShardCache
from cmapkd_core.errors import DamagedInput, InputError

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8, "U8": torch.uint8}


@dataclass(frozen=True)
class _Place:
    """Where the rows of a tensor lie in a part. shape, bytes: of a row. first: its byte. each: rows a picture."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    bytes: int
    first: int
    each: int

    def read(self, file: int, row: int) -> Tensor:
        """A row."""
        data = bytearray(os.pread(file, self.bytes, self.first + row * self.bytes))
        return torch.frombuffer(data, dtype=self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class _Layout:
    """crops, captions: by name. offsets: [k+1], where the captions of each of the k pictures begin."""

    crops: dict[str, _Place]
    captions: dict[str, _Place]
    offsets: np.ndarray


class StoredParts(TeacherCache):
    """A `TeacherCache` of which copies are made as they are read, within the bound of `room`.

    Args:
        remote: the parts, in order.
        size: pictures of each but the last.
        made_from: as of `TeacherCache.open`; each part is held to it when it is first read.
        names: of the tensors that are given; () all.
        pictures: as of `TeacherCache`.

    Attributes:
        wanted: copies that go last.
    """

    def __init__(
        self,
        remote: Sequence[RemoteFile],
        size: int,
        made_from: Mapping[str, str],
        room: ShardCache,
        names: Sequence[str] = (),
        pictures: np.ndarray | None = None,
    ) -> None:
        if pictures is not None and len(remote) * size < len(pictures):
            raise DamagedInput(lacking(remote[0].url, len(remote)))
        super().__init__((), names, pictures)
        self.remote, self.size, self.made_from, self.room = list(remote), size, dict(made_from), room
        self.wanted = NOTHING
        self._layouts: dict[int, _Layout] = {}

    def only(self, *names: str) -> StoredParts:
        """As of `TeacherCache`."""
        return StoredParts(self.remote, self.size, self.made_from, self.room, names, self.pictures)

    def files(self, rows: np.ndarray) -> list[RemoteFile]:
        """The parts that hold these rows of the split, as far as they are cached."""
        own = rows if self.pictures is None else rows[np.isin(rows, self.pictures)]
        return [self.remote[number] for number in np.unique(self.places(own) // self.size)]

    def rows(
        self, index: np.ndarray, crops: Sequence[int], captions: Sequence[int], owners: np.ndarray | None = None
    ) -> dict[str, Tensor]:
        """As of `TeacherCache`; parts of other blocks, which hold captions of `owners`, are fetched as they are read.

        Raises:
            InputError: a part was made from something else, or is damaged or gone.
        """
        if owners is None:
            return self._read(index, crops, captions)
        return self._read(index, crops, None) | self._read(owners[index], None, captions)

    def _read(
        self, index: np.ndarray, crops: Sequence[int] | None, captions: Sequence[int] | None
    ) -> dict[str, Tensor]:
        """Of samples by position what they have by crop, by caption, or both."""
        tensors: dict[int, dict[str, Tensor]] = {}
        places = self.places(index)
        numbers = places // self.size
        for number in np.unique(numbers):
            slots = np.flatnonzero(numbers == number).tolist()
            try:
                with self.room.opened(self.remote[number], self.wanted) as file:
                    layout = self._layout(int(number), file)
                    for slot in slots:
                        row = int(places[slot]) - int(number) * self.size
                        tensors[slot] = self._crop(file, layout, row, crops[slot]) if crops else {}
                        tensors[slot] |= self._caption(file, layout, row, captions[slot]) if captions else {}
            except FileNotFoundError as error:
                raise DamagedInput(f"{error} is gone: {self.remote[number].way_out}") from None
        return {name: torch.stack([tensors[slot][name] for slot in range(len(index))]) for name in tensors[0]}

    def _crop(self, file: int, layout: _Layout, row: int, crop: int) -> dict[str, Tensor]:
        return {name: place.read(file, row * place.each + crop) for name, place in self._given(layout.crops)}

    def _caption(self, file: int, layout: _Layout, row: int, caption: int) -> dict[str, Tensor]:
        position = int(layout.offsets[row]) + caption
        return {name: place.read(file, position) for name, place in self._given(layout.captions)}

    def _given(self, places: dict[str, _Place]) -> Iterator[tuple[str, _Place]]:
        return ((name, place) for name, place in places.items() if self.gives(name))

    def _layout(self, number: int, file: int) -> _Layout:
        if number not in self._layouts:
            self._layouts[number] = _read_layout(file, self.remote[number], number * self.size, self.made_from)
        return self._layouts[number]


def _read_layout(file: int, part: RemoteFile, first: int, made_from: Mapping[str, str]) -> _Layout:
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    header: dict[str, Any] = json.loads(os.pread(file, length, 8))
    number = check_part(f"{part.url}/{part.name}", header.pop("__metadata__", {}), made_from)
    if number != first:
        raise InputError(f"{part.url}/{part.name} begins with picture {number} and not {first}: {part.way_out}")
    start, end = header.pop("offsets")["data_offsets"]
    offsets = np.frombuffer(os.pread(file, end - start, 8 + length + start), dtype="<i8")
    kinds: dict[str, dict[str, _Place]] = {"crops": {}, "captions": {}}
    for name, entry in header.items():
        kind, _, own = name.partition("/")
        each = entry["shape"][1] if kind == "crops" else 1
        shape = tuple(entry["shape"][2 if kind == "crops" else 1 :])
        begin, end = entry["data_offsets"]
        rows = entry["shape"][0] * each
        size = (end - begin) // max(rows, 1)
        kinds[kind][own] = _Place(_DTYPES[entry["dtype"]], shape, size, 8 + length + begin, each)
    return _Layout(kinds["crops"], kinds["captions"], offsets)
