"""A training feed from an S3 server of limited bandwidth, with less room on the disk than the data set has.

    python benchmarks/throttled.py --bandwidth 50 --shards 48 --images 40

The server speaks HTTP on this machine and sends all its answers together at so many MB/s. Shards are read in blocks
(`order.BLOCK_SHARDS`, here `--block`); a step takes `--step` seconds, as a GPU would. The table has a row for the data
set on the disk, one for shards that are fetched when they are first read, and one for those fetched ahead, at the same
bound: seconds that a block's batches were waited for (median, most, and above those of the first row), downloads a
shard, and the most bytes on the disk beside the bound. First is checked that the batches are those from the disk.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import torch
from PIL import Image

from cmapkd_core.config import DataConfig
from cmapkd_core.data import loader as loaders
from cmapkd_core.data import order
from cmapkd_core.data.augment import View
from cmapkd_core.data.copies import machine_folder
from cmapkd_core.data.loader import Side, TrainLoader
from cmapkd_core.data.rows import Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.writer import write_shards

CHUNK = 1 << 16
MB = 10**6


class Server(ThreadingHTTPServer):
    """Reads of S3 below `folder`; what it sends waits for its turn at `bandwidth` bytes a second.

    It answers in a process of its own, so that the feed does not wait for its threads.
    """

    daemon_threads = True

    def __init__(self, folder: Path, bandwidth: float, answers: type[Answers] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), answers or Answers)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.bandwidth, self.log = folder, bandwidth, folder / "downloads"
        self._free, self._turn = time.monotonic(), threading.Lock()
        multiprocessing.get_context("fork").Process(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def note(self, name: str) -> None:
        """An object is read, or a part of one."""
        with self.log.open("a") as file:
            file.write(f"{name}\n")

    def shards_read(self) -> int:
        """Reads of shards since the last call."""
        names = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return sum(name.endswith(".tar") for name in names)

    def wait(self, count: int) -> None:
        """Until so many bytes may be sent."""
        with self._turn:
            self._free = max(self._free, time.monotonic()) + count / self.bandwidth
            until = self._free
        time.sleep(max(0.0, until - time.monotonic()))


class Answers(BaseHTTPRequestHandler):
    """GET, HEAD and the listing of one name, in path style."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """An object, a range of one, or a listing."""
        parts = urlsplit(self.path)
        _, _, name = unquote(parts.path).lstrip("/").partition("/")
        query = parse_qs(parts.query)
        if "list-type" in query:
            return self._list(query.get("prefix", [""])[0])
        path = self.server.folder / name
        if not path.is_file():
            return self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        data, status, headers = path.read_bytes(), 200, {"ETag": '"0"', "Content-Type": "binary/octet-stream"}
        if given := self.headers.get("Range"):
            first, _, last = given.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1 if last else len(data), len(data))
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(data)}"
            data, status = data[int(first) : stop], 206
        if self.command == "GET":
            self.server.note(path.name)
        return self._send(status, data, headers)

    def do_HEAD(self) -> None:
        """The same without its body."""
        self.do_GET()

    def _list(self, prefix: str) -> None:
        """Only of exactly one object, as `storage.size` asks."""
        path = self.server.folder / prefix
        listing = f"<Contents><Key>{escape(prefix)}</Key><Size>{path.stat().st_size}</Size></Contents>"
        self._send(200, f"<ListBucketResult>{listing if path.is_file() else ''}</ListBucketResult>".encode())

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        for first in range(0, len(data) if self.command == "GET" else 0, CHUNK):
            part = data[first : first + CHUNK]
            self.server.wait(len(part))
            self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        """Nothing to print of an answer."""


def make(folder: Path, shards: int, images: int, size: int) -> None:
    """A data set of `shards` training shards of `images` pictures, of about `size` bytes each."""
    draw = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(draw.integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(file, "JPEG", quality=90)
    plain = file.getvalue()
    pad = max(size - len(plain), 8)

    def rows() -> Iterator[Row]:
        for number in range(shards * images):
            # What follows a JPEG's end is no part of the picture, and fills it to the size of a photograph.
            yield Row(f"p{number:06d}", plain + draw.bytes(pad), (f"picture {number}",), split="train")

    config = DataConfig(source="benchmark", samples_per_shard=images, leakage=())
    write_shards(rows(), folder, config, lambda count: None)


def lengths(texts: list[str]) -> torch.Tensor:
    """A tokenizer that costs nothing."""
    return torch.tensor([[len(text)] for text in texts])


def feed(shards: ShardSet, args: argparse.Namespace) -> TrainLoader:
    """The training batches."""
    sides = {"student": Side(View(64, (0.5,) * 3, (0.5,) * 3), lengths)}
    settings = {"rank": 0, "world": 1, "seed": 1, "fraction": 1.0, "crop_scale": (0.5, 1.0)}
    bounds = {"max_pixels": 10**7, "quarantine_bound": 0.0}
    return TrainLoader(shards, sides, batch=args.batch, workers=args.workers, **settings, **bounds)  # type: ignore[arg-type]


@dataclass
class Measured:
    """waits: seconds by block. most: bytes of shards on the disk."""

    waits: dict[tuple[int, int], float] = field(default_factory=dict)
    seconds: float = 0.0
    most: int = 0


def measure(stream: TrainLoader, step: float) -> Measured:
    """An epoch, whose first block is not counted: nothing can be fetched before it."""
    measured, begun = Measured(), time.monotonic()
    stop, batches = stream.steps_per_epoch, stream.batches(0, stream.steps_per_epoch)
    for number in range(stop):
        asked = time.monotonic()
        next(batches)
        block = stream._items.order.block_of(number, first=True)
        measured.waits[block] = measured.waits.get(block, 0.0) + time.monotonic() - asked
        measured.most = max(measured.most, sum(path.stat().st_size for path in machine_folder().rglob("*.tar")))
        time.sleep(step)
    batches.close()  # type: ignore[attr-defined]
    measured.seconds = time.monotonic() - begun
    return measured


class Behind(loaders.Ahead):
    """Nothing is fetched before it is read."""

    def _fetch(self, blocks: list[tuple[int, int]]) -> None:
        pass


def parser() -> argparse.ArgumentParser:
    """Of this command."""
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    cli.add_argument("--bandwidth", type=float, default=50.0, help="MB/s of the server")
    cli.add_argument("--shards", type=int, default=48)
    cli.add_argument("--images", type=int, default=40, help="of a shard")
    cli.add_argument("--kilobytes", type=int, default=88, help="of a picture")
    cli.add_argument("--block", type=int, default=order.BLOCK_SHARDS)
    cli.add_argument("--batch", type=int, default=32)
    cli.add_argument("--workers", type=int, default=0)
    cli.add_argument("--step", type=float, default=0.1, help="seconds of a step beside the feed")
    cli.add_argument("--blocks", type=float, default=2.25, help="blocks that the bound holds")
    return cli


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    order.BLOCK_SHARDS = args.block
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args)


def run(folder: Path, args: argparse.Namespace) -> None:
    """Both rows on the same data."""
    make(folder / "set", args.shards, args.images, args.kilobytes * 1000)
    server = Server(folder, args.bandwidth * MB)
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_S3_ADDRESSING_STYLE": "path"}
    here = ShardSet.open(str(folder / "set"), folder / "unused")
    files = [entry["bytes"] for entry in here.manifest["splits"]["train"]["shards"]]
    bound = round(args.blocks * args.block * max(files))
    print(
        f"{len(files)} shards of {max(files) / MB:.2f} MB, {sum(files) / MB:.0f} MB in all; the cache holds "
        f"{bound / MB:.0f} MB; {args.bandwidth:g} MB/s; batches of {args.batch}, {args.step:g} s each beside the feed"
    )
    print(
        f"{'shards are':22}{'s a block':>10}{'most':>7}{'stall':>7}{'s in all':>10}"
        f"{'a shard':>9}{'most MB':>9}{'bound':>8}"
    )
    check(folder, bound, here, args)
    plain = 0.0
    for name, kind in ROWS.items():
        loaders.Ahead = kind or loaders.Ahead  # type: ignore[misc]
        tempfile.tempdir = str(folder / name.replace(" ", "-"))
        Path(tempfile.tempdir).mkdir()
        server.shards_read()
        epoch = measure(feed(there(bound) if kind else here, args), args.step)
        waits = list(epoch.waits.values())[1:]
        wait = statistics.median(waits)
        plain = plain or wait
        print(
            f"{name:22}{wait:10.2f}{max(waits):7.2f}{wait - plain:7.2f}"
            f"{epoch.seconds:10.1f}{server.shards_read() / len(files):9.2f}{epoch.most / MB:9.1f}{bound / MB:8.1f}"
        )


def there(bound: int) -> ShardSet:
    """The data set on the server."""
    return ShardSet.open("s3://bucket/set", machine_folder() / "set", bound=bound)


def check(folder: Path, bound: int, here: ShardSet, args: argparse.Namespace) -> None:
    """The same samples and pixels as from the disk, in the middle of an epoch."""
    tempfile.tempdir = str(folder)
    remote, local = (next(feed(one, args).batches(7, 8)) for one in (there(bound), here))
    assert remote.keys == local.keys, "other samples"
    assert torch.equal(remote.images["student"], local.images["student"]), "other pixels"


# None: the data set lies on the disk, so that its row has what decoding alone is waited for.
ROWS: dict[str, type[loaders.Ahead] | None] = {
    "on the disk": None,
    "fetched when read": Behind,
    "fetched a block ahead": loaders.Ahead,
}


if __name__ == "__main__":
    main()
