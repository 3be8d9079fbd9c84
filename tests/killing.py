"""What another process does in test_temporary.py: `killing.py ARGV..` is stage prepare, killed at its 40th picture."""

import os
import signal
import sys
from collections.abc import Iterator

from cmapkd_core.data import inspection
from cmapkd_core.stages import prepare
from cmapkd_core.stages.cli import main

BEFORE = 40  # the pictures that it has read by then: it has shards, and has more to write


def killing() -> Iterator[None]:
    """Nothing so often, and then kill -9."""
    yield from [None] * BEFORE
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    original, calls = inspection.shown_quickly, killing()
    inspection.shown_quickly = lambda data, max_pixels: (next(calls), original(data, max_pixels))[1]
    sys.exit(main(prepare.run, sys.argv[1:]))
