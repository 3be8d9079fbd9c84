"""Processes that begin where the stages are imported already: an interpreter of their own would need seconds for that.

Their parent is a process that has done nothing else (multiprocessing's forkserver): no threads, no S3, no model. What
they get is an environment, a working folder, a terminal and signals of their own.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# pandas comes with the first table that pyarrow reads.
LOADED = [
    "cmapkd_core.stages.bodies.train",
    "cmapkd_core.stages.bodies.prepare",
    "cmapkd_core.stages.bodies.prepare_part",
    "boto3",
    "pyarrow.dataset",
    "pandas",
]

_context = multiprocessing.get_context("forkserver")


class Forked:
    """What tests use of a subprocess.Popen whose stdout and stderr are one pipe."""

    def __init__(self, program: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start `python -m PROGRAM` of a stage, or `python PROGRAM` of a script, with `argv`.

        Args:
            env: variables beside those of this process.
        """
        handle, self._log = tempfile.mkstemp(prefix="forked-")
        os.close(handle)
        given = (program, list(argv), {**os.environ, **env}, os.getcwd(), self._log)
        self._process = _context.Process(target=_begin, args=given)
        with contextlib.chdir(REPOSITORY), _one_thread():  # the server starts with the first of its processes
            _context.set_forkserver_preload(LOADED)
            self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """Exit code, -N of a process that signal N has ended; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def send_signal(self, which: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, which)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 120.0) -> tuple[str, None]:
        """Wait for its end; what it has printed.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked", timeout, Path(self._log).read_bytes())
        text = Path(self._log).read_text()
        return text, None

    def said(self) -> str:
        """What it has printed so far."""
        return Path(self._log).read_text()

    def close(self) -> None:
        """End it, and forget what it has printed."""
        self.kill()
        self._process.join()
        Path(self._log).unlink(missing_ok=True)


@contextlib.contextmanager
def _one_thread():
    """OpenMP reads it once, when torch is loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.__setitem__("OMP_NUM_THREADS", before)


def _begin(program: str, argv: list[str], env: dict[str, str], folder: str, log: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # where TMPDIR is now
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = [program, *argv]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        from cmapkd_core.stages.cli import main

        sys.exit(main(importlib.import_module(program).run, argv))
