"""The shards of img2dataset (output_format webdataset), as web data such as CC3M is downloaded.

    00000.tar          000000000.jpg, 000000000.txt (the caption), 000000000.json (caption, url, status, ..), ..
    00000_stats.json   {"count": .., "successes": ..}; tells how many rows there are, also of a shard that got lost

Shards in a folder train/ or training/, val/ or validation/, test/ are of that split; for others the hash of each
picture decides. Pictures that could not be downloaded are in no shard: they are nobody's rows.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.files import opened, place
from cmapkd_core.data.images import BadImageError
from cmapkd_core.data.rows import BadRow, Counted, Item, LazyRow, Row
from cmapkd_core.data.threads import in_order
from cmapkd_core.errors import InputError

PICTURES = ("jpg", "jpeg", "png", "webp")
SPLIT_OF = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}
_STATS_FILE = re.compile(r"((?:.*/)?\d+)_stats\.json")
_STATS = 16  # small files read at a time
_TARS = 2  # shards fetched at a time: one while the one before is used


def img2dataset_rows(config: DataConfig) -> Counted:
    """One row for each sample of every shard, in the shards' order.

    Raises:
        InputError: there is no shard.
    """
    url = place(config, "img2dataset's shards 00000.tar, 00001.tar, ..")
    names = tar_names(url)
    if not names:
        raise InputError(f"data.source={config.source}: {url} has no .tar: give the output folder of img2dataset")
    return tar_rows(url, names)


def tar_names(url: str) -> list[str]:
    """The shards below `url`."""
    return [name for name in storage.list_files(url) if name.endswith(".tar")]


def tar_rows(url: str, names: list[str]) -> Counted:
    """The rows of the shards `names`, and bad rows for the pictures of a shard that only a stats file tells of.

    Their number is that of the stats files, 0 where one is missing.
    """
    shards = sorted({*names, *_told_of(url)})
    successes = dict(zip(shards, in_order(shards, partial(_successes, url), _STATS), strict=True))
    known = [count for count in successes.values() if count is not None]
    absent = {name: successes[name] for name in set(shards) - set(names)}
    return Counted(_rows(url, shards, absent), sum(known) if len(known) == len(shards) else 0)


def _told_of(url: str) -> list[str]:
    """The shards that have a stats file: img2dataset had written them."""
    return [f"{found[1]}.tar" for found in map(_STATS_FILE.fullmatch, storage.list_files(url)) if found]


def _successes(url: str, name: str) -> int | None:
    """How many pictures a shard's stats file counts; None where it does not say."""
    try:
        return int(storage.read_json(storage.join(url, f"{name.removesuffix('.tar')}_stats.json"))["successes"])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _rows(url: str, shards: list[str], absent: Mapping[str, int | None]) -> Iterator[Item]:
    def fetched(name: str) -> _Tar | _Absent:
        return _Absent(name, absent[name]) if name in absent else _Tar(url, name)

    for shard in in_order(shards, fetched, _TARS):
        yield from shard.rows()


@dataclass(frozen=True)
class _Absent:
    """A shard that is not there, and how many pictures its stats file counts; None: nobody knows."""

    name: str
    pictures: int | None

    def rows(self) -> Iterator[Item]:
        """As many bad rows as pictures are lost, at least one where that is not known: the bound is to see them all."""
        told = "its stats file is" if self.pictures is None else f"its stats file counts {self.pictures} pictures"
        reason = f"the shard is not there and {told}: download it again"
        yield from (BadRow(self.name, reason) for _ in range(1 if self.pictures is None else self.pictures))


class _Tar:
    """One shard, on the local disk as long as somebody holds a row of it."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        with opened(storage.join(url, name)) as file:
            self._file = os.dup(file.fileno())
        self._samples: dict[str, dict[str, tuple[int, int]]] = {}  # by stem: offset and size by extension
        self.problem = self._list()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def _list(self) -> str:
        """Find the members; why not all of them could be found."""
        size = os.fstat(self._file).st_size
        try:
            with os.fdopen(os.dup(self._file), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    stem, _, extension = member.name.rpartition(".")
                    if member.isfile() and member.offset_data + member.size <= size:
                        self._samples.setdefault(stem, {})[extension.lower()] = member.offset_data, member.size
                # A damaged header and a cut between two samples look like the end to tarfile; the end is a block of 0.
                if os.pread(self._file, tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("no end of the archive")
        except tarfile.TarError as error:
            return f"the shard is cut off or broken after {len(self._samples)} samples ({error}): download it again"
        return ""

    def rows(self) -> Iterator[Item]:
        folder = PurePosixPath(self.name).parts[:-1]
        split = next((SPLIT_OF[part] for part in folder if part in SPLIT_OF), "")
        for stem, parts in self._samples.items():
            key = "/".join([*folder, stem])
            there = [extension for extension in PICTURES if extension in parts]
            said = self._said(parts)
            if not there:
                yield BadRow(key, f"{self.name} has no picture of it")
                continue
            row = Row(key, b"", self._captions(parts, said), split=split, origins=_origins(said))
            yield LazyRow(row, partial(self._read, *parts[there[0]]))
        if self.problem:  # as many bad rows as samples are lost, where that is known: the bound is to see them all
            lost = (_successes(self.url, self.name) or 0) - len(self._samples)
            yield from (BadRow(self.name, self.problem) for _ in range(max(lost, 1)))

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file, size, offset)
        if len(data) < size:
            raise BadImageError(f"{self.name} ends in the middle of the picture")
        return data

    def _said(self, parts: dict[str, tuple[int, int]]) -> dict[str, Any]:
        """The JSON beside a picture, {} where there is none that can be read."""
        try:
            said = json.loads(self._read(*parts["json"])) if "json" in parts else {}
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    def _captions(self, parts: dict[str, tuple[int, int]], said: dict[str, Any]) -> tuple[str, ...]:
        if "txt" in parts:
            return (self._read(*parts["txt"]).decode(errors="replace"),)
        return (str(said["caption"]),) if said.get("caption") else ()


def _origins(said: dict[str, Any]) -> tuple[str, ...]:
    return (f"url:{said['url']}",) if said.get("url") else ()
