"""A compiled pipeline run here, with the very argv that the pods get: task by task, or several at a time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmapkd.pipelines.ir import (
    Step,
    command_line,
    executor_input,
    load_package,
    refuse_unresolved,
    resolve_inputs,
    steps,
)
from cmapkd.pipelines.processes import STOPPED, Processes
from cmapkd_core import temporary
from cmapkd_core.exits import EXIT_FILE, left

EXIT = ".exit"  # what a rank leaves of its end
THREADS, WAITING = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"


class StageError(Exception):
    """Tasks ended with an exit code other than 0.

    Attributes:
        codes: by display name, in the order in which they ended.
        name, code: of the first one.
    """

    def __init__(self, codes: Mapping[str, int]) -> None:
        stopped = (STOPPED + signal.SIGINT, STOPPED + signal.SIGTERM)
        ends = ("was stopped" if code in stopped else f"ended with exit code {code}" for code in codes.values())
        super().__init__("\n".join(f"stage {name} {end}" for name, end in zip(codes, ends, strict=True)))
        self.codes = dict(codes)
        self.name, self.code = next(iter(codes.items()))


def run_package(
    package: Path,
    arguments: Mapping[str, str],
    run: str,
    order: Sequence[str] = (),
    *,
    parallel: int = 1,
    places: Mapping[str, str] | None = None,
    alone: Collection[str] = (),
) -> dict[str, str]:
    """Run every task of a compiled pipeline once all that it needs is done.

    With one task at a time its output goes to the terminal as it comes; with more, each line has the task's name
    before it, and each task gets its share of the cores as OMP_NUM_THREADS, unless that is set already.
    SIGTERM and Ctrl-C are passed on to the running tasks as SIGTERM, so that they save, and waited for; a second
    one kills them. After a failure those that run come to their end and no new one starts.

    Args:
        package: the compiled YAML.
        arguments: values of the pipeline's parameters; those left out keep their defaults.
        run: the run's name, in place of the pipeline job's.
        order: display names; among tasks that could run next the first one in it does.
        parallel: tasks at a time, at most.
        places: where tasks put their results, by display name. Of tasks with one place (a recipe that is its own
            reference) one runs at a time: the second one then finds the result of the first.
        alone: display names of tasks beside which nothing runs, and which have all cores.

    Returns:
        the `artifact` output of every task, by display name.

    Raises:
        InputError: a task that KFP could not start either (ir.refuse_unresolved); nothing has run.
        StageError: tasks failed or were stopped; what follows from them has not run.
    """
    spec, _ = load_package(package)
    refuse_unresolved(spec)
    form = spec.root.input_definitions.parameters.items()
    given = {n: p.default_value.string_value for n, p in form if p.HasField("default_value")} | dict(arguments)
    ordered = steps(spec, order)
    with temporary.folder() as folder, Processes() as processes:
        job = _Job(ordered, given, run, Path(folder), processes, parallel, places or {}, alone)
        job.work()
    return {step.name: job.outputs[step.key].get("artifact", "") for step in ordered}


@dataclass
class _Job:
    """The state of a pipeline that runs; tables are by task key."""

    ordered: list[Step]
    given: Mapping[str, str]
    run: str
    folder: Path
    processes: Processes
    parallel: int
    places: Mapping[str, str]
    alone: Collection[str]
    running: dict[str, Step] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)  # of failed tasks, by display name

    def work(self) -> None:
        """Run all tasks; raises StageError where one fails or a signal comes."""
        waiting = list(self.ordered)
        while waiting or self.running:
            while step := self._ready(waiting):
                waiting.remove(step)
                self._start(step)
            if not self.running:
                break
            for key, code in self.processes.ended().items():
                self._end(self.running.pop(key), code)
        if waiting and not self.codes:  # a signal between two tasks
            self.codes[waiting[0].name] = self.processes.stopped
        if self.codes:
            raise StageError(self.codes)

    def _ready(self, waiting: Sequence[Step]) -> Step | None:
        """The first one in order that can start now."""
        beside = list(self.running.values())
        full = len(beside) == self.parallel or any(step.name in self.alone for step in beside)
        if self.codes or self.processes.stopped or full:
            return None
        taken = {self._place(step) for step in beside}
        free = [s for s in waiting if s.needs <= set(self.outputs) and self._place(s) not in taken]
        return next((step for step in free if not beside or step.name not in self.alone), None)

    def _place(self, step: Step) -> str:
        return self.places.get(step.name, step.key)

    def _start(self, step: Step) -> None:
        print(f"{self._label(step)} ...", flush=True)
        folder = self.folder / step.key
        folder.mkdir()
        inputs = resolve_inputs(step, self.given, self.outputs, self.run)
        argv = command_line(step, executor_input(step, inputs, folder))
        env = {variable.name: variable.value for variable in step.container.env}
        env[EXIT_FILE] = str(folder / EXIT)
        env = {**_threads(argv, 1 if step.name in self.alone else self.parallel), **env}
        self.running[step.key], self.started[step.key] = step, time.monotonic()
        self.processes.start(step.key, argv, env, prefix=f"{step.name} | " if self.parallel > 1 else "")

    def _end(self, step: Step, code: int) -> None:
        files = {name: self.folder / step.key / name for name in step.component.output_definitions.parameters}
        missing = [name for name, file in files.items() if not file.is_file()]
        code = left(self.folder / step.key / EXIT, code)
        if code or missing:
            name = step.name if code else f"{step.name} (which did not write its output {', '.join(missing)})"
            self.codes[name] = code or 1
            if self.running and not self.processes.stopped:
                others = ", ".join(one.name for one in self.running.values())
                print(
                    f"{self._label(step)} failed; no other task starts, these come to their end: {others}", flush=True
                )
            return
        self.outputs[step.key] = {name: file.read_text().strip() for name, file in files.items()}
        print(f"{self._label(step)} done in {time.monotonic() - self.started[step.key]:.1f} s", flush=True)

    def _label(self, step: Step) -> str:
        return f"[{self.ordered.index(step) + 1}/{len(self.ordered)}] {step.name}"


def _threads(argv: Sequence[str], parallel: int) -> dict[str, str]:
    """A task's share of the cores where several run, so that they do not fight; torchrun gives its ranks their own.

    Its threads sleep while they wait for each other (stages/cli.py).
    """
    waiting = {} if WAITING in os.environ else {WAITING: "PASSIVE"}
    if parallel == 1 or THREADS in os.environ or argv[0] == "torchrun":
        return waiting
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {THREADS: str(max(1, cores // parallel)), **waiting}
