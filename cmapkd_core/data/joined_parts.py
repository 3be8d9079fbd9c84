"""The data set of a source from those of its partitions: the same bytes as if one machine had read all its rows.

What a shard holds depends on how many rows before it are good, which no partition knows. So each part has shards of its
own (`part_notes.py`), and those of the whole are cut out of them: a member of a tar is the same wherever it stands, and
the index has the part's lines with other places. Nothing is decoded or parsed; some shards' lines of the index are in
memory at a time, and 24 bytes of every sample: hashes of its key, and the number of its row.

A row whose key an earlier part has stored is a bad one, as in one piece. Where numbers of questions meet, or keys of
pictures with questions, what is bad depends on what was bad before it: `EntangledError`, and all is read in one piece.
"""

from __future__ import annotations

import heapq
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.index import key_hashes
from cmapkd_core.data.layout import INDEX, MANIFEST, QUARANTINE, QUESTION_SCHEMA, QUESTIONS, SCHEMA
from cmapkd_core.data.order import hashes
from cmapkd_core.data.part_notes import ASKED, PART, UNUSED, rows_file
from cmapkd_core.data.prepare_resume import SavedShards
from cmapkd_core.data.rows import SPLITS
from cmapkd_core.data.tar import PARTS, Member, join_tars, read_back
from cmapkd_core.data.threads import in_order
from cmapkd_core.data.writer import DUPLICATE, Writer

_NEVER = 2**63 - 1
_GROUP = 2**20  # rows that a row group has at most, as pyarrow writes them
_MOST = 2**16  # keys hashed at a time


class EntangledError(Exception):
    """Which rows are bad cannot be told from the parts."""


class JoinedPart:
    """A part, of which later rows than the source's `limit` are as if there were none.

    Args:
        fetch: a local path of one of its files, as it was written.
        release: called with the path of a shard that is read no more.
        before: rows of the source before its own.

    Attributes:
        rows_read: its rows.
        rows: by split the number of the row of each sample in the source, int64 [n].
        asked: numbers of questions.
        dropped: by split positions of samples that are none of the whole's.
    """

    def __init__(
        self, fetch: Callable[[str], Path], release: Callable[[Path], object], before: int, limit: int = _NEVER
    ) -> None:
        self._fetch, self._release, self.before, self.limit = fetch, release, before, limit
        self.manifest = storage.read_json(str(fetch(MANIFEST)))
        self.rows_read = min(int(self.manifest["seen"]), limit - before)
        self.rows = {split: self._rows(split) for split in SPLITS}
        self.asked = self._numbers(ASKED)
        self.dropped = {split: np.empty(0, np.int64) for split in SPLITS}
        self._index, self._paths, self._groups = fetch(INDEX), dict[str, Path](), self._row_groups()
        self._metadata = pq.read_metadata(self._index)  # of thousands of row groups, once

    def _rows(self, split: str) -> np.ndarray:
        rows = self._numbers(rows_file(split)) + self.before
        return rows[: np.searchsorted(rows, self.limit, side="right")]

    def _numbers(self, name: str) -> np.ndarray:
        with storage.opened(str(self._fetch(name))) as file:
            return np.fromfile(file, "<i8")

    def _row_groups(self) -> dict[str, range]:
        counts = {shard["file"]: shard["count"] for split in SPLITS for shard in self.shards(split)}
        groups, at = dict[str, range](), 0
        for name in storage.read_json(str(self._fetch(PART)))["shards"]:
            groups[name] = range(at, at := at + -(-counts[name] // _GROUP))
        return groups

    def shards(self, split: str) -> list[dict[str, Any]]:
        """What shards.json says of a split's shards."""
        entries: list[dict[str, Any]] = self.manifest["splits"][split]["shards"]
        return entries

    def path(self, name: str) -> Path:
        """A local path of a shard; it is fetched and checked once."""
        if name not in self._paths:
            self._paths[name] = self._fetch(name)
        return self._paths[name]

    def release(self, name: str) -> None:
        """Let go of a shard."""
        self._release(self._paths.pop(name))

    def lines(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A shard's lines of the index."""
        with pq.ParquetFile(self._index, metadata=self._metadata, memory_map=True) as file:
            return file.read_row_groups(list(self._groups[name]), columns=columns)

    def keys(self, split: str) -> Iterator[tuple[int, pa.ChunkedArray]]:
        """Keys of the split's samples, those of a shard with the position of its first one."""
        first, count = 0, len(self.rows[split])
        for shard in self.shards(split):
            if first < count:
                yield first, self.lines(shard["file"], ["key"])["key"].slice(0, count - first)
            first += shard["count"]

    def bad(self) -> Iterator[dict[str, Any]]:
        """The entries of its quarantine list."""
        return self._entries(QUARANTINE, json.loads)

    def unused(self) -> Iterator[dict[str, Any]]:
        """Row and key of what is in no shard, though its key is new here."""
        return self._entries(UNUSED, lambda line: dict(zip(("row", "key"), json.loads(line), strict=True)))

    def _entries(self, name: str, parse: Callable[[bytes], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        with storage.opened(str(self._fetch(name))) as file:
            for entry in map(parse, file):
                entry["row"] += self.before
                if entry["row"] <= self.limit:
                    yield entry

    def kept(self, split: str) -> Iterator[tuple[int, int]]:
        """Positions first..last-1 of samples that are the whole's too."""
        edges = [-1, *self.dropped[split].tolist(), len(self.rows[split])]
        return ((before + 1, after) for before, after in pairwise(edges) if before + 1 < after)

    def questions(self) -> pa.Table:
        """Those of its pictures up to the limit."""
        if "questions" not in self.manifest:
            return QUESTION_SCHEMA.empty_table()
        table = pq.read_table(self._fetch(QUESTIONS), schema=QUESTION_SCHEMA)
        if self.rows_read == self.manifest["seen"]:
            return table
        known = pa.chunked_array([part for split in SPLITS for _, keys in self.keys(split) for part in keys.chunks])
        return table.filter(pc.is_in(table["key"], value_set=known))


def join_parts(
    parts: Sequence[JoinedPart], out: Path, config: DataConfig, progress: Callable[[int], None], workers: int = 0
) -> dict[str, int]:
    """Write the data set of all rows.

    Args:
        parts: of all partitions, in order.
        out: as of `write_shards`.
        progress: called with the number of samples written so far.
        workers: shards at a time; nothing depends on it.

    Returns:
        The counts that `write_shards` gives.

    Raises:
        EntangledError: the rows have to be read in one piece.
        TooManyBadError, InputError: as `write_shards`.
    """
    repeated = _repeated(parts)
    with open(out / QUARANTINE, "w", encoding="utf-8") as quarantine:
        writer = Writer(out, config, quarantine, SavedShards())
        for entry in _quarantine(parts, repeated):
            writer.refuse(entry)
        plan = _plan(parts, config.samples_per_shard)
        cutter = _Cutter(parts, out, plan)
        used = 0
        for shard, lines, path, digest in in_order(plan, cutter.cut, workers):
            writer.take(shard.split, lines, path, digest)
            progress(used := used + lines.num_rows)
        for part in parts:
            writer.take_questions(part.questions(), sum("question" in entry for entry in part.bad()))
        writer.rows_read = sum(part.rows_read for part in parts)
        writer.left_out = writer.rows_read - writer.bad - used
        writer.close()
    return writer.finish()


# ---- what is bad ----------------------------------------------------------------------------------


def _quarantine(parts: Sequence[JoinedPart], repeated: dict[int, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All bad rows and questions by row; that its key is an earlier row's goes before what else is wrong with one."""
    bad = (entry for part in parts for entry in part.bad() if entry["row"] not in repeated)
    return heapq.merge(bad, (repeated[row] for row in sorted(repeated)), key=itemgetter("row"))


def _repeated(parts: Sequence[JoinedPart]) -> dict[int, dict[str, Any]]:
    """Entries of the quarantine list by row, of rows whose key an earlier part has; its samples are dropped.

    Raises:
        EntangledError: there is such a row, or question, and there are questions.
    """
    numbers = [np.unique(part.asked) for part in parts]
    together = np.concatenate(numbers)
    if len(np.unique(together)) < len(together):
        raise EntangledError("questions of two parts have the same number")
    suspects = _suspects(parts)
    repeated = _same_keys(parts, suspects) if len(suspects) else {}
    if repeated and len(together):
        raise EntangledError(
            f"pictures with questions of two parts have the key {next(iter(repeated.values()))['key']}"
        )
    return repeated


def _suspects(parts: Sequence[JoinedPart]) -> np.ndarray:
    """Hashes of keys that an earlier part may have stored: uint64, sorted."""
    known, suspects = np.empty(0, np.uint64), [np.empty(0, np.uint64)]
    for part in parts:
        own = [key_hashes(keys) for split in SPLITS for _, keys in part.keys(split)]
        unused = (hashes([entry["key"] for entry in some]) for some in _grouped(part.unused()))
        suspects += [some[_among(some, known)] for some in chain(own, unused)]
        known = np.concatenate([known, *own])
        known.sort()
    return np.unique(np.concatenate(suspects))


def _grouped(entries: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while some := [entry for _, entry in zip(range(_MOST), entries, strict=False)]:
        yield some


def _among(some: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of `some` are in `known`, which is sorted: bool [n]."""
    if not len(known):
        return np.zeros(len(some), bool)
    result: np.ndarray = known[np.minimum(np.searchsorted(known, some), len(known) - 1)] == some
    return result


def _same_keys(parts: Sequence[JoinedPart], suspects: np.ndarray) -> dict[int, dict[str, Any]]:
    """As `_repeated`, by the keys themselves."""
    stored, repeated = set[str](), dict[int, dict[str, Any]]()

    def repeat(row: int, key: str) -> bool:
        if key in stored:
            repeated[row] = {"row": row, "key": key, "reason": DUPLICATE}
        return key in stored

    for part in parts:
        for some in _grouped(part.unused()):
            for at in np.flatnonzero(_among(hashes([entry["key"] for entry in some]), suspects)).tolist():
                repeat(some[at]["row"], some[at]["key"])
        own = set[str]()
        for split in SPLITS:
            dropped = []
            for first, keys in part.keys(split):
                for at in np.flatnonzero(_among(key_hashes(keys), suspects)).tolist():
                    own.add(key := keys[at].as_py())
                    if repeat(int(part.rows[split][first + at]), key):
                        dropped.append(first + at)
            part.dropped[split] = np.asarray(dropped, np.int64)
        stored |= own
    return repeated


# ---- shards ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """Samples first..last-1 of a shard of a part."""

    part: int
    shard: str
    first: int
    last: int


@dataclass(frozen=True)
class _Shard:
    """A shard of the whole. ready: row that shows that no more is to come; _NEVER of a split's last one."""

    split: str
    number: int
    runs: tuple[_Run, ...]
    ready: int


def _plan(parts: Sequence[JoinedPart], size: int) -> list[_Shard]:
    """The shards in the order in which one writer completes them, and the index has them."""
    shards = [shard for split in SPLITS for shard in _shards_of(split, parts, size)]
    return sorted(shards, key=lambda shard: shard.ready)  # which keeps SPLITS' order of the last ones


def _shards_of(split: str, parts: Sequence[JoinedPart], size: int) -> Iterator[_Shard]:
    runs, room, number = list[_Run](), size, 0
    for which, part in enumerate(parts):
        names = [shard["file"] for shard in part.shards(split)]
        for first, last in part.kept(split):
            while first < last:
                if not room:
                    yield _Shard(split, number, tuple(runs), int(part.rows[split][first]))
                    runs, room, number = [], size, number + 1
                shard, skipped = divmod(first, size)
                count = min(last - first, room, size - skipped)
                runs.append(_Run(which, names[shard], skipped, skipped + count))
                first, room = first + count, room - count
    if runs:
        yield _Shard(split, number, tuple(runs), _NEVER)


class _Cutter:
    """Writes shards, and lets go of those of the parts that no other one is cut out of."""

    def __init__(self, parts: Sequence[JoinedPart], out: Path, plan: Sequence[_Shard]) -> None:
        self._parts, self._out, self._lock = parts, out, threading.Lock()
        self._left = Counter((run.part, run.shard) for shard in plan for run in shard.runs)

    def cut(self, shard: _Shard) -> tuple[_Shard, pa.Table, Path, str]:
        """The shard, its lines of the index, its path and its sha256."""
        path = self._out / f"{shard.split}-{shard.number:05d}.tar"
        tables, taken = list[pa.Table](), list[tuple[Path, int, int]]()
        at = 0
        for run in shard.runs:
            part = self._parts[run.part]
            lines = part.lines(run.shard)
            ends = _ends(lines)
            first, last = ends[[run.first, run.last]].tolist()
            tables.append(_moved(lines.slice(run.first, run.last - run.first), path.name, at - first))
            taken.append((part.path(run.shard), first, last))
            at += last - first
        join_tars(path, taken)
        index = pa.concat_tables(tables).combine_chunks()
        digest = read_back(path, _members(index))
        for run in shard.runs:
            self._used(run)
        return shard, index, path, digest

    def _used(self, run: _Run) -> None:
        with self._lock:
            self._left[run.part, run.shard] -= 1
            gone = not self._left[run.part, run.shard]
        if gone:
            self._parts[run.part].release(run.shard)


def _ends(lines: pa.Table) -> np.ndarray:
    """Where each sample of a shard begins, and where the last one ends: int64 [n + 1]."""
    blocks = tarfile.BLOCKSIZE
    ends = [
        lines[f"{part}_offset"].to_numpy() + -(-lines[f"{part}_size"].to_numpy() // blocks) * blocks for part in PARTS
    ]
    return np.concatenate([[0], np.maximum(*ends)])


def _moved(lines: pa.Table, shard: str, bytes_on: int) -> pa.Table:
    """Lines of the index for the same members in another shard."""
    new = {"shard": pa.repeat(pa.scalar(shard), lines.num_rows)}
    new |= {name: pc.add(lines[name], bytes_on) for name in ("image_offset", "json_offset")}
    return pa.table([new.get(name, lines[name]) for name in SCHEMA.names], schema=SCHEMA)


def _members(lines: pa.Table) -> Iterator[Member]:
    keys = lines["key"].to_pylist()
    for part in PARTS:
        places = (lines[f"{part}_{what}"].to_pylist() for what in ("offset", "size", "crc32"))
        yield from ((key, part, *place) for key, *place in zip(keys, *places, strict=True))
