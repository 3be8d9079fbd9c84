"""The index of a prepared data set by split: in memory where it is small, else mapped from a file of the machine.

A large index.parquet is written once a machine as Arrow IPC, which the ranks and workers map: its pages are in memory
once, and the system may drop them. Beside it lie the numbers of each sample's shard and the hashes of the keys, so that
no process holds a list of all keys.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmapkd_core.data.copies import turn
from cmapkd_core.data.layout import SCHEMA
from cmapkd_core.data.order import hashes

MAPPED = 100_000  # rows from which on an index is mapped: below, a file of its own is not worth it
ROWS = 1 << 16  # of a chunk of the mapped table, and in memory while it is written
_TABLE, _SHARD, _HASHES, _NAMES = "table.arrow", "shard.i32", "hashes.u64", "shards.json"


class IndexSplit:
    """The samples of one split.

    Attributes:
        table: columns as in `layout.SCHEMA`; all its chunks but the last have the same number of rows.
        shards: names of the shard files.
        shard: number in `shards` of each sample's, int32 [n].
    """

    def __init__(self, table: pa.Table, shards: list[str], shard: np.ndarray, key_hashes: np.ndarray | None = None):
        self.table, self.shards, self.shard = table, shards, shard
        self._hashes = key_hashes
        self._chunks = {name: table[name].chunks for name in table.column_names}
        self._rows = max(1, len(self._chunks["key"][0])) if table.num_rows else 1

    def value(self, column: str, i: int) -> Any:
        """A sample's value."""
        return self._chunks[column][i // self._rows][i % self._rows].as_py()

    @property
    def hashes(self) -> np.ndarray:
        """`order.hash64` of the keys: uint64 [n]."""
        if self._hashes is None:
            self._hashes = key_hashes(self.table["key"])
        return self._hashes


class MappedSplit(IndexSplit):
    """The same, from the files that `_write` made; other processes that get it map them too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        table = pa.ipc.open_file(pa.memory_map(str(folder / _TABLE))).read_all()
        arrays = (_mapped(folder / name, kind) for name, kind in ((_SHARD, np.int32), (_HASHES, np.uint64)))
        super().__init__(table, json.loads((folder / _NAMES).read_bytes()), *arrays)

    def __reduce__(self) -> tuple[type[MappedSplit], tuple[Path]]:
        return MappedSplit, (self.folder,)


def key_hashes(keys: pa.ChunkedArray) -> np.ndarray:
    """`order.hash64` of each, with a chunk of texts in memory."""
    parts = [hashes(part.to_pylist()) for chunk in keys.chunks for part in _sliced(chunk)]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _sliced(chunk: pa.Array) -> Iterator[pa.Array]:
    return (chunk.slice(first, ROWS) for first in range(0, len(chunk), ROWS))


def read_index(path: Path, splits: Iterable[str], cache: Path) -> dict[str, IndexSplit]:
    """The splits of an index.

    Args:
        path: index.parquet.
        cache: a local folder for this content alone, which processes of this machine share.
    """
    with pq.ParquetFile(path, memory_map=True) as parquet:
        large = parquet.metadata.num_rows >= MAPPED
    if not large:
        table = pq.read_table(path, schema=SCHEMA)
        return {name: _in_memory(table, name) for name in splits}
    target = cache / "index"
    if not target.is_dir():
        with turn(target) as folder:
            if not target.is_dir():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
                _write(path, list(splits), folder)
                folder.rename(target)
    return {name: MappedSplit(target / name) for name in splits}


def parts_of(path: Path, rows: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A parquet file's lines, about `rows` at a time: a reader of the whole file would keep what it has read."""
    with pq.ParquetFile(path, memory_map=True) as parquet:
        groups, count = list[int](), 0
        for number in range(parquet.num_row_groups):
            groups.append(number)
            count += parquet.metadata.row_group(number).num_rows
            if count >= rows or number == parquet.num_row_groups - 1:
                for batch in parquet.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False):
                    yield pa.Table.from_batches([batch])
                groups, count = [], 0


def _in_memory(table: pa.Table, name: str) -> IndexSplit:
    table = table.filter(pc.equal(table["split"], name)).combine_chunks()
    shard = table["shard"].combine_chunks().dictionary_encode()
    return IndexSplit(table, shard.dictionary.to_pylist(), shard.indices.to_numpy().astype(np.int32))


def _mapped(path: Path, kind: type[np.generic]) -> np.ndarray:
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)


def _write(path: Path, splits: Sequence[str], folder: Path) -> None:
    """A folder for each split, with about ROWS rows of each in memory."""
    writers = {name: _Writer(folder / name) for name in splits}
    try:
        for part in parts_of(path, ROWS):
            rows = part.cast(SCHEMA)
            for name, writer in writers.items():
                writer.add(rows.filter(pc.equal(rows["split"], name)))
        for writer in writers.values():
            writer.end()
    finally:
        for writer in writers.values():
            writer.close()


class _Writer:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder, self._numbers, self._waiting = folder, dict[str, int](), SCHEMA.empty_table()
        self._table = pa.ipc.new_file(str(folder / _TABLE), SCHEMA)
        self._shard, self._hashes = ((folder / name).open("wb") for name in (_SHARD, _HASHES))

    def add(self, rows: pa.Table) -> None:
        self._waiting = pa.concat_tables([self._waiting, rows])
        while self._waiting.num_rows >= ROWS:
            self._put(self._waiting.slice(0, ROWS))
            self._waiting = self._waiting.slice(ROWS).combine_chunks()

    def _put(self, rows: pa.Table) -> None:
        rows = rows.combine_chunks()
        self._table.write_table(rows)
        names = rows["shard"].to_pylist()
        numbers = [self._numbers.setdefault(name, len(self._numbers)) for name in names]
        self._shard.write(np.asarray(numbers, np.int32).data)
        self._hashes.write(hashes(rows["key"].to_pylist()).data)

    def end(self) -> None:
        if self._waiting.num_rows:
            self._put(self._waiting)
        (self._folder / _NAMES).write_text(json.dumps(list(self._numbers)))

    def close(self) -> None:
        self._table.close()
        for file in (self._shard, self._hashes):
            file.flush()
            os.fsync(file.fileno())
            file.close()
