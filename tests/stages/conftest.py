"""Tiny stages: short runs with one thread, and what their artifacts hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmapkd_core.recipes import ROWS
from cmapkd_core.request import Request
from cmapkd_core.stages import teacher, train
from cmapkd_core.stages.artifact import Artifact


@pytest.fixture(autouse=True)
def _quiet(one_thread: None, own_signals: None) -> None:
    """Training stages take over SIGTERM and set the thread count."""


@pytest.fixture
def train_tiny(tmp_path: Path, tiny_shards: str, tiny_teacher: str) -> Callable[..., str]:
    """`train_tiny(root, stage, row, overrides, init=..)`: a training stage of the tiny recipe's row below `root`."""

    def run(root: Path, stage: str, row: str = "none", overrides: str = "", init: str = "", **more: Any) -> str:
        request, fitted = Request("tiny", str(root), ablation=row, overrides=overrides, **more), tiny_teacher
        if any(name.startswith("teacher_fit.") for name in ROWS[row]):  # a row about the teacher has one of its own
            fitted = teacher.run(replace(request, root=str(tmp_path / "fitted")), shards=tiny_shards)
        return train.run(request, stage=stage, shards=tiny_shards, teacher=fitted, init=init)

    return run


@pytest.fixture
def digests() -> Callable[[str], dict[str, str]]:
    """sha256 of the weights and tables of an artifact: all that is no log."""

    def read(url: str) -> dict[str, str]:
        outputs = Artifact.open(url).manifest["outputs"]
        kept = {n: o["sha256"] for n, o in outputs.items() if n.endswith((".safetensors", ".parquet", "fit.json"))}
        assert "model/model.safetensors" in kept
        return kept

    return read
