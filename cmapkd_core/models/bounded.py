"""Pickled weights to safetensors by a process that can take no more than a file of their size is worth.

python -m cmapkd_core.models.bounded IN OUT       what that process runs
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from cmapkd_core import parallel
from cmapkd_core.errors import InputError
from cmapkd_core.models.pickled import read_pickled

_ROOM = 2**30  # bytes beside three times the file: as read, as written, and one tensor's copy
_PASSED = ("LD_LIBRARY_PATH", "PATH", "HOME", "TMPDIR")  # what Python and its libraries are found by; no keys
_SECONDS, _BYTES_A_SECOND = 60, 2**25  # of CPU time


def convert_here(path: Path, made: Path) -> None:
    """Write the tensors of a local file to `made`, by the process that is bounded.

    Raises:
        InputError: no table of tensors, damaged, or it asks for more memory or time than a file of its size may.
    """
    package = str(Path(__file__).parents[2])
    environment = parallel.passed_on(_PASSED) | {
        "PYTHONPATH": os.pathsep.join([package, *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "cmapkd_core.models.bounded", str(path.absolute()), str(made.absolute())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    lines = done.stderr.strip().splitlines()
    if done.returncode == 2 and lines:
        raise InputError(lines[-1].removeprefix("error: "))
    how = f"ended by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else "; ".join(lines[-1:])
    raise InputError(
        f"weights file {path.name} cannot be read ({how}): reading a file of its size takes no more than "
        f"{_memory(path) >> 20} MiB and {_seconds(path)} s: get it from who made it"
    )


def _memory(path: Path) -> int:
    return 3 * path.stat().st_size + _ROOM


def _seconds(path: Path) -> int:
    return _SECONDS + path.stat().st_size // _BYTES_A_SECOND


def _read(path: Path, made: Path) -> None:
    """What the bounded process does. The libraries are loaded before the bound, which is of what the file takes."""
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + _memory(path),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (_seconds(path),) * 2)
    try:
        tensors = read_pickled(path)
        save_file(
            {name: value.contiguous().clone() for name, value in tensors.items()}, made, metadata={"format": "pt"}
        )
    except (MemoryError, RuntimeError, OverflowError) as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        limit = f"more than {_memory(path) >> 20} MiB or no tensors that can be stored"
        raise InputError(f"weights file {path.name} takes {limit} ({reason}): get it from who made it") from None


def main(argv: Sequence[str]) -> int:
    """The bounded process; returns its exit code."""
    try:
        _read(Path(argv[0]), Path(argv[1]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
