"""The fault suite: each file makes one kind of fault, seeded, few times here and as often as asked by `make faults`.

A stage is run as its pod runs it: a process with a local disk of its own, a root that it shares with others.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

from cmapkd.pipelines.tasks import Task, tasks_of
from cmapkd_core import storage
from cmapkd_core.recipes import resolve
from cmapkd_core.stages.artifact import Artifact

PATIENCE = 240.0
# A store of the teacher, so that all of its code runs; a checkpoint after each update.
OVERRIDES = "teacher_fit.views=1 teacher_fit.store=embeddings runtime.checkpoint_every=1 runtime.checkpoint_minutes=0"
# The nine stages, once each.
CHAIN = ("prepare", "teacher", "warmup", "alsn", "joint", "evaluate-student", "levels", "export", "report")
MADE = (".safetensors", ".parquet", ".tar", "metrics.json", "table.json", "fit.json", "leakage.json")  # what is no log
TABLE = pytest.StashKey[list[tuple[str, str, int, int, str]]]()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`count(few, all)`: how often, as --faults says."""
    return lambda few, all_: all_ if request.config.getoption("--faults") == "all" else few


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """Of this test alone, so that each can be repeated by itself."""
    return random.Random(f"{request.config.getoption('--fault-seed')} {request.node.name}")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`tally(fault, wanted, tried, held, note)`: a row of the table that is printed in the end; all have to hold."""

    def row(fault: str, wanted: str, tried: int, held: int, note: str = "") -> None:
        request.config.stash.setdefault(TABLE, []).append((fault, wanted, tried, held, note))
        assert held == tried, f"{fault}: {held} of {tried} {wanted}: {note}"

    return row


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table, as docs/reliability.md has it."""
    if rows := config.stash.get(TABLE, []):
        terminalreporter.write_line("\n| fault | wanted | held | measured |\n|---|---|---|---|")
        for fault, wanted, tried, held, note in rows:
            terminalreporter.write_line(f"| {fault} | {wanted} | {held} of {tried} | {note} |")


def _made(url: str) -> dict[str, str]:
    """sha256 of what a stage has made; its logs have times in them."""
    outputs = Artifact.open(url).manifest["outputs"]
    return {name: one["sha256"] for name, one in outputs.items() if name.endswith(MADE)}


@pytest.fixture(scope="session")
def made() -> Callable[[str], dict[str, str]]:
    return _made


@dataclass
class World:
    """The stages of recipe tiny, each started as a pod starts it, and what they made without a fault.

    urls: by stage, of what was made straight so far; `straight` makes it. seconds: how long it took.
    """

    folder: Path
    tasks: dict[str, Task]
    urls: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    disks: int = 0

    def straight(self, stage: str) -> str:
        """URL of what a stage makes without a fault, after those that it reads; made once."""
        if stage not in self.urls:
            words = self.argv(stage, str(self.folder / "straight"))  # makes what the stage reads
            begun = time.monotonic()
            self.urls[stage], _ = self.finished([self.started(stage, words)])
            self.seconds[stage] = time.monotonic() - begun
        return self.urls[stage]

    def argv(self, stage: str, root: str, overrides: str = OVERRIDES) -> list[str]:
        """The stage's command line for a root; its inputs are those that were made straight."""
        task = self.tasks[stage]
        words = ["--recipe", "tiny", "--root", root, "--run", "faulty", "--overrides", overrides]
        for name, source in task.inputs.items():
            words += [f"--{name}", self.straight(source)]
        for name, value in task.values.items():
            words += [f"--{name}", value]
        if task.collects:
            collected = {key: self.straight(source) for key, source in task.collects.items() if source in CHAIN}
            words += ["--artifacts", *(word for pair in collected.items() for word in pair)]
        return words

    def start(self, stage: str, root: str, overrides: str = OVERRIDES, **env: str) -> Forked:
        """The stage on an empty local disk, its standard output and its URL in files."""
        return self.started(stage, self.argv(stage, root, overrides), **env)

    def started(self, stage: str, words: list[str], **env: str) -> Forked:
        """`start` with a command line that is there."""
        self.disks += 1
        disk = self.folder / f"disk{self.disks}"
        disk.mkdir()
        words = [*words, "--artifact", str(disk / "url.txt")]
        module = f"cmapkd_core.stages.{self.tasks[stage].component.stage}"
        process = Forked(module, words, {"OMP_NUM_THREADS": "1", "TMPDIR": str(disk), **env})
        process.disk = disk  # type: ignore[attr-defined]
        return process

    def ranks(self, stage: str, root: str, number: int, overrides: str = OVERRIDES) -> list[Forked]:
        """The stage in so many processes, as torchrun starts them."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [str(rank) for rank in range(number)]
        return [self.start(stage, root, overrides, **shared, RANK=rank, LOCAL_RANK=rank) for rank in ranks]

    def finish(self, stage: str, root: str, overrides: str = OVERRIDES, **env: str) -> tuple[str, str]:
        """The stage to its end: URL of the artifact, and what it said."""
        return self.finished([self.start(stage, root, overrides, **env)])

    def finished(self, ranks: list[Forked]) -> tuple[str, str]:
        """All of them to their end: URL of the artifact, and what the first one said."""
        with ended(*ranks) as (first, *others):
            said, _ = first.communicate(timeout=PATIENCE)
            assert first.returncode == 0, said
            for process in others:
                told, _ = process.communicate(timeout=PATIENCE)
                assert process.returncode == 0, told
            return (first.disk / "url.txt").read_text(), said  # type: ignore[attr-defined]


@contextlib.contextmanager
def ended(*processes: Forked) -> Iterator[tuple[Forked, ...]]:
    """They are gone afterwards, and their disks with them."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(shutil.rmtree, process.disk)  # type: ignore[attr-defined]
            stack.enter_context(contextlib.closing(process))
        yield processes


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What the stages make without a fault; each is made where a test asks for it first."""
    folder = tmp_path_factory.mktemp("world")
    return World(folder, {task.name: task for task in tasks_of(resolve("tiny", "none", OVERRIDES))})


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], str]:
    """`root(kind, name)`: a new root, "here" or "on S3"."""

    def new(kind: str, name: str) -> str:
        base = str(tmp_path) if kind == "here" else request.getfixturevalue("s3_root")
        return storage.join(base, name)

    return new
