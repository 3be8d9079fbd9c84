"""Finished shards kept in the workdir, so that a stage that was stopped goes on after the last of them.

    {workdir}/shards/SPLIT-00000.tar               the shard
    {workdir}/shards/SPLIT-00000.SHA256.parquet    its lines of the index and the numbers of their rows; written last

A shard's digest stands in its lines, and theirs in their name: what is damaged is made again.
The next attempt reads its source from the beginning, and takes from here what is said of the rows that lie in
these shards: their pictures are neither read nor decoded. Everything else is made anew, so the artifact is the
same to the bit.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmapkd_core import storage
from cmapkd_core.data.layout import SCHEMA

_ROW = pa.field("row", pa.int64())
_DIGEST = b"sha256"
_LINES = 8  # shards whose lines are held as dictionaries


class SourceChangedError(Exception):
    """The source gives other rows than in the attempt that the saved shards are from."""


class SavedShards:
    """The finished shards of one data set; `SavedShards()` keeps none.

    Args:
        url: a folder of their own in the workdir.

    Attributes:
        damaged: URLs of lines that are not what was saved; their shards are made again.
    """

    def __init__(self, url: str = "") -> None:
        self.url, self.damaged = url, list[str]()
        self._tables: dict[str, pa.Table] = {}  # by shard
        self._recent: dict[str, list[dict[str, Any]]] = {}  # the same as lines, of a few shards
        self._names: list[str] = []
        self._places = np.empty((0, 3), dtype=np.int64)  # number of the row, shard, position in it; by number
        self._uploader = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        if url:
            self._load()

    def _load(self) -> None:
        for name in storage.list_files(self.url):
            if not name.endswith(".parquet"):
                continue
            stem, _, digest = name.removesuffix(".parquet").partition(".")
            data = storage.read_bytes(storage.join(self.url, name))
            if hashlib.sha256(data).hexdigest() == digest:
                self._tables[f"{stem}.tar"] = pq.read_table(io.BytesIO(data))
            else:
                self.damaged.append(storage.join(self.url, name))
        self._names = list(self._tables)
        places = [self._places]
        for shard, table in enumerate(self._tables.values()):
            numbers = table["row"].to_numpy()
            places.append(np.stack([numbers, np.full_like(numbers, shard), np.arange(len(numbers))], axis=1))
        merged = np.concatenate(places)
        self._places = merged[np.argsort(merged[:, 0], kind="stable")]

    def count(self, name: str = "") -> int:
        """Samples of the saved shard `name`, 0 where there is none; without a name, of all of them."""
        return len(self._places) if not name else self._tables[name].num_rows if name in self._tables else 0

    def sample(self, number: int, key: str) -> dict[str, Any] | None:
        """The line of the index of the source's row `number`, or None where no saved shard has it.

        Raises:
            SourceChangedError: that row had another key.
        """
        at = int(np.searchsorted(self._places[:, 0], number))
        if at == len(self._places) or self._places[at, 0] != number:
            return None
        sample: dict[str, Any] = self._lines(self._names[self._places[at, 1]])[self._places[at, 2]]
        if sample["key"] != key:
            raise SourceChangedError(f"row {number} is {key} and was {sample['key']}")
        return sample

    def _lines(self, name: str) -> list[dict[str, Any]]:
        lines = self._recent.get(name)
        if lines is None:  # several threads may come here at once: the same lines twice do no harm
            lines = self._tables[name].drop_columns(["row"]).to_pylist()
            if len(self._recent) >= _LINES:
                self._recent.clear()
            self._recent[name] = lines
        return lines

    def fetch(self, name: str, target: Path) -> str:
        """A copy of the saved shard `name` at `target`; returns its sha256.

        Raises:
            SourceChangedError: it is not what was saved.
        """
        try:
            path = storage.fetch(storage.join(self.url, name), target)
        except FileNotFoundError:
            raise SourceChangedError(f"{name} is gone from {self.url}") from None
        if path != target:
            shutil.copyfile(path, target)
        digest = storage.sha256_file(target)
        if digest != self._tables[name].schema.metadata[_DIGEST].decode():
            raise SourceChangedError(f"{name} in {self.url} is damaged")
        return digest

    def keep(self, path: Path, digest: str, samples: list[dict[str, Any]], numbers: list[int]) -> None:
        """Save a finished shard behind the caller's back; at most one is on its way.

        Raises:
            StorageError: the one before could not be saved.
        """
        if not self.url:
            return
        schema = SCHEMA.append(_ROW).with_metadata({_DIGEST: digest.encode()})
        lines = [{**sample, "row": number} for sample, number in zip(samples, numbers, strict=True)]
        self.wait()
        self._last = self._uploader.submit(self._put, path, pa.Table.from_pylist(lines, schema=schema))

    def _put(self, path: Path, table: pa.Table) -> None:
        storage.put(path, storage.join(self.url, path.name))
        file = io.BytesIO()
        pq.write_table(table, file)
        digest = hashlib.sha256(file.getvalue()).hexdigest()
        storage.write_bytes(storage.join(self.url, f"{path.stem}.{digest}.parquet"), file.getvalue())

    def wait(self) -> None:
        """Until everything that was given to `keep` is saved."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def clear(self) -> None:
        """Delete them; the markers go first, so that no shard looks complete without its bytes."""
        self.wait()
        for name in storage.list_files(self.url):
            if name.endswith(".parquet"):
                storage.delete(storage.join(self.url, name))
        storage.delete_tree(self.url)
