"""The process from which the stages of a local run fork, with what they import imported once (warm.py).

    python cmapkd/pipelines/forkserver.py SOCKET

A stage begins here as `python -m cmapkd_core.stages.<stage>` does: `__main__` is its module, it has a session, an
environment, a stdout and signals of its own, and the interpreter ends it. What a stage that had work to do has imported
(models, torch, MLflow's client) the next ones find imported. Nothing but the standard library is imported until then,
nothing runs here and no thread is started, so that a fork has nothing to lose.

Each message that comes has three files: what is asked, as JSON, in which the stage then leaves what it has imported,
and its stdout and stderr. Those that go are JSON: the number of a task as it `begins`, all it needs being imported,
with its `pid`, and with its `code` once it has ended; until it is told so in turn its number of a process is not given
to another.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MESSAGE = 1 << 12  # bytes, at most
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
TRACKING = "mlflow"
# What tasks may leave imported, with all that it imports: it starts no threads but those of BLAS, which know of forks.
# Not what stage export works with: onnxruntime starts threads when it is imported, and a fork without them hangs.
WORK = tuple(
    f"cmapkd_core.stages.bodies.{stage}"
    for stage in ("prepare", "prepare_part", "teacher", "train", "evaluate", "levels", "report")
)
# A process that has asked for a GPU cannot be forked, and imports may ask.
GPUS = ("/dev/nvidiactl", "/dev/kfd")


@dataclass
class Task:
    """A stage that runs. note: the file of what it was asked, and of what it has imported."""

    number: int
    pid: int
    note: int
    ended: bool = False


class Server:
    """Forks tasks and says how they end; `serve` returns what is asked of it in each of them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._tasks: dict[int, Task] = {}
        self._wake, waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(waker, False)
        self._earlier = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(waker)
        self._waker = waker

    def serve(self) -> dict[str, Any] | None:
        """Until the connection is closed: None. In a task: what it shall do."""
        watched: list[Any] = [self._connection, self._wake]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, MESSAGE)
                self._tell_ended()
            if self._connection in ready:
                data, files = _received(self._connection)
                if not data:
                    return None
                message = json.loads(data)
                if "over" in message:
                    self._forget(message["over"])
                elif (asked := self._fork(message["task"], files)) is not None:
                    return asked

    def _fork(self, number: int, files: list[int]) -> dict[str, Any] | None:
        """In the task what it is asked, with its files in place; None in the server."""
        note, *streams = files
        asked: dict[str, Any] = json.loads(_whole(note))
        _warm(asked["module"])
        self._say(task=number, begins=1)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        server = os.getpid()
        if pid := os.fork():
            self._tasks[number] = Task(number, pid, note)
            self._say(task=number, pid=pid)
            for stream in streams:
                os.close(stream)
            return None
        _end_with(server)
        self._leave(streams, note)
        os.environ.update(asked["env"])
        return asked

    def _leave(self, streams: Sequence[int], note: int) -> None:
        """Of the server a task keeps what it has imported, and nothing else."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, self._earlier)
        for to, stream in enumerate(streams, 1):
            os.dup2(stream, to)
        self._connection.close()
        for one in (*streams, self._wake, self._waker, *(task.note for task in self._tasks.values())):
            os.close(one)
        known = set(sys.modules)
        atexit.register(lambda: _leave_note(note, known))

    def _tell_ended(self) -> None:
        for task in self._tasks.values():
            if task.ended:
                continue
            status = os.waitid(os.P_PID, task.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if status is not None:
                task.ended = True
                self._say(
                    task=task.number, code=status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
                )

    def _forget(self, number: int) -> None:
        task = self._tasks.pop(number)
        os.waitpid(task.pid, 0)
        text = _whole(task.note)
        os.close(task.note)
        _learn(json.loads(text).get("imported", []))

    def _say(self, **message: int) -> None:
        self._connection.send(json.dumps(message).encode())


_learned: list[str] = []  # modules that a task has imported and this process has not yet


def _learn(names: Sequence[str]) -> None:
    """Of a task that had work to do, on a machine whose GPUs nobody has asked for."""
    if set(names) & set(WORK) and not any(os.path.exists(gpu) for gpu in GPUS):
        _learned.extend(names)


def _warm(module: str) -> None:
    """Import what the stage's command does, and what tasks before it have; what cannot be, it says itself."""
    names, _learned[:] = [module, *_learned], []
    for name in names:
        with contextlib.suppress(Exception):
            if name == TRACKING:
                importlib.import_module("cmapkd_core.tracking").import_client()
            else:
                importlib.import_module(name)
    gc.freeze()  # what is imported stays: a task neither looks through it nor copies it


def _leave_note(note: int, known: set[str]) -> None:
    names = [name for name in (*WORK, TRACKING) if name in sys.modules and name not in known]
    os.ftruncate(note, 0)
    os.pwrite(note, json.dumps({"imported": names}).encode(), 0)


def _whole(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _received(connection: socket.socket) -> tuple[bytes, list[int]]:
    """A message with its files; no message once the other end is closed."""
    room = array.array("i")
    data, extra, _, _ = connection.recvmsg(MESSAGE, socket.CMSG_SPACE(3 * room.itemsize))
    for level, kind, content in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            room.frombytes(content[: len(content) - len(content) % room.itemsize])
    return data, list(room)


def _end_with(parent: int) -> None:
    """The kernel sends this process SIGTERM when its parent ends: no task goes on unseen, beside its own retry."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def begin(asked: dict[str, Any]) -> None:
    """Be `python -m MODULE ARGS`."""
    sys.argv = [asked["module"], *asked["args"]]
    sys.modules.pop(asked["module"], None)  # another command has imported it, and here it is the main module
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as of `python -m`
    if (_asked := Server(socket.socket(fileno=int(sys.argv[1]))).serve()) is not None:
        begin(_asked)
