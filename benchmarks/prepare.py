"""Images a second of stage prepare's inner part, by number of threads, side by side in one run.

    python benchmarks/prepare.py --images 2000 --threads 0 1 2 4

Pictures are 500 x 375 JPEGs with the spectrum of photographs (about 88 KB); each row of the table is the median of
`--rounds` rounds in which every number of threads has its turn, with the seconds of CPU that an image costs.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import LazyRow, Row
from cmapkd_core.data.shards import write_shards

WIDTH, HEIGHT = 500, 375


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


def main() -> None:
    """Measure and print."""
    given = parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, data in enumerate(jpegs(given.images)):
            (folder / f"{number}.jpg").write_bytes(data)
        wall: dict[int, list[float]] = {threads: [] for threads in given.threads}
        cpu: dict[int, list[float]] = {threads: [] for threads in given.threads}
        for turn in range(given.rounds):
            for threads in given.threads:
                out, config = folder / f"out-{turn}-{threads}", DataConfig(source="benchmark")
                started, used = time.monotonic(), time.process_time()
                write_shards(rows(folder, given.images, given.latency), out, config, lambda seen: None, workers=threads)
                wall[threads].append(time.monotonic() - started)
                cpu[threads].append(time.process_time() - used)
    print("| threads | images/s | ms of CPU an image |\n|---|---|---|")
    for threads in given.threads:
        speed = given.images / statistics.median(wall[threads])
        print(f"| {threads} | {speed:.0f} | {1e3 * statistics.median(cpu[threads]) / given.images:.2f} |")


if __name__ == "__main__":
    main()
