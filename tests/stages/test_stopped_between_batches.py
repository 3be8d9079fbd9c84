"""SIGTERM in work that no training loop looks after: it ends between two batches, wherever it stands."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmapkd_core.progress import Progress
from cmapkd_core.stages import evaluate, teacher, train
from cmapkd_core.stages.cli import main

SMALL = "teacher_fit.batch=8 teacher_fit.pyramid.epochs=1"
# name of the progress -> the stage, its overrides, what it needs
WORK: dict[str, tuple[Callable[..., str], str, tuple[str, ...]]] = {
    "teacher space": (teacher.run, f"{SMALL} teacher_fit.space.epochs=1 teacher_fit.space.lr.heads=1e-3", ("shards",)),
    "teacher": (teacher.run, f"{SMALL} teacher_fit.views=2", ("shards",)),
    "warmup: levels for the selector": (train.run, "optim.batch=14", ("shards", "teacher")),
    "evaluate": (evaluate.run, "evaluate.batch=1", ("shards", "model")),
}


# Before a phase all ranks stop at the same batch, as within one.
SAID = {"teacher space": "teacher was asked to stop before phase space. There is no checkpoint yet"}


@pytest.mark.parametrize("name", WORK)
def test_a_stop_is_answered_between_two_batches(
    name: str,
    tmp_path: Path,
    tiny_shards: str,
    tiny_teacher: str,
    tiny_warmup: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, overrides, needs = WORK[name]
    original, told = Progress.__call__, []

    def stopped(self: Progress, done: int, *state: str) -> Any:
        if self.name == name:
            told.append((done, self.total))
            signal.raise_signal(signal.SIGTERM)
        return original(self, done, *state)

    monkeypatch.setattr(Progress, "__call__", stopped)
    given = {"shards": tiny_shards, "teacher": tiny_teacher, "model": tiny_warmup}
    argv = ["--recipe", "tiny", "--root", str(tmp_path), "--overrides", overrides]
    argv += [part for need in needs for part in (f"--{need}", given[need])]
    argv += ["--stage", "warmup"] if run is train.run else []
    assert main(run, argv) == 143
    ((done, total),) = told
    assert 0 < done < total
    assert SAID.get(name, "was asked to stop; the same command goes on from what is saved") in capsys.readouterr().err
