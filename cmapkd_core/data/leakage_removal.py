"""Taking samples out of a prepared data set that is still local: out of shards, tables and manifest alike."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmapkd_core import storage
from cmapkd_core.data.index import parts_of
from cmapkd_core.data.layout import INDEX, MANIFEST, QUESTION_SCHEMA, QUESTIONS, SCHEMA
from cmapkd_core.data.tar import Shard

_ROWS = 1 << 14  # of the index in memory at a time, and those of a shard


def drop_samples(out: Path, split: str, keys: set[str]) -> None:
    """Write the shards that hold `keys` anew without them, and everything that counts or places their bytes.

    Args:
        out: what `write_shards` wrote.
        split: that all of `keys` are in.
    """
    gone = pa.array(sorted(keys))
    manifest, new = storage.read_json(str(out / MANIFEST)), out / f"{INDEX}.new"
    entries = {entry["file"]: entry for entry in manifest["splits"][split]["shards"]}
    classes: Counter[str] = Counter()
    with _Groups(new) as index:
        for rows in _by_shard(_lines(out / INDEX, pc.field("split") == split)):
            file = rows["shard"][0].as_py()
            if pc.any(pc.is_in(rows["key"], value_set=gone)).as_py():
                kept = _rewrite(out / file, [sample for sample in rows.to_pylist() if sample["key"] not in keys])
                entries[file] = _entry(out / file, len(kept))
                rows = pa.Table.from_pylist(kept, schema=SCHEMA)
            classes.update(name for name in rows["class_name"].to_pylist() if name)
            index.add(rows)
        for rows in _lines(out / INDEX, pc.field("split") != split):
            index.add(rows)
    new.replace(out / INDEX)
    manifest["index"]["sha256"] = storage.sha256_file(out / INDEX)
    left = [entry for entry in entries.values() if entry]
    count = sum(entry["count"] for entry in left)
    manifest["splits"][split] |= {"count": count, "shards": left, "classes": dict(sorted(classes.items()))}
    manifest["classes"] = sorted({name for part in manifest["splits"].values() for name in part["classes"]})
    if "questions" in manifest:
        manifest["splits"][split]["questions"] = _drop_questions(out / QUESTIONS, split, keys)
        manifest["questions"]["sha256"] = storage.sha256_file(out / QUESTIONS)
    storage.write_json(str(out / MANIFEST), manifest)


class _Groups:
    """An index in row groups of many shards: each costs memory, in who writes and in who reads it."""

    def __init__(self, path: Path) -> None:
        self._writer, self._waiting, self._count = pq.ParquetWriter(path, SCHEMA), list[pa.Table](), 0

    def __enter__(self) -> _Groups:
        return self

    def __exit__(self, *error: object) -> None:
        self._put()
        self._writer.close()

    def add(self, rows: pa.Table) -> None:
        """Lines after those before."""
        self._waiting.append(rows)
        self._count += rows.num_rows
        if self._count >= _ROWS:
            self._put()

    def _put(self) -> None:
        if self._count:
            self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting, self._count = [], 0


def _lines(index: Path, which: pc.Expression) -> Iterator[pa.Table]:
    """Lines of an index.parquet, some at a time."""
    for part in parts_of(index, _ROWS):
        if (rows := part.cast(SCHEMA).filter(which)).num_rows:
            yield rows


def _by_shard(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same lines, those of a shard together; they follow each other."""
    waiting = SCHEMA.empty_table()
    for part in parts:
        waiting = pa.concat_tables([waiting, part]).combine_chunks()
        ends = np.flatnonzero(pc.not_equal(waiting["shard"][1:], waiting["shard"][:-1])) + 1
        for first, last in pairwise([0, *ends.tolist()]):
            yield waiting.slice(first, last - first)
        waiting = waiting.slice(int(ends[-1]) if len(ends) else 0)
    if waiting.num_rows:
        yield waiting


def _rewrite(path: Path, kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same shard with `kept` alone, and their new lines of the index; no file where nothing is kept."""
    old = path.with_suffix(".old")
    path.rename(old)
    if kept:
        shard = Shard(path)
        with open(old, "rb") as file:
            for sample in kept:
                image, text = (
                    os.pread(file.fileno(), sample[f"{part}_size"], sample[f"{part}_offset"])
                    for part in ("image", "json")
                )
                shard.add(0, sample, image, json.loads(text))
        kept = shard.seal()
    old.unlink()
    return kept


def _entry(path: Path, count: int) -> dict[str, Any]:
    if not count:
        return {}
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": storage.sha256_file(path),
        "count": count,
    }


def _drop_questions(path: Path, split: str, keys: set[str]) -> int:
    """Number of questions that the split keeps."""
    table = pq.read_table(path, schema=QUESTION_SCHEMA)
    gone = pc.and_(pc.equal(table["split"], split), pc.is_in(table["key"], pa.array(sorted(keys))))
    table = table.filter(pc.invert(gone))
    pq.write_table(table, path)
    return int(pc.sum(pc.equal(table["split"], split)).as_py() or 0)
