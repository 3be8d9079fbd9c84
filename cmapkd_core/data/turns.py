"""Large pictures one at a time, over all threads and processes of a machine.

A picture of 50 million pixels takes 200 to 450 MiB while it is decoded, whatever its file has: as many of them as there
are workers would take what the machine has.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cmapkd_core import temporary

LARGE = 12_000_000  # pixels that a picture has to have; smaller ones take 48 MiB at most and never wait
_PATIENCE = 120.0  # seconds; a process that was stopped in its turn must not hold up all the others for ever
_LOOK = 0.02


@contextmanager
def turn(pixels: int) -> Iterator[None]:
    """Waits until no other large picture is in its turn; one of fewer than LARGE pixels does not wait.

    The lock is of this module's file, which every process has and none can put another in the place of; it goes with
    its holder, however that ends. Where files cannot be locked, nobody waits.
    """
    if pixels < LARGE:
        yield
        return
    file = os.open(__file__, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _wait(file)
        try:
            yield
        finally:
            _give_back()
    finally:
        temporary.give_back(file)


def _give_back() -> None:
    """To the system, what was freed: the C library keeps it for the thread that had it, and each takes its turn."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim:
        trim(0)


def _wait(file: int) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK)
        except OSError:
            return
        else:
            return
