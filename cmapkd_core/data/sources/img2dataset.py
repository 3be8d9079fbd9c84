"""The shards of img2dataset (output_format webdataset), as web data such as CC3M is downloaded.

    00000.tar          000000000.jpg, 000000000.txt (the caption), 000000000.json (caption, url, status, ..), ..
    00000_stats.json   {"count": .., "successes": ..}; tells how many rows there are, also of a shard that got lost

Captions are the JSON's, a text or a list of them, of which the txt holds Python's spelling; where it has none, the
txt's. A key is the name in the shard, which begins with the shard's number; where it does not, as of tools that number
every shard from 0, the shard's name comes in front of it (00001/000000).

Shards in a folder train/ or training/, val/ or validation/, test/ are of that split; for others the hash of each
picture decides. Pictures that could not be downloaded are in no shard: they are nobody's rows.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.annotations import number
from cmapkd_core.data.files import below, files_below, opened, place
from cmapkd_core.data.rows import BadRow, Counted, Item, LazyRow, Partition, Row
from cmapkd_core.data.texts import BadValueError, decoded, json_object, missing, optional, printable, texts
from cmapkd_core.data.threads import in_order
from cmapkd_core.errors import BadImageError, InputError

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
    url = place(config)
    names = tar_names(url)
    if not names:
        raise InputError(f"data.source={config.source}: {url} has no .tar: give the output folder of img2dataset")
    return tar_rows(url, names)


def tar_names(url: str) -> list[str]:
    """The shards below `url`."""
    return files_below(url, only=".tar")


def tar_rows(url: str, names: list[str]) -> Counted:
    """The rows of the shards `names`, and bad rows for the pictures of a shard that only a stats file tells of.

    Their number is that of the stats files, 0 where one is missing.
    """
    shards = sorted({*names, *_with_stats(url)})
    successes = dict(zip(shards, in_order(shards, partial(_successes, url), _STATS), strict=True))
    known = [count for count in successes.values() if count is not None]
    absent, numbered = set(shards) - set(names), _numbered(shards)

    def sliced(part: Partition, most: int) -> Iterator[Item]:
        first, last = part.bounds(len(shards))
        return _rows(url, {name: successes[name] for name in shards[first:last]}, absent, numbered)

    count = sum(known) if len(known) == len(shards) else 0
    return Counted(_rows(url, successes, absent, numbered), count, sliced)


def _with_stats(url: str) -> list[str]:
    """The shards that have a stats file: img2dataset had written them."""
    return [f"{match[1]}.tar" for match in map(_STATS_FILE.fullmatch, files_below(url, only="_stats.json")) if match]


def _successes(url: str, name: str) -> int | None:
    """How many pictures a shard's stats file counts; None where it does not say."""
    try:
        raw = storage.read_bytes(below(url, f"{name.removesuffix('.tar')}_stats.json"))
    except storage.StorageError:  # it may say so at the next attempt
        raise
    except (FileNotFoundError, InputError):
        return None
    try:
        return number(json.loads(raw)["successes"], "successes")
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _rows(
    url: str, counted: Mapping[str, int | None], absent: Container[str], numbered: Container[str]
) -> Iterator[Item]:
    def fetched(name: str) -> _Tar | _Absent:
        try:
            return _Absent(name, counted[name]) if name in absent else _Tar(url, name, numbered, counted[name] or 0)
        except storage.StorageError:  # passing; the shard is none that is lost
            raise
        except InputError as error:
            return _Absent(name, counted[name], str(error))

    for shard in in_order(counted, fetched, _TARS):
        yield from shard.rows()


def _numbered(shards: list[str]) -> set[str]:
    """Shards that are called by a number, whose names in the shard may begin with it: of none that begins another."""
    names = {name.removesuffix(".tar") for name in shards if PurePosixPath(name).stem.isdecimal()}
    return {f"{name}.tar" for name in names if not any(name[:end] in names for end in range(1, len(name)))}


@dataclass(frozen=True)
class _Absent:
    """A shard that cannot be opened, and how many pictures its stats file counts; None: nobody knows."""

    name: str
    pictures: int | None
    problem: str = ""  # "": it is not there

    def rows(self) -> Iterator[Item]:
        """As many bad rows as pictures are lost, at least one where that is not known: the bound is to see them all."""
        counted = "its stats file is" if self.pictures is None else f"its stats file counts {self.pictures} pictures"
        reason = self.problem or f"the shard is not there and {counted}: download it again"
        yield from (BadRow(self.name, reason) for _ in range(1 if self.pictures is None else self.pictures))


@dataclass
class _Sample:
    """Members that stand together under one stem. problem: why it cannot be used, "" if it can."""

    stem: str
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)  # offset and size by extension
    problem: str = ""


class _Tar:
    """One shard, on the local disk as long as somebody holds a row of it.

    Args:
        numbered: shards whose names may stand at the beginning of a stem.
        counted: how many pictures its stats file counts, 0 where that is not known.
    """

    def __init__(self, url: str, name: str, numbered: Container[str], counted: int) -> None:
        self.name, self._is_numbered, self._counted = name, name in numbered, counted
        with opened(below(url, name)) as file:
            self._file = os.dup(file.fileno())
        samples: list[_Sample] = []
        self.problem = self._list(samples)
        self._samples = _joined(samples)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def _list(self, samples: list[_Sample]) -> str:
        """Find the members; why not all of them could be found."""
        size = os.fstat(self._file).st_size
        try:
            with os.fdopen(os.dup(self._file), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not member.isdir() and member.offset_data + member.size <= size:
                        _add(samples, member)
                # A damaged header and a cut between two samples look like the end to tarfile; the end is a block of 0.
                if os.pread(self._file, tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("no end of the archive")
        except tarfile.TarError as error:
            stems = len({sample.stem for sample in samples})
            return f"the shard is cut off or broken after {stems} samples ({error}): download it again"
        return ""

    def rows(self) -> Iterator[Item]:
        folder = PurePosixPath(self.name).parts[:-1]
        split = next((SPLIT_OF[part] for part in folder if part in SPLIT_OF), "")
        for sample in self._samples:
            key = "/".join([*folder, *self._front(sample.stem), sample.stem])
            try:
                span = self._picture(sample)
                metadata = self._metadata(sample.parts)
                address = optional(metadata.get("url"), "url")
                origins = (f"url:{address}",) if address else ()
                row = Row(key, b"", self._captions(sample.parts, metadata), split=split, origins=origins)
            except (BadValueError, BadImageError) as error:
                yield BadRow(key, str(error), split)
            else:
                yield LazyRow(row, partial(self._read, *span))
        # As many bad rows as samples are lost, where that is known: the bound is to see them all.
        held = len(self._samples)
        lost = max(self._counted - held, 1 if self.problem else 0)
        less = f"the shard holds {held} samples and its stats file counts {self._counted}: download it again"
        yield from (BadRow(self.name, self.problem or less, split) for _ in range(lost))

    def _front(self, stem: str) -> list[str]:
        """What keeps equal names in two shards apart: nothing where the shard's number is in them."""
        shard = PurePosixPath(self.name).stem
        return [] if self._is_numbered and stem.isdecimal() and stem.startswith(shard) else [shard]

    def _picture(self, sample: _Sample) -> tuple[int, int]:
        """Offset and size of the sample's one picture."""
        pictures = [extension for extension in PICTURES if extension in sample.parts]
        if sample.problem:
            raise BadValueError(sample.problem)
        if not pictures:
            raise BadValueError(f"{self.name} has no picture of it")
        if len(pictures) > 1:
            raise BadValueError(f"{self.name} has several pictures of it: {', '.join(pictures)}")
        return sample.parts[pictures[0]]

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file, size, offset)
        if len(data) < size:
            raise BadImageError(f"{self.name} ends in the middle of the picture")
        return data

    def _metadata(self, parts: dict[str, tuple[int, int]]) -> dict[str, Any]:
        """The JSON beside a picture, {} where there is none."""
        if "json" not in parts:
            return {}
        try:
            return json_object(decoded(self._read(*parts["json"]), "it"))
        except BadValueError as error:
            raise BadValueError(f"its json cannot be read: {error}") from None

    def _captions(self, parts: dict[str, tuple[int, int]], metadata: dict[str, Any]) -> tuple[str, ...]:
        """The JSON's before the txt's, which of several captions is what `str` makes of the list."""
        caption = metadata.get("caption")
        if "txt" in parts and (missing(caption) or caption == []):
            caption = decoded(self._read(*parts["txt"]), "its txt")
        return texts(caption)


def _add(samples: list[_Sample], member: tarfile.TarInfo) -> None:
    """To the last sample, or as the first member of a new one."""
    stem, _, extension = member.name.rpartition(".")
    stem, kind = stem or member.name, extension.lower()
    if not samples or samples[-1].stem != stem or kind in samples[-1].parts:
        samples.append(_Sample(stem))
    samples[-1].parts[kind] = member.offset_data, member.size
    if not member.isfile():
        samples[-1].problem = f"member {printable(member.name)} is a link and no file"


def _joined(samples: list[_Sample]) -> list[_Sample]:
    """The samples of a shard, in which members of one stem may stand apart but none twice.

    Where one stands twice, each time with all that belongs to it, the first is a sample and the others are bad rows.
    Else nobody knows which text is of which picture, and all of them are bad.
    """
    runs: dict[str, list[_Sample]] = {}
    for sample in samples:
        runs.setdefault(sample.stem, []).append(sample)
    kept = {id(sample) for several in runs.values() for sample in _one_stem(several)}
    return [sample for sample in samples if id(sample) in kept]


def _one_stem(runs: list[_Sample]) -> list[_Sample]:
    """What the runs of members of one stem are: one sample, or as many as a member stands there."""
    often = Counter(extension for run in runs for extension in run.parts)
    extension, times = often.most_common(1)[0]
    if times == 1:
        for run in runs[1:]:
            runs[0].parts |= run.parts
            runs[0].problem = runs[0].problem or run.problem
        return runs[:1]
    whole = len({frozenset(run.parts) for run in runs}) == 1
    name = printable(f"{runs[0].stem}.{extension}")
    for run in runs[1:] if whole else runs[:times]:
        run.problem = f"duplicate member: {name} stands {times} times in the shard"
        run.problem += "" if whole else ", and nobody knows which text is of which picture"
    return runs[:times]
