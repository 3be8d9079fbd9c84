"""Taking samples out of a prepared data set that is still local: out of shards, tables and manifest alike."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmapkd_core import storage
from cmapkd_core.data.layout import INDEX, MANIFEST, QUESTION_SCHEMA, QUESTIONS, SCHEMA
from cmapkd_core.data.tar import Shard


def drop_samples(out: Path, split: str, keys: set[str]) -> None:
    """Write the shards that hold `keys` anew without them, and everything that counts or places their bytes.

    Args:
        out: what `write_shards` wrote.
        split: that all of `keys` are in.
    """
    index, manifest = pq.read_table(out / INDEX, schema=SCHEMA), storage.read_json(str(out / MANIFEST))
    lines: list[dict[str, Any]] = []
    entries = []
    for entry in manifest["splits"][split]["shards"]:
        samples = index.filter(pc.equal(index["shard"], entry["file"])).to_pylist()
        kept = [sample for sample in samples if sample["key"] not in keys]
        if len(kept) < len(samples):
            kept = _rewrite(out / entry["file"], kept)
            entry = _entry(out / entry["file"], len(kept))
        if kept:
            entries.append(entry)
            lines += kept
    others = index.filter(pc.not_equal(index["split"], split))
    pq.write_table(pa.concat_tables([pa.Table.from_pylist(lines, schema=SCHEMA), others]), out / INDEX)
    manifest["index"]["sha256"] = storage.sha256_file(out / INDEX)
    classes = Counter(line["class_name"] for line in lines if line["class_name"])
    manifest["splits"][split] |= {"count": len(lines), "shards": entries, "classes": dict(sorted(classes.items()))}
    manifest["classes"] = sorted({name for part in manifest["splits"].values() for name in part["classes"]})
    if "questions" in manifest:
        manifest["splits"][split]["questions"] = _drop_questions(out / QUESTIONS, split, keys)
        manifest["questions"]["sha256"] = storage.sha256_file(out / QUESTIONS)
    storage.write_json(str(out / MANIFEST), manifest)


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
