"""A large index is mapped and not read: the same samples, and no table in memory."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmapkd_core.data import index
from cmapkd_core.data.copies import turn
from cmapkd_core.data.index import read_index
from cmapkd_core.data.layout import INDEX, SCHEMA
from cmapkd_core.data.order import hashes
from cmapkd_core.data.shards import ShardSet

SPLITS = ("train", "val", "test")


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every index is large, with seven rows a chunk; the folder for its files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(index, "MAPPED", 0)
    monkeypatch.setattr(index, "ROWS", 7)
    return tmp_path / "cache"


def test_a_mapped_index_is_the_one_in_memory(scenes: ShardSet, scenes_url: str, mapped: Path) -> None:
    there = ShardSet.open(scenes_url, mapped)
    for split in SPLITS:
        assert there.table(split).equals(scenes.table(split))
        assert there.table(split).schema.equals(SCHEMA)
        assert np.array_equal(there.key_hashes(split), hashes(scenes.keys(split)))
        assert np.array_equal(there.key_hashes(split), scenes.key_hashes(split))
        assert np.array_equal(there.shard_numbers(split), scenes.shard_numbers(split))
        for i in range(scenes.count(split)):
            assert there.captions(split, i) == scenes.captions(split, i)
            assert there.read_image(split, i) == scenes.read_image(split, i)
            assert there.read_note(split, i) == scenes.read_note(split, i)


def test_another_process_maps_the_same_file(scenes_url: str, mapped: Path) -> None:
    first = read_index(Path(scenes_url, INDEX), SPLITS, mapped)
    written = {path: path.stat().st_mtime_ns for path in mapped.rglob("*")}
    again = read_index(Path(scenes_url, INDEX), SPLITS, mapped)
    sent = pickle.dumps(again["train"])
    assert len(sent) < 1000
    for split in (again["train"], pickle.loads(sent)):
        assert split.table.equals(first["train"].table)
    assert written == {path: path.stat().st_mtime_ns for path in mapped.rglob("*")}


def test_what_a_killed_process_wrote_is_written_anew(scenes_url: str, mapped: Path) -> None:
    with turn(mapped / "index") as folder:
        (folder / "train").mkdir(parents=True)
        (folder / "train" / "table.arrow").write_bytes(b"half")
    assert read_index(Path(scenes_url, INDEX), SPLITS, mapped)["train"].table.num_rows
    assert not folder.exists()


def test_splits_that_lie_between_each_other(mapped: Path, tmp_path: Path) -> None:
    rows = [{"split": SPLITS[i % 2], "shard": f"s{i // 5}", "key": f"k{i}"} for i in range(50)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / INDEX)
    found = read_index(tmp_path / INDEX, SPLITS, mapped)
    for number, split in enumerate(SPLITS[:2]):
        own = rows[number::2]
        assert [found[split].value("key", i) for i in range(25)] == [row["key"] for row in own]
        assert [found[split].shards[i] for i in found[split].shard] == [row["shard"] for row in own]
    assert found["test"].table.num_rows == len(found["test"].hashes) == 0


def test_a_mapped_table_is_not_in_memory(mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "ROWS", 500)
    rows = [{"split": "train", "shard": "s", "key": f"k{i}", "captions": ["long " * 100]} for i in range(4000)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / INDEX, row_group_size=500)
    del rows
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    split = read_index(tmp_path / INDEX, ["train"], mapped)["train"]
    assert split.value("captions", 3999) == ["long " * 100]
    assert split.table.nbytes > 2_000_000
    assert pool.bytes_allocated() - before < 200_000
