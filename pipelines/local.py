"""A compiled pipeline run here, task by task, with the very argv that the pods get."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from pipelines.ir import Step, command_line, executor_input, load_package, resolve_inputs, steps

STOPPED = 128  # a process ended by a signal has 128 + its number as exit code, as a shell says it
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class StageError(Exception):
    """A task ended with an exit code other than 0."""

    def __init__(self, name: str, code: int) -> None:
        stopped = code in (STOPPED + signal.SIGINT, STOPPED + signal.SIGTERM)
        super().__init__(f"stage {name} {'was stopped' if stopped else f'ended with exit code {code}'}")
        self.name, self.code = name, code


def run_package(package: Path, arguments: Mapping[str, str], run: str, order: Sequence[str] = ()) -> dict[str, str]:
    """Run every task of a compiled pipeline in turn; output of the tasks goes to the terminal as it comes.

    SIGTERM and Ctrl-C are passed on to the running task as SIGTERM, so that it saves, and waited for; a second
    one kills it.

    Args:
        package: the compiled YAML.
        arguments: values of the pipeline's parameters; those left out keep their defaults.
        run: the run's name, in place of the pipeline job's.
        order: display names; among tasks that could run next the first one in it does.

    Returns:
        the `artifact` output of every task, by display name.

    Raises:
        StageError: a task failed or was stopped; what follows has not run.
    """
    spec, _ = load_package(package)
    given = {n: p.default_value.string_value for n, p in spec.root.input_definitions.parameters.items()} | dict(
        arguments
    )
    ordered = steps(spec, order)
    outputs: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="cmapkd-run-") as folder, _Child() as child:
        for number, step in enumerate(ordered, 1):
            label = f"[{number}/{len(ordered)}] {step.name}"
            print(f"{label} ...", flush=True)
            started = time.monotonic()
            place = Path(folder) / step.key
            outputs[step.key] = _run_step(step, resolve_inputs(step, given, outputs, run), run, place, child)
            print(f"{label} done in {time.monotonic() - started:.1f} s", flush=True)
    return {step.name: outputs[step.key].get("artifact", "") for step in ordered}


def _run_step(step: Step, inputs: Mapping[str, Any], run: str, folder: Path, child: _Child) -> dict[str, str]:
    folder.mkdir()
    argv = command_line(step, executor_input(step, inputs, folder), run)
    code = child.run(argv, {variable.name: variable.value for variable in step.container.env})
    if code:
        raise StageError(step.name, code)
    written = {name: folder / name for name in step.component.output_definitions.parameters}
    missing = [name for name, file in written.items() if not file.is_file()]
    if missing:
        raise StageError(f"{step.name} (which did not write its output {', '.join(missing)})", 1)
    return {name: file.read_text().strip() for name, file in written.items()}


class _Child:
    """Runs one process at a time and hands it the signals that end this one."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.signal = 0
        self.earlier: dict[int, Any] = {}

    def __enter__(self) -> _Child:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.earlier[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def run(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Exit code of `argv`, for which `python` and `torchrun` are those of this interpreter."""
        if self.signal:
            return STOPPED + self.signal
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        try:
            self.process = subprocess.Popen(
                argv,
                env={**os.environ, **env, "PATH": path},
                executable=shutil.which(argv[0], path=path),
                start_new_session=True,  # a Ctrl-C of the terminal reaches this process alone, which passes it on
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            print(f"cannot start {shlex.join(argv)}: {error}", file=sys.stderr)
            return 127
        code = self.process.wait()
        self.process = None
        if self.signal:
            return STOPPED + self.signal  # torchrun itself ends with 1 then
        return STOPPED - code if code < 0 else code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = bool(self.signal), number
        if self.process is not None and self.process.poll() is None:
            if again:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.terminate()


def _end_with_parent() -> None:
    """The kernel sends the task SIGTERM when this process is killed: no task goes on unseen, beside its own retry."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
