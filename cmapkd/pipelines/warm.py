"""Stages of a local run without an interpreter and imports of their own each: asked of forkserver.py.

Of a finished run each stage says in tens of milliseconds that its artifact stands, and of those that work the first one
alone waits for torch and models to be imported.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cmapkd.pipelines.forkserver import MESSAGE

SERVER = Path(__file__).with_name("forkserver.py")
STAGES = "cmapkd_core.stages."


def of_stage(argv: Sequence[str]) -> bool:
    """Whether it is the command of a stage that has a single rank."""
    return sys.platform == "linux" and [*argv[:2]] == ["python", "-m"] and argv[2].startswith(STAGES)


class Forked:
    """A stage that forks from a server; what processes.py uses of a Popen.

    Attributes:
        pid: 0 until the server has forked it. begins: False while the server still imports what it needs.
        returncode: None while it runs, -N where signal N has ended it.
    """

    def __init__(self, server: Warm) -> None:
        self.pid = 0
        self.begins = False
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """Its `returncode`; see `Warm.show`."""
        return self.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        os.kill(self.pid, signal.SIGTERM)

    def give_up(self) -> None:
        """Before it is forked: end its server, which imports for seconds or more, unless others work there."""
        self._server.give_up()


class Warm:
    """A server, whose stages all have the same environment: what reads that while it is imported has read it once."""

    def __init__(self, python: str, env: Mapping[str, str], end_with_parent: Callable[[], None] | None) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self._connection, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_end:
            self._server = subprocess.Popen(
                [python, str(SERVER), str(server_end.fileno())],
                env=dict(env),
                pass_fds=[server_end.fileno()],
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._tasks: dict[int, Forked] = {}
        self._count = 0
        self.alive = True

    def fileno(self) -> int:
        """Ready where `show` has something to do."""
        return self._connection.fileno()

    def start(self, argv: Sequence[str], env: Mapping[str, str], stdout: int, stderr: int) -> Forked:
        """Fork the stage whose command is `argv`.

        Args:
            env: variables beside those of the server.

        Raises:
            OSError: the server is gone.
        """
        self._count += 1
        with tempfile.TemporaryFile() as asked:
            asked.write(json.dumps({"module": argv[2], "args": list(argv[3:]), "env": dict(env)}).encode())
            asked.flush()
            files = array.array("i", [asked.fileno(), stdout, stderr])
            message = json.dumps({"task": self._count}).encode()
            self._connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        task = self._tasks[self._count] = Forked(self)
        return task

    def show(self) -> bool:
        """Hear what the server says of its stages; False once it is gone, and they with it."""
        try:
            data = self._connection.recv(MESSAGE)
        except ConnectionError:
            data = b""
        if not data:
            self.alive = False
            for task in self._tasks.values():  # asked by the kernel to end as it did
                task.returncode = -signal.SIGTERM
            self._tasks.clear()
            return False
        message = json.loads(data)
        if "begins" in message:
            self._tasks[message["task"]].begins = True
        elif "pid" in message:
            self._tasks[message["task"]].pid = message["pid"]
        else:
            self._tasks.pop(message["task"]).returncode = message["code"]
            self._connection.send(json.dumps({"over": message["task"]}).encode())
        return True

    def give_up(self) -> None:
        """End it if none of its stages begins by what it has said, so that none has anything to save."""
        while select.select([self], [], [], 0)[0] and self.show():
            pass
        if not any(task.begins for task in self._tasks.values()):
            self._server.kill()

    def close(self) -> None:
        """End it; its stages have ended."""
        self._connection.close()
        self._server.wait()
