"""The tasks of a run one after another in this process, as a notebook wants it: errors and Ctrl-C arrive as they are.

Their artifacts lie where those of `--local` lie, so either goes on with what the other has made.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cmapkd.pipelines.package import own_strings
from cmapkd.pipelines.start import take_name
from cmapkd.pipelines.submission import Submission
from cmapkd.pipelines.tasks import Task
from cmapkd_core.errors import InputError
from cmapkd_core.request import STRINGS, Request


def run_in_process(job: Submission) -> None:
    """Run every task; its artifact lies at its place in `job.urls`.

    Raises:
        InputError, Diverged, StorageError: a stage's own error; what is complete by then stays.
        KeyboardInterrupt, Interrupted: Ctrl-C, SIGTERM; the same call goes on from the last checkpoint.
    """
    take_name(job)
    outputs: dict[str, str] = {}
    with threads_kept():
        for number, task in enumerate(job.plan.tasks, 1):
            print(f"[{number}/{len(job.plan.tasks)}] {task.name}", flush=True)
            outputs[task.name] = _run(task, job, outputs)


def _run(task: Task, job: Submission, outputs: dict[str, str]) -> str:
    run = importlib.import_module(f"cmapkd_core.stages.{task.component.stage}").run
    strings = {name: text for name, text in job.arguments.items() if name in STRINGS}
    strings |= {"run": job.run + task.part, "redo": job.plan.redo or task.redo, **own_strings(task)}
    given: dict[str, Any] = {name: outputs[source] for name, source in task.inputs.items()}
    if task.collects:
        given["artifacts"] = {key: outputs[source] for key, source in task.collects.items()}
    return str(run(Request(**strings), **given, **task.values))


@contextmanager
def threads_kept() -> Iterator[None]:
    """A stage sets the threads of torch and takes SIGTERM; both are the caller's again behind it.

    Raises:
        InputError: another thread than the main one, which alone may take a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        raise InputError(
            "stages save when they are stopped, by a signal that Python gives to the main thread: call it there"
        )
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    try:
        yield
    finally:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(before or torch.get_num_threads())
