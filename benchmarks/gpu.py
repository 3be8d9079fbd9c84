"""Is training right and fast on this GPU? One table, in less than ten minutes; offline, random weights, drawn pictures.

    python benchmarks/gpu.py --out runs/gpu.json            # or: make gpu
    python benchmarks/gpu.py --tiny --only correct          # on any machine, the same code at the sizes of a test

Sections: correct (golden curves in every precision that the device has, two phases, resuming, evaluation, export),
step (ViT-L/14 -> ViT-B/16 at each --batch beside open_clip's own steps and a matrix product), shares (what a step
spends its time on, by torch.profiler) and ranks (NCCL over all GPUs, DDP of one). Without a GPU sizes are tiny and the
table says so. What cannot be done on this machine is a line that says why, and the rest goes on. Not run on a GPU yet
by those who wrote it: send the JSON to them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.gpu_parts import correct, ranks, shares, steps, table
from benchmarks.gpu_parts.machine import Machine, here
from benchmarks.gpu_parts.models import Pair
from benchmarks.gpu_parts.table import Line

SECTIONS = ("correct", "step", "shares", "ranks")
BATCHES = [32, 256]  # pairs a GPU: the paper's 256 over eight of them, and all of them on one


def sections(machine: Machine, args: argparse.Namespace, root: Path) -> dict[str, list[Callable[[], Iterator[Line]]]]:
    """What is measured, by section; each part alone may fail."""
    sizes, count = ([4], 2) if machine.tiny else (args.batch, args.steps)
    checks = correct.Correct(machine, root, args.few)
    pair = Pair(machine, machine.usual())
    return {
        "correct": [checks.curves, checks.resume, checks.evaluated, checks.exported],
        "step": [lambda: steps.measured(pair, sizes, count)],
        "shares": [lambda: shares.measured(machine, pair, root, sizes[0], count)],
        "ranks": [lambda: ranks.measured(machine, args.few)],
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--tiny", action="store_true", help="sizes of a test, also on a GPU")
    cli.add_argument("--few", action="store_true", help="of what is checked a sample alone")
    cli.add_argument("--only", nargs="*", choices=SECTIONS, default=SECTIONS)
    cli.add_argument("--batch", type=int, nargs="*", default=BATCHES, help="pairs a step")
    cli.add_argument("--steps", type=int, default=20, help="measured ones of each kind")
    cli.add_argument("--out", type=Path, help="the table as JSON")
    return cli


def measured_lines(machine: Machine, args: argparse.Namespace) -> Iterator[Line]:
    """The lines of all sections that are asked for."""
    with tempfile.TemporaryDirectory() as root:
        for name, parts in sections(machine, args, Path(root)).items():
            for part in parts if name in args.only else ():
                yield from table.lines_of(name, part)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write; 1 where something does not hold."""
    args, since = parser().parse_args(argv), time.monotonic()
    machine = here(args.tiny)
    if not machine.cuda:
        torch.set_num_threads(1)  # of towers this small more threads wait for each other
    lines: list[Line] = []
    for line in measured_lines(machine, args):
        lines.append(line)
        print(f"{line.section}: {line.what}: {line.found}", file=sys.stderr, flush=True)
    print(table.markdown(f"{machine.heading}; {(time.monotonic() - since) / 60:.1f} minutes", lines))
    if args.out:
        table.write(args.out, machine.facts, lines)
    return 1 if any(line.holds is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
