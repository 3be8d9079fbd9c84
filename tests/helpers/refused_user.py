"""A user who may not read what the tests have made: root reads everything, so that it steps aside."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534


@contextlib.contextmanager
def refused(file: Path) -> Iterator[None]:
    """In the block nobody may read the file."""
    mode, me = file.stat().st_mode, os.geteuid()
    file.chmod(0)
    if me == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(me)
        file.chmod(mode)
