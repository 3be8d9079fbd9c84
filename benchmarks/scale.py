"""Peak memory and seconds of what grows with a data set: its index, a stage's statistics, the leakage gate, a report.

    python benchmarks/scale.py --rows 10000 100000 1000000

Everything is made up but of the form that stages write: an index with a row group a shard of 1,000 pictures, of which
10,000 are held out; statistics with embeddings of `--width`. Each measurement has a process of its own. Peak: the most
memory of its own above that at its start (pages of mapped files are the system's, and not counted). `whole` is the
peer: the index read into memory with a list of its keys, and statistics that are kept until all are there. Both give
the same, which is checked first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from cmapkd_core import storage
from cmapkd_core.catalog import LEAKAGE_CHECKS
from cmapkd_core.config import ALL_LEVELS, DataConfig
from cmapkd_core.data import index
from cmapkd_core.data.index import read_index
from cmapkd_core.data.layout import INDEX, MANIFEST, SCHEMA
from cmapkd_core.data.leakage import gate
from cmapkd_core.data.loader import Batch, TrainLoader
from cmapkd_core.data.order import Order, hashes
from cmapkd_core.methods.base import Method
from cmapkd_core.report.read.artifacts import Source
from cmapkd_core.stages.statistics import collect

SHARD, HELD, BATCH = 1000, 10_000, 4096
LEAKS = 3  # training pictures that are held out too, in as many shards


def shard_lines(number: int, split: str, draw: np.random.Generator) -> pa.Table:
    """The lines of one shard, each with two captions."""
    rows = [f"{split}-{number * SHARD + i:09d}" for i in range(SHARD)]
    words = draw.integers(0, 10**6, (SHARD, 2))
    captions = [[f"a photograph of thing {a} on thing {b}", f"thing {b} under thing {a}"] for a, b in words]
    plain = np.zeros(SHARD, np.int64)
    given = {
        "split": [split] * SHARD,
        "shard": [f"{split}-{number:05d}.tar"] * SHARD,
        "key": rows,
        "ext": ["jpg"] * SHARD,
        "captions": captions,
        "sha256": [draw.bytes(32).hex() for _ in rows],
        "phash": draw.integers(0, 2**63, SHARD).astype(np.uint64),
        "origins": [[f"made:{row}"] for row in rows],
        "group": rows,
        **{f"{part}_{what}": plain for part in ("image", "json") for what in ("offset", "size", "crc32")},
    }
    given |= {"image_size": plain + 10, "json_offset": plain + 10, "json_size": plain + 2}
    columns = [pa.array(given.get(name, [None] * SHARD)).cast(SCHEMA.field(name).type) for name in SCHEMA.names]
    return pa.table(columns, schema=SCHEMA)


def make(folder: Path, rows: int) -> None:
    """An index of `rows` training pictures; LEAKS of them are held out too, and only their shards have files."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    held = [shard_lines(number, "test", draw) for number in range(HELD // SHARD)]
    known = held[0]["sha256"].to_pylist()
    entries = []
    with pq.ParquetWriter(folder / INDEX, SCHEMA) as writer:
        for number in range(rows // SHARD):
            lines = shard_lines(number, "train", draw)
            entries.append({"file": lines["shard"][0].as_py(), "count": SHARD, "bytes": 12, "sha256": ""})
            if number < LEAKS:
                place = SCHEMA.names.index("sha256")
                values = [known[number], *lines["sha256"].to_pylist()[1:]]
                lines = lines.set_column(place, SCHEMA.field(place), pa.array(values))
                (folder / entries[-1]["file"]).write_bytes(b"0123456789{}")
            writer.write_table(lines)
        for lines in held:
            writer.write_table(lines)
    splits = {"train": {"count": rows, "shards": entries, "classes": {}}, "test": {"classes": {}, "shards": []}}
    manifest = {"splits": splits, "index": {"sha256": storage.sha256_file(folder / INDEX)}, "classes": []}
    storage.write_json(str(folder / MANIFEST), manifest)


# ---- what is measured -----------------------------------------------------------------------------


def open_index(folder: Path, cache: Path) -> str:
    """As a rank opens it for a phase, up to the first step's samples."""
    index.MAPPED = 0
    split = read_index(folder / INDEX, ["train", "test"], cache)["train"]
    ids = np.arange(split.table.num_rows)
    order = Order(ids, split.hashes[ids], split.shard[ids], batch=BATCH, rank=0, world=1, seed=1)
    return ",".join(str(split.value("captions", int(i))) for i in order.step(3)[1][:20])


def open_index_whole(folder: Path, cache: Path) -> str:
    """The same with all of it in memory."""
    table = pq.read_table(folder / INDEX, schema=SCHEMA)
    both = [table.filter(pc.equal(table["split"], name)).combine_chunks() for name in ("train", "test")]
    table, ids = both[0], np.arange(both[0].num_rows)
    shard = table["shard"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    order = Order(ids, hashes(table["key"].to_pylist()), shard, batch=BATCH, rank=0, world=1, seed=1)
    return ",".join(str(table["captions"][int(i)].as_py()) for i in order.step(3)[1][:20])


class Made(Method):
    """Statistics that cost nothing."""

    def __init__(self, width: int) -> None:
        torch.nn.Module.__init__(self)
        values = torch.rand(BATCH, width, generator=torch.Generator().manual_seed(0))
        self.rows = {"d": values[:, :8], "u": values[:, 8:16], "teacher_image": values, "teacher_text": values}

    def statistics(self, batch: Batch, targets: object) -> dict[str, torch.Tensor]:
        """The same rows for every batch."""
        return {name: value.clone() for name, value in self.rows.items()} | {"difficulty": torch.ones(BATCH)}


class Steps(TrainLoader):
    """Batches that have keys alone."""

    def __init__(self, rows: int) -> None:
        self.steps_per_epoch, self.count, self.bound = rows // BATCH, rows, 0.0

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """One after another."""
        for number in range(start, stop):
            keys = [f"train-{i:09d}" for i in range(number * BATCH, (number + 1) * BATCH)]
            yield Batch(keys=keys, index=torch.arange(BATCH), images={}, tokens={}, replaced=[])


def statistics(rows: int, width: int, target: Path) -> str:
    """Stage warmup's table, written as it is measured."""
    collect(Made(width), Steps(rows), lambda batch, levels: None, lambda done: None, target)
    return described(target)


def statistics_whole(rows: int, width: int, target: Path) -> str:
    """The same, kept until the end."""
    method, keys, parts = Made(width), list[str](), list[dict[str, torch.Tensor]]()
    loader = Steps(rows)
    for batch in loader.batches(0, loader.steps_per_epoch):
        keys += batch.keys
        parts.append(method.statistics(batch, None))
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    arrays: dict[str, pa.Array] = {"key": pa.array(keys)}
    for kind in ("d", "u"):
        arrays |= {f"{kind}_{name}": pa.array(whole[kind][:, i].numpy()) for i, name in enumerate(ALL_LEVELS)}
    for name in ("teacher_image", "teacher_text"):
        arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(whole[name].flatten().numpy()), width)
    pq.write_table(pa.table(arrays | {"difficulty": pa.array(whole["difficulty"].numpy())}), target)
    return described(target)


def described(path: Path) -> str:
    """What two tables have to agree in."""
    metadata = pq.read_metadata(path)
    last = pq.read_table(path, columns=["key"])["key"][-1]
    return f"{metadata.num_rows} {last} {metadata.schema.names}"


def leakage(folder: Path) -> str:
    """The gate of stage prepare, which takes LEAKS pictures out."""
    config = DataConfig(source="benchmark", leakage_action="drop", leakage=tuple(LEAKAGE_CHECKS))
    train = storage.read_json(str(folder / MANIFEST))["splits"]["train"]["count"]
    return str(gate(folder, config, {}, {"train": train, "used": train, "captions": 2 * train}))


def report(folder: Path) -> str:
    """The captions of 5,000 samples."""
    keys = [f"train-{i:09d}" for i in range(5000)]
    source = Source("shards", "here", frozenset((INDEX,)), lambda name: folder / name)
    return str(source.rows(INDEX, ["key", "captions"], pc.field("key").isin(keys)).num_rows)


# ---- how ------------------------------------------------------------------------------------------


def own_memory() -> int:
    """Bytes of this process that are in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def measured(work: Callable[..., str], *given: object) -> tuple[str, float, int]:
    """What it gives, its seconds, and its peak."""
    receiver, sender = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(sender, work, given))
    process.start()
    sender.close()
    result: tuple[str, float, int] = receiver.recv()
    process.join()
    return result


def _child(pipe: Connection, work: Callable[..., str], given: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    start, done = own_memory(), threading.Event()
    most = [start]

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], own_memory())

    watcher = threading.Thread(target=watch, daemon=True)  # one that failed ends, and who waits for it is told so
    watcher.start()
    begun = time.perf_counter()
    value = work(*given)
    seconds = time.perf_counter() - begun
    done.set()
    watcher.join()
    pipe.send((value, seconds, most[0] - start))


def line(what: str, rows: int, result: tuple[str, float, int], whole: tuple[str, float, int] | None = None) -> None:
    """One of the table."""
    assert whole is None or whole[0] == result[0], f"{what}: {result[0]} is not {whole[0]}"
    more = f"{whole[1]:10.1f}{whole[2] / 2**20:9.0f}" if whole else ""
    print(f"{what:34}{rows:>10,}{result[1]:9.1f}{result[2] / 2**20:9.0f}{more}", flush=True)


def parser() -> argparse.ArgumentParser:
    """Of this command."""
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    cli.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    cli.add_argument("--width", type=int, default=128, help="of the teacher's embeddings in the statistics")
    return cli


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    print(f"{'':34}{'rows':>10}{'s':>9}{'peak MiB':>9}{'whole: s':>10}{'peak':>9}")
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as place:
            folder, cache = Path(place, "set"), Path(place, "cache")
            tempfile.tempdir = place
            make(folder, rows)
            whole = measured(open_index_whole, folder, cache)
            line("index, first process of a machine", rows, measured(open_index, folder, cache), whole)
            line("index, every other rank and phase", rows, measured(open_index, folder, cache), whole)
            shutil.rmtree(cache)
            kept = (measured(work, rows, args.width, Path(place, "table")) for work in (statistics, statistics_whole))
            line(f"statistics, embeddings of {args.width}", rows, *kept)
            line("a report's captions", rows, measured(report, folder))
            line(f"leakage gate, {HELD:,} held out", rows, measured(leakage, folder))
        tempfile.tempdir = None


if __name__ == "__main__":
    main()
