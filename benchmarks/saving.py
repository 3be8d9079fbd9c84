"""R5: how long a checkpoint to a slow S3 holds training up: torch.save and an upload in the loop, and this package's.

    python benchmarks/saving.py --bandwidth 50 --megabytes 300

An S3 server on this machine takes so many MB/s (a process of its own, as in throttled.py). A model of `--megabytes` of
weights and AdamW moments trains; one of its steps is followed by a save. Both forms go by turns, `--rounds` of them.
call: seconds in the call that saves. loop: by how much longer the steps from there to the end of the upload took than
as many before it, which has what writing behind training takes from it. First is checked that what either has stored is
the state after the same step. Last: the copy in memory alone, into fresh pages and into those of the one before.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import torch
from torch import Tensor, nn

from cmapkd_core import storage
from cmapkd_core.config import OptimConfig, Phase, Rates
from cmapkd_core.engine.checkpoint import Checkpoints, Snapshot
from cmapkd_core.engine.optim import Optimiser
from cmapkd_core.engine.saving import Saver

sys.path.insert(0, str(Path(__file__).parent))  # where it is read as a module
from throttled import CHUNK, MB, Answers, Server

GOAL, NOISE = 10.0, 0.01  # of the peer's time: less is not told apart from none


class Bucket(Answers):
    """Beside reads what checkpoints want: PUT, a listing of a prefix, DELETE."""

    def do_PUT(self) -> None:  # noqa: N802  # as http.server calls it
        """An object, at the server's bandwidth; it appears when it is whole."""
        path, left, digest = self._path(), int(self.headers["Content-Length"]), hashlib.md5(usedforsecurity=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}")
        with part.open("wb") as file:
            while left:
                block = self.rfile.read(min(CHUNK, left))
                self.server.wait(len(block))
                file.write(block)
                digest.update(block)
                left -= len(block)
        part.replace(path)
        self._send(200, b"", {"ETag": f'"{digest.hexdigest()}"'})

    def do_DELETE(self) -> None:  # noqa: N802
        """One object."""
        self._path().unlink(missing_ok=True)
        self._send(204, b"")

    def _path(self) -> Path:
        return self.server.folder / unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def _list(self, prefix: str) -> None:
        first = parse_qs(urlsplit(self.path).query).get("max-keys", ["1000"])[0]
        paths = sorted(path for path in self.server.folder.rglob("*") if path.is_file() and path.name[0] != ".")
        names = [path.relative_to(self.server.folder).as_posix() for path in paths]
        matching = [name for name in names if name.startswith(prefix)][: int(first)]
        sizes = {name: (self.server.folder / name).stat().st_size for name in matching}
        listed = "".join(
            f"<Contents><Key>{name}</Key><Size>{size}</Size><ETag>0</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, size in sizes.items()
        )
        self._send(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode())


class Training:
    """A model of many weights and few operations a step, so that a step is short beside a save."""

    def __init__(self, megabytes: int) -> None:
        torch.manual_seed(0)
        width = 1024
        layers = max(1, round(megabytes * MB / (3 * 4 * width * width)))  # weights and two moments
        self.model = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        phase = Phase(1, Rates(student=1e-3))
        self.optimiser = Optimiser({"student": list(self.model.parameters())}, phase, OptimConfig(), 1000, False)
        self.steps, self.draw = 0, torch.Generator().manual_seed(1)

    def step(self) -> None:
        """One update."""
        x = torch.randn(64, self.model[0].in_features, generator=self.draw)
        for layer in self.model:
            x = x + layer(x)
        x.square().mean().backward()
        self.optimiser.clip()
        self.optimiser.update()
        self.steps += 1

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by file and name."""
        return {"weights.safetensors": self.model.state_dict(), "optimiser.safetensors": self.optimiser.state()[0]}


class Blocking:
    """torch.save of the same tensors to a file, and its upload, in the loop."""

    def __init__(self, folder: Path) -> None:
        self.file, self.url = folder / "state.pt", "s3://bucket/blocking/state.pt"

    def save(self, training: Training) -> None:
        """Returns when it is stored."""
        torch.save(training.tensors(), self.file)
        storage.put(self.file, self.url)

    def done(self) -> bool:
        """Always."""
        return True

    def stored(self) -> dict[str, dict[str, Tensor]]:
        """What lies on the server."""
        tensors: dict[str, dict[str, Tensor]] = torch.load(io.BytesIO(storage.read_bytes(self.url)), weights_only=True)
        return tensors


class Behind:
    """As a session saves."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = Checkpoints("s3://bucket/behind", folder / "scratch", "a")
        self.saver = Saver(self.checkpoints, minutes=0)

    def save(self, training: Training) -> None:
        """Returns when there is a copy in memory."""
        if failure := self.saver.wait():
            raise failure
        spent = self.saver.taken()
        self.saver.begin(Snapshot.take(0, training.steps, training.tensors(), {}, spent))

    def done(self) -> bool:
        """Whether it is stored."""
        return "checkpoint" not in [thread.name for thread in threading.enumerate()]

    def stored(self) -> dict[str, dict[str, Tensor]]:
        """What lies on the server."""
        if failure := self.saver.wait():
            raise failure
        saved = self.checkpoints.latest()
        assert saved is not None
        return saved.tensors


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def measure(training: Training, form: Blocking | Behind, steps: int) -> tuple[float, float]:
    """Seconds of the call that saves, and by how much the loop is longer for the save."""

    def usual() -> list[float]:
        return [seconds(training.step) for _ in range(steps)]

    before, began = usual(), time.monotonic()
    call, count = seconds(lambda: form.save(training)), 0
    while count < steps or not form.done():
        training.step()
        count += 1
    took = time.monotonic() - began
    return call, took - count * statistics.median([*before, *usual()])


def copies(training: Training, rounds: int = 5) -> tuple[float, float]:
    """Seconds of a copy into fresh memory, and into that of the one before."""
    spent = Snapshot.take(0, 0, training.tensors(), {})
    fresh, again = [], []
    for _ in range(rounds):
        fresh.append(seconds(lambda: Snapshot.take(0, 0, training.tensors(), {})))
        again.append(seconds(lambda: Snapshot.take(0, 0, training.tensors(), {}, spent)))
    return statistics.median(fresh), statistics.median(again)


def check(training: Training, forms: dict[str, Blocking | Behind]) -> None:
    """Both store the state after one step, whatever comes after it."""
    training.step()
    state = {file: {n: x.clone() for n, x in own.items()} for file, own in training.tensors().items()}
    for form in forms.values():
        form.save(training)
    training.step()
    for name, form in forms.items():
        stored = form.stored()
        for file, own in state.items():
            assert all(torch.equal(stored[file][n], x) for n, x in own.items()), f"{name}: another {file}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--bandwidth", type=float, default=50.0, help="MB/s of the server")
    cli.add_argument("--megabytes", type=int, default=300, help="of weights and moments")
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--steps", type=int, default=20, help="before and, at least, after a save")
    return cli


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder, "server"), args.bandwidth * MB, Bucket)
        os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_S3_ADDRESSING_STYLE": "path"}
        os.environ["CMAPKD_S3_PART_MIB"] = "5000"  # the server takes a file in one request
        run(Path(folder), args)


def run(folder: Path, args: argparse.Namespace) -> None:
    """Both forms by turns."""
    training = Training(args.megabytes)
    forms: dict[str, Blocking | Behind] = {"torch.save, upload": Blocking(folder), "behind training": Behind(folder)}
    check(training, forms)
    by_form: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for _ in range(args.rounds):
        for name, form in forms.items():
            by_form[name].append(measure(training, form, args.steps))
    size = sum(x.nbytes for own in training.tensors().values() for x in own.values())
    print(f"{size / MB:.0f} MB of weights and moments to an S3 of {args.bandwidth:g} MB/s; medians of {args.rounds}")
    print(f"{'':20}{'call, s':>10}{'loop, s':>10}")
    for name, rows in by_form.items():
        call, loop = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:20}{call:10.3f}{loop:10.3f}")
    peer, ours = by_form.values()
    for place, name in enumerate(("call", "loop")):
        floor = max(p[place] for p in peer) * NOISE
        ratio = statistics.median(p[place] / max(o[place], floor) for p, o in zip(peer, ours, strict=True))
        print(f"{f'peer / ours, {name}':20}{ratio:10.1f}{f'goal {GOAL:g}':>10}")
    fresh, again = copies(training)
    print(f"copy in memory: fresh {fresh:.3f} s, over the one before {again:.3f} s: {fresh / again:.1f} times")


if __name__ == "__main__":
    main()
