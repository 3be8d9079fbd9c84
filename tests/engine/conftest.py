"""Toy phases for the loop, and tiny stages for what needs all of it."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmapkd_core.config import OptimConfig, Phase, Rates, RuntimeConfig
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.engine.checkpoint import Checkpoints
from cmapkd_core.engine.loop import run_phase
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.runtime import StopRequest
from cmapkd_core.engine.session import Session
from cmapkd_core.methods import base
from cmapkd_core.methods.base import Outcome
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.tracking import Tracker


@pytest.fixture(autouse=True)
def _quiet(one_thread: None, own_signals: None) -> None:
    """A toy session takes over SIGTERM."""


class Line(nn.Module):
    """Fits y = w x + b; a second group has its own rate."""

    amp: torch.dtype | None = None

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor([[2.0, -1.0]])), nn.Parameter(torch.zeros(1))
        self.spare = nn.Parameter(torch.ones(2))

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        return {"student": [self.weight, self.bias], "pyramid": [self.spare]}

    def represent(self, batch: dict[str, Tensor], targets: None, phase: Phase) -> base.Rows:
        hidden = batch["x"] * self.spare
        error = batch["x"] @ self.weight.T + self.bias - batch["y"]
        return base.Rows({"error": error, "hidden": hidden}, {}, [hidden], [])

    def terms_of(self, rows: base.Rows, phase: Phase, step: int) -> Outcome:
        error, hidden = rows.student["error"], rows.student["hidden"]
        return Outcome({"task": error.square().mean(), "intra": hidden.square().mean()}, roots=rows.roots)

    def forward(self, batch: dict[str, Tensor], targets: None, phase: Phase, step: int) -> Outcome:
        return self.terms_of(self.represent(batch, targets, phase), phase, step)


class Rows:
    """Ten batches of four rows, a different one at each step; `before` is called with the number of each step."""

    steps_per_epoch, turn = 10, 0

    def __init__(self, rows: int = 4) -> None:
        self.before: Callable[[int], None] = lambda step: None
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(10, rows, 2, generator=generator), torch.randn(10, rows, 1, generator=generator)

    def batches(self, start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        for step in range(start, stop):
            self.before(step)
            row = (step + self.turn) % 10
            yield {"x": self.x[row].clone(), "y": self.y[row].clone()}

    def reorder(self, turn: int) -> None:
        self.turn = turn

    def require_few_corrupt(self, corrupt: Mapping[str, str]) -> None:
        """There are none."""


@dataclasses.dataclass
class Toy:
    """One session over toy phases; `run` trains them in order and may be called on a new Toy of the same folder."""

    folder: Path
    phases: tuple[Phase, ...] = (Phase(1, Rates(student=1e-2)),)
    optim: OptimConfig = OptimConfig(batch=4, warmup=0.0)
    runtime: RuntimeConfig = RuntimeConfig(threads=1, checkpoint_every=2, log_every=1, shares_every=100)
    identity: str = "a"
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.said: list[str] = []
        self.module, self.rows = Line(), Rows()
        scratch = self.folder / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        self.plans = [
            PhasePlan(i, f"phase{i}", phase, 10, {"task": 1.0, "intra": 0.5}, self.optim, 4)
            for i, phase in enumerate(self.phases)
        ]
        self.checkpoints = Checkpoints(str(self.folder / "work"), scratch, self.identity)

    def session(self) -> Session:
        tracker = Tracker.open("", run="r", stage="s", journal=self.folder / "journal.jsonl", params={})
        stop = StopRequest().listen()
        given = ("toy", self.plans, self.checkpoints, tracker, self.said.append, self.runtime, stop)
        return Session(*given, now=self.now)

    def run(self) -> Session:
        with self.session() as session:
            for plan in self.plans:
                if not session.finished(plan):
                    run_phase(self.module, self.rows, lambda batch: None, plan, session)
        return session


@pytest.fixture(scope="session")
def damaged_shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], str]:
    """`damaged_shards(bound)`: the tiny data, prepared with that bound, with six broken training pictures."""

    @functools.cache
    def make(bound: float) -> str:
        overrides = f"data.quarantine_bound={bound}"
        url = prepare.run(Request("tiny", str(tmp_path_factory.mktemp("damaged")), overrides=overrides))
        folder = Path(url, Artifact.open(url).manifest["folder"])
        shards = ShardSet.open(str(folder), tmp_path_factory.mktemp("cache"))
        for row in shards.table("train").slice(2, 6).to_pylist():
            data = bytearray((folder / row["shard"]).read_bytes())
            data[row["image_offset"] + 60] ^= 1
            (folder / row["shard"]).write_bytes(data)
        return url

    return make


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Toy]:
    """`toy(phases=.., optim=.., ..)`; the same folder for all toys of a test unless `name` differs."""

    def make(name: str = "toy", **fields: Any) -> Toy:
        return Toy(tmp_path / name, **fields)

    return make
