"""pipelines/submit.py whose tasks are forked from it, with the stages loaded: an interpreter costs a task seconds.

The first task is a process of its own. What a task is told, its environment, its output and its exit code stay those
of the local runner.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

from cmapkd.pipelines import processes, submit

STAGES = ("prepare", "teacher", "train", "evaluate", "levels", "report")  # export loads ONNX's runtime, with a thread
PYTHON = ["python", "-m"]  # how tasks of one rank start


class Task:
    """What cmapkd.pipelines.processes uses of a subprocess.Popen with pipes."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], preexec_fn: Callable[[], None] | None) -> None:
        """Fork the process; it ends in `_begin`."""
        pipes = [os.pipe(), os.pipe()]
        self.pid = os.fork()
        if not self.pid:
            _begin(argv, env, [write for _, write in pipes], preexec_fn)
        for _, write in pipes:
            os.close(write)
        self.stdout, self.stderr = (os.fdopen(read, "rb", buffering=0) for read, _ in pipes)
        self._code: int | None = None

    def poll(self) -> int | None:
        """Exit code, -N where signal N has ended it; None while it runs."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code

    def terminate(self) -> None:
        """Ask it to end."""
        os.kill(self.pid, signal.SIGTERM)


def _begin(
    argv: Sequence[str], env: Mapping[str, str], outputs: list[int], preexec_fn: Callable[[], None] | None
) -> NoReturn:
    """The task, up to the end of its process."""
    code: Any = 1
    try:
        os.setsid()
        if preexec_fn is not None:
            preexec_fn()
        for stream, output in zip((1, 2), outputs, strict=True):
            os.dup2(output, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = list(argv[2:])
        warnings.filterwarnings("ignore", message=".*found in sys.modules.*", category=RuntimeWarning)
        runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end of an interpreter does
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def forking() -> Callable[..., Task | subprocess.Popen[bytes]]:
    """A `subprocess.Popen` that forks the second task and those after it."""
    first: list[subprocess.Popen[bytes]] = []

    def start(argv: Sequence[str], **options: Any) -> Task | subprocess.Popen[bytes]:
        assert argv[:2] == PYTHON, argv
        if first:
            return Task(argv, options["env"], options["preexec_fn"])
        first.append(subprocess.Popen(argv, **options))
        return first[0]

    return start


if __name__ == "__main__":
    for name in (*(f"cmapkd_core.stages.{stage}" for stage in STAGES), "mlflow", "pyarrow.dataset", "pandas"):
        importlib.import_module(name)
    assert threading.active_count() == 1, "another thread would be missing in what is forked"
    processes.subprocess = SimpleNamespace(PIPE=subprocess.PIPE, Popen=forking())  # type: ignore[assignment]
    sys.exit(submit.main(sys.argv[1:]))
