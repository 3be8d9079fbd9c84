"""Stages draw the bank: by seed and keys, alike from a store and of the live teacher, and after a restart."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cmapkd_core.data.fixed_crops import CACHE_FOLDER
from cmapkd_core.data.order import withheld
from cmapkd_core.errors import Interrupted
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import teacher, train, training
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import build_method
from cmapkd_core.stages.teacher_bank import bank_of, pairs_of
from cmapkd_core.stages.teacher_cache import open_cache, stored_pictures

LEVELS = "teacher_fit.views=2 teacher_fit.store=levels"
SIX = f"{LEVELS} optim.batch=14 runtime.checkpoint_every=100 runtime.shares_every=100 method.bank=20"


@pytest.fixture(scope="module")
def storing(tmp_path_factory, tiny_shards) -> str:
    """A teacher whose levels are stored."""
    torch.set_num_threads(1)
    return teacher.run(Request("tiny", str(tmp_path_factory.mktemp("levels")), overrides=LEVELS), shards=tiny_shards)


@pytest.fixture
def opened(tmp_path, tiny_shards, storing):
    """`opened(overrides, seed)`: a stage's context, whose lines are in `lines`."""

    def make(overrides: str = "", seed: str = "") -> Context:
        recipe = resolve("tiny", "with_bank", f"{LEVELS} {overrides}", seed=seed)
        inputs = {"shards": Artifact.open(tiny_shards), "teacher": Artifact.open(storing)}
        lines: list[str] = []
        context = Context(recipe, inputs, tmp_path, tmp_path, None, "", "identity", lines.append)
        context.lines = lines
        return context

    return make


def drawn(context: Context, count: int) -> tuple[list[int], list[int]]:
    pictures, captions = pairs_of(context.recipe, shards_of(context), count)
    return pictures.tolist(), captions


def test_a_store_and_the_live_teacher_give_the_embeddings_of_the_pairs_that_are_drawn(opened, storing):
    context = opened()
    _, frozen = build_method(context.recipe, context)
    stored = bank_of(context, frozen, open_cache(context), 20)
    assert context.lines[-1] == "cmapkd: a bank of 20 training pairs from the teacher's store\n"
    live = bank_of(context, frozen, None, 20)
    assert context.lines[-1] == "cmapkd: a bank of 20 training pairs of the live teacher\n"
    artifact = Artifact.open(storing)
    (part,) = (load_file(artifact.fetch(n)) for n in artifact.files() if n.startswith(f"{CACHE_FOLDER}/"))
    pictures, captions = drawn(context, 20)
    texts = part["offsets"][pictures] + torch.tensor(captions)
    expected = part["crops/image"][pictures, 0], part["captions/text"][texts]
    for kind, (ours, other, written) in enumerate(zip(stored, live, expected, strict=True)):
        assert ours.shape == (20, 32)
        assert torch.equal(ours, written.float()), kind
        assert torch.allclose(ours, other, atol=1e-5), kind
    assert len({*captions}) > 1  # not the first caption of each


def test_the_seed_draws_the_pairs_among_those_that_students_train_on(opened):
    pictures, captions = drawn(opened(), 20)
    assert (pictures, captions) == drawn(opened(), 20)
    assert pictures == sorted({*pictures})
    others, _ = drawn(opened(seed="1"), 20)
    assert len({*pictures} & {*others}) < 15
    assert {*pictures} < {*drawn(opened(), 30)[0]}
    half = opened("data.fraction=0.5")
    some, _ = drawn(half, 1000)
    assert some == stored_pictures(half.recipe, shards_of(half)).tolist()
    assert len(some) == 44
    assert {*drawn(half, 20)[0]} < {*some}


def test_captions_that_are_withheld_are_in_no_bank(opened):
    few = opened("data.unpaired=0.9")
    hashes = shards_of(few).key_hashes("train")
    assert drawn(few, 1000)[0] == np.flatnonzero(~withheld(hashes, 0.9)).tolist()
    assert len(drawn(few, 1000)[0]) == 9


def test_fewer_pairs_than_asked_for_are_all_and_that_is_said(opened):
    context = opened()
    _, frozen = build_method(context.recipe, context)
    pictures, _ = bank_of(context, frozen, open_cache(context), 1024)
    assert len(pictures) == shards_of(context).count("train") == 87
    assert context.lines[-1].endswith(
        "a bank of 87 training pairs from the teacher's store; method.bank=1024, and there are no more\n"
    )
    assert np.allclose(pictures.norm(dim=1), 1, atol=1e-4)


def test_training_is_the_same_live_and_goes_on_bit_for_bit(
    tmp_path, tiny_shards, storing, monkeypatch, terminate_after
):
    def run(name: str) -> Artifact:
        request = Request("tiny", str(tmp_path / name), ablation="with_bank", overrides=SIX)
        return Artifact.open(train.run(request, stage="joint", shards=tiny_shards, teacher=storing))

    def losses(artifact: Artifact) -> list[dict[str, float]]:
        return [point["terms"] for point in json.loads(artifact.fetch("history.json").read_text())["points"]]

    straight = run("straight")
    with monkeypatch.context() as online:
        online.setattr(training, "open_cache", lambda context: None)
        for ours, theirs in zip(losses(run("live")), losses(straight), strict=True):
            assert ours["bank"] > 0.001
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    terminate_after(3)
    with pytest.raises(Interrupted):
        run("cut")
    cut = run("cut")
    assert losses(cut) == losses(straight)
    for name in ("model/model.safetensors", "method.safetensors"):
        assert cut.manifest["outputs"][name] == straight.manifest["outputs"][name]
    assert not [name for name in load_file(straight.fetch("method.safetensors")) if "bank" in name]
