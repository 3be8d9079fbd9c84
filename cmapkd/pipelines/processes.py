"""Processes of this machine side by side: what they print, how they end, and the signals that end this one."""

from __future__ import annotations

import ctypes
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from cmapkd.pipelines.forkserver import SET_PARENT_DEATH_SIGNAL
from cmapkd.pipelines.warm import Forked, Warm, of_stage
from cmapkd_core.exits import EXIT_FILE

STOPPED = 128  # a process ended by a signal has 128 + its number as exit code, as a shell says it
NOT_STARTED = 127
MOST_READS = 64  # of one stream before the others get their turn
LOOK = 0.05  # seconds between two looks at who has ended

# Found before any fork: the child should do as little as it can before its own program runs.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class Processes:
    """Runs processes and hands them the signals that end this one.

    The first SIGTERM or Ctrl-C reaches every process as SIGTERM, so that it saves; a second one kills them. Used in
    a `with` block; one that is left by an error ends what still runs. Stages of one rank fork from a process that has
    imported what they need (warm.py), one for each environment that they are given.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []  # signals that came; the handler only notes them, `ended` passes them on
        self._children: dict[str, _Child] = {}
        self._over: dict[str, int] = {}
        self._warm: dict[tuple[tuple[str, str], ...], Warm] = {}
        self._selector = selectors.DefaultSelector()
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Processes:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._children:
            self.asked.append(signal.SIGTERM)
        while self._children:
            self.ended()
        for warm in self._warm.values():
            warm.close()
        self._selector.close()
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    @property
    def stopped(self) -> int:
        """Exit code that says by which signal, the first one; 0 while none came."""
        return STOPPED + self.asked[0] if self.asked else 0

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], *, prefix: str = "") -> None:
        """Start `argv`, for which `python` and `torchrun` are those of this interpreter.

        Args:
            name: by which `ended` calls it.
            env: variables beside those of this process.
            prefix: put before each line that it prints; "" leaves it the terminal itself.
        """
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        ends = [os.pipe() for _ in range(2)] if prefix else []
        out, err = (write for _, write in ends) if ends else (1, 2)
        try:
            process = self._started(argv, {**os.environ, **env, "PATH": path}, out, err)
        except OSError as error:
            print(f"cannot start {shlex.join(argv)}: {error}", file=sys.stderr)
            self._over[name] = NOT_STARTED
            for read, _ in ends:
                os.close(read)
            return
        finally:
            for _, write in ends:
                os.close(write)
        sinks = (sys.stdout.buffer, sys.stderr.buffer)
        pipes = [os.fdopen(read, "rb", buffering=0) for read, _ in ends]
        lines = [_Lines(source, sink, prefix.encode()) for source, sink in zip(pipes, sinks, strict=False)]
        for stream in lines:
            os.set_blocking(stream.source.fileno(), False)
            self._selector.register(stream.source, selectors.EVENT_READ, stream)
        self._children[name] = _Child(process, lines)

    def _started(
        self, argv: Sequence[str], env: dict[str, str], out: int, err: int
    ) -> subprocess.Popen[bytes] | Forked:
        """A process of its own, or one that forks from the server of its environment. Raises OSError."""
        executable = shutil.which(argv[0], path=env["PATH"])
        if executable and of_stage(argv):
            own = {EXIT_FILE: env.pop(EXIT_FILE)} if EXIT_FILE in env else {}
            key = tuple(sorted(env.items()))
            if key not in self._warm:
                self._warm[key] = Warm(executable, env, _end_with_parent if _PRCTL else None)
                self._selector.register(self._warm[key], selectors.EVENT_READ, self._warm[key])
            if self._warm[key].alive:
                return self._warm[key].start(argv, own, out, err)
            env |= own
        return subprocess.Popen(
            argv,
            env=env,
            executable=executable,
            stdout=out,
            stderr=err,
            start_new_session=True,  # a Ctrl-C of the terminal reaches this process alone, which passes it on
            preexec_fn=_end_with_parent if _PRCTL else None,
        )

    def ended(self) -> dict[str, int]:
        """Exit codes by name of those that ended, as soon as there is one; shows meanwhile what all print."""
        while not self._over:
            for child in self._children.values():
                child.pass_on(len(self.asked))
            for key, _ in self._selector.select(LOOK):
                if not key.data.show():
                    self._selector.unregister(key.fileobj)
            for name, child in list(self._children.items()):
                if (code := child.process.poll()) is not None:
                    self._over[name] = self.stopped or (STOPPED - code if code < 0 else code)  # torchrun ends with 1
                    self._close(self._children.pop(name))
        over, self._over = self._over, {}
        return over

    def _close(self, child: _Child) -> None:
        """Show the rest of its output; what a process that it left behind prints is not waited for."""
        for stream in child.lines:
            if stream.source in self._selector.get_map():
                stream.show()
                self._selector.unregister(stream.source)
            stream.end()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)


@dataclass
class _Lines:
    """One stream of a process, shown in whole lines."""

    source: IO[bytes]
    sink: Any  # a binary file
    prefix: bytes
    rest: bytes = b""

    def show(self) -> bool:
        """Show the lines that are there by now; False at the stream's end."""
        for _ in range(MOST_READS):
            data = self.source.read(1 << 16)
            if not data:
                return data is None  # nothing for now
            *lines, self.rest = (self.rest + data).split(b"\n")
            self._write(lines)
        return True

    def end(self) -> None:
        """Show a last line that had no end."""
        if self.rest:
            self._write([self.rest])
        self.source.close()

    def _write(self, lines: Sequence[bytes]) -> None:
        # Of a line rewritten in place the last state is shown, as it would stand on a terminal.
        shown = [line.rstrip(b"\r").rsplit(b"\r", 1)[-1] for line in lines]
        self.sink.write(b"".join(self.prefix + line + b"\n" for line in shown))
        self.sink.flush()


@dataclass
class _Child:
    process: subprocess.Popen[bytes] | Forked
    lines: list[_Lines] = field(default_factory=list)
    forwarded: int = 0

    def pass_on(self, asked: int) -> None:
        """Tell it once for each of the `asked` signals: the first time it shall save, then it is killed."""
        if self.forwarded < asked and self.process.poll() is None:
            if isinstance(self.process, Forked) and not self.process.pid:
                self.process.give_up()  # asked again, since a server where others work forks it in the end
                return
            if asked == 1:
                self.process.terminate()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.forwarded = asked


def _end_with_parent() -> None:
    """The kernel sends the task SIGTERM when this process is killed: no task goes on unseen, beside its own retry."""
    assert _PRCTL is not None, "only set where there is one"
    _PRCTL(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
