"""Images a second of stage prepare's inner part, leakage gate included, by number of threads, side by side in one run.

    python benchmarks/prepare.py --images 2000 --threads 0 1 2 4

Pictures are 500 x 375 JPEGs with the spectrum of photographs (about 88 KB); each row of the table is the median of
`--rounds` rounds in which the peer and every number of threads have their turn. The peer decodes each picture by Pillow
and writes it and its JSON by webdataset's ShardWriter: no hash, no gate, nothing read back. The ratio is that of the
seconds of CPU an image, the median over the rounds; the goal is what the ratio may be. First is checked that the shards
hold what the files held.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset import ShardWriter

from cmapkd_core.config import DataConfig
from cmapkd_core.data.leakage import gate
from cmapkd_core.data.rows import LazyRow, Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.writer import write_shards

WIDTH, HEIGHT = 500, 375
CONFIG = DataConfig(source="benchmark", leakage_action="allow")
GOAL = 1.07  # with hash and gate: 3.3 ms an image where the peer's is 3.1
PEER = "peer"


def jpegs(count: int) -> list[bytes]:
    """Distinct pictures: one field of 1/f noise each, rolled and tinted for the rest."""
    draw = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.fftfreq(WIDTH)[None])
    frequency[0, 0] = 1
    made = []
    for _ in range(count):
        waves = np.fft.ifft2(np.fft.fft2(draw.normal(size=(HEIGHT, WIDTH))) / frequency**1.2).real
        grey = (waves - waves.mean()) / waves.std() * 50 + 128
        pixels = (grey[..., None] * draw.uniform(0.7, 1.3, 3)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def rows(folder: Path, count: int, latency: float) -> Iterator[LazyRow]:
    """Rows of the files in `folder`, each of which takes `latency` seconds to come, as from S3."""

    def reader(path: Path) -> bytes:
        time.sleep(latency)
        return path.read_bytes()

    for number in range(count):
        path = folder / f"{number}.jpg"
        yield LazyRow(Row(path.stem, b"", (f"picture {number}",)), lambda path=path: reader(path))  # type: ignore[misc]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    cli.add_argument("--images", type=int, default=2000)
    cli.add_argument("--threads", type=int, nargs="+", default=[0, 1, 2, 4])
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--latency", type=float, default=0.0, help="seconds that reading a file takes")
    return cli


def peer(folder: Path, count: int, out: Path) -> None:
    """What the table is held against."""
    out.mkdir()
    with ShardWriter(str(out / "%05d.tar"), maxcount=CONFIG.samples_per_shard, verbose=0) as writer:
        for number in range(count):
            data = (folder / f"{number}.jpg").read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                image.convert("RGB").load()
            writer.write({"__key__": str(number), "jpg": data, "json": {"captions": [f"picture {number}"]}})


def ours(folder: Path, count: int, out: Path, threads: int, latency: float) -> None:
    """What stage prepare does between its source and its upload."""
    counts = write_shards(rows(folder, count, latency), out, CONFIG, lambda read: None, workers=threads)
    gate(out, CONFIG, {}, counts)


def check(folder: Path, count: int, out: Path) -> None:
    """Raises where the shards are not what the files are."""
    shards = ShardSet.open(str(out), folder / "cache")
    positions = {key: (split, i) for split in ("train", "val", "test") for i, key in enumerate(shards.keys(split))}
    assert len(positions) == count
    assert all(shards.read_image(*at) == (folder / f"{key}.jpg").read_bytes() for key, at in positions.items())


def main() -> None:
    """Measure and print."""
    given = parser().parse_args()
    ways: list[int | str] = [PEER, *given.threads]
    wall: dict[int | str, list[float]] = {way: [] for way in ways}
    cpu: dict[int | str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, data in enumerate(jpegs(given.images)):
            (folder / f"{number}.jpg").write_bytes(data)
        ours(folder, given.images, folder / "first", 0, 0.0)  # it warms up too
        check(folder, given.images, folder / "first")
        for turn in range(given.rounds):
            for way in ways:
                out = folder / f"out-{turn}-{way}"
                started, used = time.monotonic(), time.process_time()
                if isinstance(way, str):
                    peer(folder, given.images, out)
                else:
                    ours(folder, given.images, out, way, given.latency)
                wall[way].append(time.monotonic() - started)
                cpu[way].append(time.process_time() - used)
                shutil.rmtree(out)
    print("| threads | images/s | ms of CPU an image | to the peer's | goal |\n|---|---|---|---|---|")
    for way in ways:
        speed = given.images / statistics.median(wall[way])
        ratio = statistics.median(own / of for own, of in zip(cpu[way], cpu[PEER], strict=True))
        goal = "" if way == PEER else f"{GOAL:.2f}"
        print(
            f"| {way} | {speed:.0f} | {1e3 * statistics.median(cpu[way]) / given.images:.2f} | {ratio:.2f} | {goal} |"
        )


if __name__ == "__main__":
    main()
