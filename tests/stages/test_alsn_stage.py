"""Stage alsn: what of the recipe it trains by, and what it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from cmapkd_core.methods.base import Method
from cmapkd_core.recipes import resolve
from cmapkd_core.stages import training
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import build_method
from cmapkd_core.stages.phases import run_phases
from cmapkd_core.stages.training import SelectorSetup
from cmapkd_core.tracking import Tracker

Fitted = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]


@pytest.fixture
def fitted(
    tmp_path: Path, tiny_shards: str, tiny_teacher: str, tiny_warmup: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Fitted]:
    """`fitted(overrides)`: history and selector of stage alsn on one warm-up's table, whatever the recipe's student."""

    monkeypatch.setattr(training, "open_cache", lambda context: pytest.fail("no teacher output is read"))
    monkeypatch.setattr(training, "shards_of", lambda context: pytest.fail("no pair is read"))

    def fit(overrides: str) -> Fitted:
        folder = tmp_path / overrides.replace(" ", "-")
        (folder / "out").mkdir(parents=True)
        urls = {"shards": tiny_shards, "teacher": tiny_teacher, "init": tiny_warmup}
        opened = {name: Artifact.open(url) for name, url in urls.items()}
        recipe = resolve("tiny", overrides=overrides)
        tracker = Tracker.open("", run="r", stage="alsn", journal=folder / "journal.jsonl", params={})
        context = Context(recipe, opened, folder / "out", folder, tracker, str(folder / "work"), "a", lambda text: None)
        # A student of its own: the warm-up's state is of its micro-batch, and the selector is not in it.
        inputs = {name: artifact for name, artifact in opened.items() if name != "init"}
        method, teacher = build_method(recipe, dataclasses.replace(context, inputs=inputs))
        setup = SelectorSetup(context, "alsn", method, teacher)
        session = run_phases(context, "alsn", setup.phases(), setup.run, seed=1)
        return session.history, selector(method)

    return fit


def selector(method: Method) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in method.state_dict().items() if name.startswith("selector.")}


def test_accumulation_splits_pairs_and_leaves_the_tables_batches_alone(fitted) -> None:
    """It fits pairs into memory; 10 steps in fours would also leave two out."""
    (one, ours), (four, theirs) = fitted("optim.accumulate=1"), fitted("optim.accumulate=4")
    assert [p["step"] for p in four] == [p["step"] for p in one] == list(range(1, 11))
    assert [p["terms"] for p in four] == [p["terms"] for p in one]
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_a_short_table_trains_whatever_the_accumulation(fitted) -> None:
    assert len(fitted("optim.accumulate=16")[0]) == 10


def test_parameters_that_the_levels_leave_no_choice_are_not_counted(train_tiny, tmp_path) -> None:
    """Phase alsn has all levels by default; what is trained are those that phase fine will weigh."""
    warmup = train_tiny(tmp_path, "warmup", "none", "schedule.fine.levels=P5,L3,L4")
    url = train_tiny(tmp_path, "alsn", "none", "schedule.fine.levels=P5,L3,L4", init=warmup)
    artifact = Artifact.open(url)
    state = load_file(artifact.fetch("method.safetensors"))
    moved = [x.numel() for name, x in state.items() if name.startswith(("selector.encoder", "selector.text_head"))]
    assert artifact.manifest["metrics"]["parameters/trained"] == sum(moved)


def test_a_share_of_the_pairs_is_measured(train_tiny, tmp_path) -> None:
    """One batch of five at the end of warm-up, and four pairs of a batch in joint training."""
    share = "selector.measured=0.2"
    warmup = train_tiny(tmp_path, "warmup", "none", share)
    alsn = train_tiny(tmp_path, "alsn", "none", share, init=warmup)
    joint = Artifact.open(train_tiny(tmp_path, "joint", "none", share, init=alsn))
    assert pq.read_metadata(joint.fetch("sample_stats.parquet")).num_rows == 16
    assert pq.read_metadata(joint.fetch("weights.parquet")).num_rows == 16
    assert load_file(joint.fetch("method.safetensors"))["memory.filled"].item() == pytest.approx(3 / 16)
