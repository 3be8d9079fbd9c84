"""What it costs to join the parts of a data set, beside what it costs to prepare it, side by side in one run.

    python benchmarks/partitions.py --images 1000 --parts 2 5 --rows 100000

Pictures as of benchmarks/prepare.py (500 x 375 JPEGs, about 88 KB). `whole` is one writer of all rows, `parts` are all
parts together, `join` what stage prepare does with them before the leakage gate. The peer of a join is what no join of
files can be without: every byte is copied once, and the sha256 of the copy taken. The goal is that joining costs no
more than 0.15 of preparing, so that seven machines prepare while one could join. Medians of `--rounds` rounds on one
thread, ratios of one round. Before anything is timed the joined bytes are compared with those of the whole.

The last line is of `--rows` rows with pictures of a few bytes, so that nothing but the bookkeeping is left: seconds of
CPU a million rows, and the most memory of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from prepare import CONFIG, jpegs, rows
from scale import measured

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.inspection import Inspected
from cmapkd_core.data.joined_parts import JoinedPart, join_parts
from cmapkd_core.data.layout import QUARANTINE
from cmapkd_core.data.part_notes import PartNotes
from cmapkd_core.data.prepare_resume import SavedShards
from cmapkd_core.data.rows import Partition, Row
from cmapkd_core.data.writer import Writer, write_shards

GOAL = 0.15


def nothing(done: int) -> None:
    """Nobody looks."""


def whole(folder: Path, count: int, out: Path) -> None:
    """One writer."""
    write_shards(rows(folder, count, 0.0), out, CONFIG, nothing)


def part(folder: Path, count: int, out: Path, which: Partition) -> None:
    """One part."""
    first, last = which.bounds(count)
    own_rows = (row for number, row in enumerate(rows(folder, count, 0.0)) if first <= number < last)
    with PartNotes(out) as notes:
        write_shards(own_rows, out, CONFIG, nothing, notes=notes)


def parts(folder: Path, count: int, out: Path, of: int) -> list[Path]:
    """All of them."""
    for number in range(1, of + 1):
        part(folder, count, out / f"{number}", Partition(number, of))
    return [out / f"{number}" for number in range(1, of + 1)]


def join(there: Sequence[Path], out: Path, config: DataConfig = CONFIG) -> None:
    """The parts of some folders, each file checked as an artifact's is."""
    out.mkdir()
    made, before = list[JoinedPart](), 0
    for folder in there:

        def fetch(name: str, folder: Path = folder) -> Path:
            storage.sha256_file(folder / name)
            return folder / name

        made.append(JoinedPart(fetch, lambda path: None, before))
        before += made[-1].rows_read
    join_parts(made, out, config, nothing)


def copy(there: Path, out: Path) -> None:
    """The peer of a join."""
    out.mkdir()
    for path in there.iterdir():
        shutil.copyfile(path, out / path.name)
        storage.sha256_file(out / path.name)


def digests(folder: Path) -> dict[str, str]:
    """By file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def cpu(work: Callable[..., object], *given: object) -> float:
    """Seconds of this process."""
    started = time.process_time()
    work(*given)
    return time.process_time() - started


def images(count: int, numbers: Sequence[int], rounds: int) -> None:
    """The table."""
    by_form: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, data in enumerate(jpegs(count)):
            (folder / f"{number}.jpg").write_bytes(data)
        whole(folder, count, folder / "whole")  # it warms up too
        for of in numbers:
            join(parts(folder, count, folder / f"p{of}", of), folder / "joined")
            assert digests(folder / "joined") == digests(folder / "whole"), f"{of} parts make other bytes"
            shutil.rmtree(folder / "joined")
        for turn in range(rounds):
            by_form.setdefault("whole", []).append(cpu(whole, folder, count, folder / f"w{turn}"))
            by_form.setdefault("peer: copy and sha256", []).append(cpu(copy, folder / "whole", folder / f"c{turn}"))
            for of in numbers:
                by_form.setdefault(f"{of} parts", []).append(cpu(parts, folder, count, folder / f"q{of}", of))
                there = sorted((folder / f"q{of}").iterdir())
                by_form.setdefault(f"join of {of}", []).append(cpu(join, there, folder / f"j{turn}"))
                for gone in (f"q{of}", f"j{turn}"):
                    shutil.rmtree(folder / gone)
            for gone in (f"w{turn}", f"c{turn}"):
                shutil.rmtree(folder / gone)
    print("| | ms of CPU an image | / peer | / whole | goal |\n|---|---|---|---|---|")
    for what, seconds in by_form.items():
        of_whole, of_peer = (
            statistics.median(a / b for a, b in zip(seconds, by_form[of], strict=True))
            for of in ("whole", "peer: copy and sha256")
        )
        goal = f"{GOAL:g}" if what.startswith("join") else ""
        each = 1e3 * statistics.median(seconds) / count
        print(f"| {what} | {each:.2f} | {of_peer:.2f} | {of_whole:.3f} | {goal} |", flush=True)


def many(out: Path, first: int, last: int) -> None:
    """A part of rows that nobody has to decode."""
    config = DataConfig(samples_per_shard=1000)
    draw = np.random.default_rng(first)
    with PartNotes(out) as notes, open(out / QUARANTINE, "w", encoding="utf-8") as quarantine:
        writer = Writer(out, config, quarantine, SavedShards(), notes)
        for number in range(first, last):
            row = Row(
                f"img-{number:09d}", b"0123456789", (f"a photograph of thing {number}",), origins=(f"url:{number}",)
            )
            writer.add(Inspected(row, "jpg", draw.bytes(32).hex(), int(draw.integers(2**63)), 8, 8))
        writer.close()
        writer.finish(judged=False)


def bookkeeping(count: int) -> None:
    """The last line."""
    with tempfile.TemporaryDirectory() as name:
        there = [Path(name, f"{number}") for number in range(5)]
        works = [(out, *Partition(at + 1, 5).bounds(count)) for at, out in enumerate(there)]
        with multiprocessing.get_context("fork").Pool(min(len(works), os.cpu_count() or 1)) as pool:
            pool.starmap(many, works)
        work = measured(joined_seconds, there, Path(name, "joined"))
        print(
            f"{count} rows of 10 bytes in 5 parts: {float(work[0]) / count * 1e6:.0f} s of CPU a million rows, ", end=""
        )
        print(f"peak {work[2] / 2**20:.0f} MiB")


def joined_seconds(there: Sequence[Path], out: Path) -> str:
    """Of CPU."""
    return str(cpu(join, there, out, DataConfig(samples_per_shard=1000)))


def parser() -> argparse.ArgumentParser:
    """Of this command."""
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    cli.add_argument("--images", type=int, default=1000)
    cli.add_argument("--parts", type=int, nargs="+", default=[2, 5])
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--rows", type=int, default=100_000)
    return cli


def main() -> None:
    """Measure and print."""
    given = parser().parse_args()
    images(given.images, given.parts, given.rounds)
    bookkeeping(given.rows)


if __name__ == "__main__":
    main()
