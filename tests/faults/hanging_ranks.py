"""What each of two ranks does in test_hanging_ranks.py: `hanging_ranks.py never|sleeps|holds ROOT SHARDS TEACHER`.

A tiny warm-up; rank 1 does not come back from the fourth step's forward pass. sleeps: as a dead device or file system
has it. holds: in code that lets no other thread of Python run.
"""

import ctypes
import sys
import time

from cmapkd_core import parallel
from cmapkd_core.engine import loop
from cmapkd_core.stages import train
from cmapkd_core.stages.cli import main

OVERRIDES = "optim.batch=28 runtime.checkpoint_every=1 schedule.coarse.epochs=2 schedule.medium.epochs=1"
BOUND = {"never": 1.0, "sleeps": 0.05, "holds": 0.03}  # minutes


def hanging(how: str):
    """`loop.to_device`, which each step calls once, before its forward pass."""
    steps = iter(range(1, 1000))
    original = loop.to_device

    def to_device(batch, device):
        if next(steps) == 4 and parallel.rank() == 1:
            time.sleep(600) if how == "sleeps" else ctypes.PyDLL(None).sleep(600)
        return original(batch, device)

    return to_device


if __name__ == "__main__":
    how, root, shards, teacher = sys.argv[1:]
    if how != "never":
        loop.to_device = hanging(how)
    given = ["--root", root, "--shards", shards, "--teacher", teacher, "--stage", "warmup", "--recipe", "tiny"]
    sys.exit(main(train.run, [*given, "--overrides", f"{OVERRIDES} runtime.hang_minutes={BOUND[how]}"]))
