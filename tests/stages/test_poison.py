"""Stages whose training goes wrong: what is skipped is in the artifact, and what is not finite never is."""

import dataclasses
import json
import math
from collections.abc import Callable

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from cmapkd_core.data.loader import TableLoader
from cmapkd_core.engine import loop
from cmapkd_core.engine.finite import not_finite
from cmapkd_core.engine.optim import Optimiser
from cmapkd_core.errors import Diverged, Interrupted
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import teacher, train
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.data_set import open_shards

SIX = "optim.batch=14 runtime.checkpoint_every=2"  # six updates


@pytest.fixture
def fault(monkeypatch) -> Callable[..., pytest.MonkeyPatch]:
    """`fault(part, n, value)`: what the n-th update from now on meets; its `undo` ends it."""

    def arrange(part: str, number: int, value: float) -> pytest.MonkeyPatch:
        clip, update, seen = Optimiser.clip, Optimiser.update, [0, 0]

        def clipped(self: Optimiser) -> float:
            seen[0] += 1
            if part == "gradient" and seen[0] == number:
                self.adamw.param_groups[0]["params"][0].grad.view(-1)[0] = value
            return clip(self)

        def updated(self: Optimiser, taken: bool = True) -> None:
            update(self, taken)
            seen[1] += 1
            if part == "weights" and seen[1] == number:
                self.adamw.param_groups[0]["params"][0].data.view(-1)[0] = value

        monkeypatch.setattr(Optimiser, "clip", clipped)
        monkeypatch.setattr(Optimiser, "update", updated)
        return monkeypatch

    return arrange


def tensors(url: str) -> dict[str, torch.Tensor]:
    artifact = Artifact.open(url)
    names = [name for name in artifact.files() if name.endswith(".safetensors")]
    return {f"{name}:{key}": x for name in names for key, x in load_file(artifact.fetch(name)).items()}


@pytest.mark.parametrize("number", [3, 6])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_no_trace_but_in_the_table(tmp_path, train_tiny, fault, number, value):
    fault("gradient", number, value)
    artifact = Artifact.open(train_tiny(tmp_path, "joint", "finetune", SIX))
    assert not not_finite(tensors(artifact.url))
    assert artifact.manifest["metrics"]["skipped_updates"] == 1
    (row,) = map(json.loads, artifact.fetch("skipped_updates.jsonl").read_text().splitlines())
    assert (row["phase"], row["phase_step"], row["samples"], len(row["keys"])) == ("fine", number, 14, 14)
    assert row["why"] == "the norm of the gradient is nan" or value == math.inf
    points = json.loads(artifact.fetch("history.json").read_text())["points"]
    assert len(points) == 5  # its norm is no point of a curve
    assert "final/task" in artifact.manifest["metrics"]


def skipped(url):
    return [json.loads(line) for line in Artifact.open(url).fetch("skipped_updates.jsonl").read_text().splitlines()]


def test_an_update_on_rows_of_a_table_names_their_pairs(tmp_path, tiny_warmup, tiny_shards, train_tiny, fault):
    fault("gradient", 3, math.nan)
    (row,) = skipped(train_tiny(tmp_path, "alsn", init=tiny_warmup))
    known = pq.read_table(Artifact.open(tiny_warmup).fetch("sample_stats.parquet"))["key"].to_pylist()
    recipe = resolve("tiny")
    size = min(recipe.optim.batch, len(known))
    rows = TableLoader({"n": torch.arange(len(known))}, batch=size, rank=0, world=1, seed=recipe.seed)
    (third,) = rows.batches(2, 3)
    assert row["keys"] == [known[n] for n in third["n"].tolist()]


def test_a_skipped_update_of_the_teachers_space_names_its_pictures(tmp_path, tiny_shards, fault):
    fault("gradient", 2, math.nan)
    heads = "teacher_fit.batch=20 teacher_fit.space.epochs=1 teacher_fit.space.lr.heads=1e-3"
    (row,) = skipped(teacher.run(Request("tiny", str(tmp_path), overrides=heads), shards=tiny_shards))
    known = open_shards(Artifact.open(tiny_shards)).keys("train")
    assert (row["phase"], len(row["keys"])) == ("space", 20)
    assert set(row["keys"]) <= set(known)


@pytest.mark.parametrize(
    ("number", "says", "good"),
    [
        # Steps 4 to 6 are skipped, and the checkpoints of 4 and 6 are not made.
        (3, r"joint: what it trained is not finite \(student\..*\), so no artifact is written", 2),
        (6, r"joint: not finite, so not saved: student\..* after step 6\. The same command goes on from", 4),
    ],
)
def test_weights_that_are_not_finite_are_no_artifact_and_the_retry_is_sound(
    tmp_path, train_tiny, fault, capsys, digests, number, says, good
):
    straight = train_tiny(tmp_path / "straight", "joint", "finetune", SIX)
    patch = fault("weights", number, math.nan)
    with pytest.raises(Diverged, match=says):
        train_tiny(tmp_path / "cut", "joint", "finetune", SIX)
    patch.undo()
    torch.set_num_threads(1)
    assert find(straight.replace("straight", "cut")) is None
    capsys.readouterr()
    cut = train_tiny(tmp_path / "cut", "joint", "finetune", SIX)
    assert f"going on from the checkpoint at phase fine, step {good}" in capsys.readouterr().out
    assert digests(cut) == digests(straight)


def test_a_command_says_it_in_one_line_and_exits_3(tmp_path, tiny_shards, fault, capsys):
    fault("gradient", 3, math.nan)
    given = {"recipe": "tiny", "ablation": "finetune", "root": str(tmp_path), "overrides": f"{SIX} optim.max_skipped=0"}
    given |= {"stage": "joint", "shards": tiny_shards, "teacher": ""}
    argv = [part for name, value in given.items() for part in (f"--{name}", value)]
    assert main(train.run, argv) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: joint, phase fine, step 3: 1 update was skipped, more than optim.max_skipped=0 ")
    assert "the last good checkpoint, phase fine, step 2. If it stops there again: lower the learning rates" in error
    assert "Traceback" not in error


def test_a_teacher_that_is_not_finite_is_no_teacher(tmp_path, tiny_shards, fault):
    fault("weights", 2, math.inf)
    with pytest.raises(Diverged, match=r"^teacher"):
        teacher.run(Request("tiny", str(tmp_path), overrides="teacher_fit.batch=40"), shards=tiny_shards)
    assert not list(tmp_path.rglob("out-*"))


BACK = f"{SIX} optim.rollbacks=1 optim.max_skipped=0"


@pytest.fixture
def bad_order(monkeypatch) -> Callable[[int], None]:
    """`bad_order(turns)`: step 4 diverges in the first so many orders of the batches."""

    def arrange(turns: int) -> None:
        def judge(session, plan, step, told, scale):
            bad = step == 4 and session.rollbacks < turns
            told = dataclasses.replace(told, norm=math.nan) if bad else told
            return original(session, plan, step, told, scale)

        monkeypatch.setattr(loop, "judge", judge)

    original = loop.judge
    return arrange


def test_what_diverges_goes_back_and_on_with_another_order_however_often_it_is_stopped(
    tmp_path, train_tiny, bad_order, terminate_after, digests, capsys
):
    usual = train_tiny(tmp_path / "usual", "joint", "finetune", BACK)
    bad_order(1)
    back = train_tiny(tmp_path / "back", "joint", "finetune", BACK)
    said = capsys.readouterr().out
    assert "joint: goes back, and on with another order of the batches" in said
    assert "joint: going on from the checkpoint at phase fine, step 2" in said
    metrics = Artifact.open(back).manifest["metrics"]
    assert (metrics["rollbacks"], metrics["skipped_updates"]) == (1, 0)
    terms = [[p["terms"]["task"] for p in points(url)] for url in (usual, back)]
    assert terms[0][:2] == terms[1][:2]
    assert not set(terms[0][2:]) & set(terms[1][2:])
    terminate_after(6)  # 1, 2, 3, the bad 4, back, 3, 4
    with pytest.raises(Interrupted, match="saved at phase fine, step 4"):
        train_tiny(tmp_path / "cut", "joint", "finetune", BACK)
    terminate_after(0)
    assert digests(train_tiny(tmp_path / "cut", "joint", "finetune", BACK)) == digests(back)


def points(url: str) -> list[dict]:
    return json.loads(Artifact.open(url).fetch("history.json").read_text())["points"]


def test_it_goes_back_so_often_and_no_more(tmp_path, train_tiny, bad_order):
    bad_order(2)
    with pytest.raises(Diverged, match="phase fine, step 4: 1 update was skipped"):
        train_tiny(tmp_path, "joint", "finetune", BACK)


def test_what_diverges_before_its_first_checkpoint_goes_back_to_the_start(tmp_path, train_tiny, bad_order, capsys):
    bad_order(1)
    train_tiny(tmp_path, "joint", "finetune", BACK.replace("every=2", "every=100"))
    assert "going on from the checkpoint at phase fine, step 0" in capsys.readouterr().out
