"""Several processes: DDP of one, and of as many as there are GPUs (two on a CPU), started as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu_parts.machine import Machine
from benchmarks.gpu_parts.table import Line

SECTION = "ranks"
SCRIPT = Path(__file__).with_name("rank.py")
MINUTES = 4  # for all that a world does


def measured(machine: Machine, few: bool) -> Iterator[Line]:
    """Of one process, then of all GPUs; `few`: two processes alone."""
    most = torch.cuda.device_count() if machine.cuda else 2
    for world in [most] if few else sorted({1, most}):
        record = started(world, machine.tiny)
        backend = record["backend"]
        yield Line(
            SECTION,
            f"{backend}, {world} ranks, joined",
            f"{record['world']}",
            goal=f"{world}",
            holds=record["world"] == world,
        )
        yield Line(SECTION, f"{backend}, {world} ranks, rows and gradients", "gathered", holds=bool(record["gathered"]))
        ratio = float(record["together"]) / float(record["alone"])
        yield Line(SECTION, f"{backend}, {world} ranks, DDP", f"{ratio:.2f}", "of a pass of one rank without it")
        if world > 1:
            yield Line(SECTION, f"{backend}, {world} ranks, sum of gradients", f"{record['gb_per_s']:.3g} GB/s")


def started(world: int, tiny: bool) -> dict[str, object]:
    """What rank 0 of a world wrote."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        command = [*launcher, str(SCRIPT), folder, "tiny" if tiny else "real"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * MINUTES,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        if done.returncode:
            raise RuntimeError(f"torchrun of {world} ended with {done.returncode}: {done.stderr[-600:]}")
        record: dict[str, object] = json.loads((Path(folder) / "ranks.json").read_text())
        return record
