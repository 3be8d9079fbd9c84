"""Stages with several teachers: beside the student or from their stores, resumed, and what they refuse."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cmapkd_core.config import ModelConfig
from cmapkd_core.ensemble import further_teachers, own_fields, recipe_of_teacher
from cmapkd_core.errors import InputError, Interrupted
from cmapkd_core.fields import as_overrides
from cmapkd_core.places import stage_url
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import levels, teacher, train, training
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.execute import Context

TWO = "teachers=tiny-student:random"
STORED = f"{TWO} teacher_fit.views=2 teacher_fit.store=levels"
SIX = "optim.batch=14 runtime.checkpoint_every=100 runtime.shares_every=100"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_shards):
    """`made(overrides)`: the artifacts of both teachers of the tiny recipe, made once."""
    torch.set_num_threads(1)
    root, known = str(tmp_path_factory.mktemp("teachers")), {}

    def make(overrides: str) -> dict[str, str]:
        if overrides not in known:
            request = Request("tiny", root, overrides=overrides)
            (second,) = further_teachers(request.resolved()).values()
            own = replace(request, own_overrides=as_overrides(own_fields(second)))
            known[overrides] = {"teacher": teacher.run(request, shards=tiny_shards)}
            known[overrides]["artifacts"] = {"teacher-2": teacher.run(own, shards=tiny_shards)}
            assert known[overrides]["artifacts"]["teacher-2"] == stage_url(
                root, "teacher", recipe_of_teacher(request.resolved(), "teacher-2")
            )
        return known[overrides]

    return make


@pytest.fixture
def trained(tmp_path, tiny_shards, made):
    """`trained(name, row, overrides)`: the artifact of joint training below a root of that name."""

    def run(name: str, row: str = "none", overrides: str = STORED, more: str = "", stage: str = "joint") -> Artifact:
        request = Request("tiny", str(tmp_path / name), ablation=row, overrides=f"{overrides} {SIX} {more}")
        return Artifact.open(train.run(request, stage=stage, shards=tiny_shards, **made(overrides)))

    return run


def losses(artifact: Artifact) -> list[dict[str, float]]:
    return [point["terms"] for point in json.loads(artifact.fetch("history.json").read_text())["points"]]


@pytest.mark.parametrize(("row", "more"), [("with_bank", "data.unpaired=0.4"), ("kd", "")])
def test_stored_and_live_teachers_teach_the_same(trained, monkeypatch, row, more):
    stored = trained("stored", row, more=more)
    with monkeypatch.context() as online:
        online.setattr(training, "open_cache", lambda context: None)
        online.setattr(training, "open_further", lambda context: {})
        live = trained("live", row, more=more)
    with monkeypatch.context() as online:
        online.setattr(training, "open_cache", lambda context: None)
        mixed = trained("mixed", row, more=more)  # as with a store of embeddings and a method of levels
    for ours, theirs, half in zip(losses(live), losses(stored), losses(mixed), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)
        assert half == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    assert [*stored.manifest["models"]] == ["student", "teacher", "teacher-2"]
    assert {"teacher", "teacher-2"} <= {*stored.manifest["inputs"]}


def test_pictures_without_captions_have_the_embeddings_of_both(tmp_path, tiny_shards, made):
    given, recipe = made(STORED), resolve("tiny", overrides=f"{STORED} data.unpaired=0.5")
    urls = {"shards": tiny_shards, "teacher": given["teacher"], **given["artifacts"]}
    inputs = {name: Artifact.open(url) for name, url in urls.items()}
    context = Context(recipe, inputs, tmp_path, tmp_path, None, "", "identity", lambda text: None)
    setup = training.TrainingSetup.build(context, "joint")
    batch = next(setup.batches("fine", ("P5", "L4")).batches(0, 1))
    said = setup.targets(batch, ("P5", "L4"))
    for one, cached in ((said.pictures, batch.pictures.cached), (said, batch.cached)):
        for part, name in zip(said.each(one.image), ("image", "teacher-2/image"), strict=True):
            assert torch.allclose(part, cached[name].float(), atol=1e-5)
    assert "teacher-2/text" in batch.cached
    assert not {"text", "teacher-2/text"} & {*batch.pictures.cached}


def test_a_second_teacher_is_heard_and_training_goes_on_bit_for_bit(
    trained, tmp_path, tiny_shards, made, terminate_after
):
    straight = trained("straight")
    given = made(STORED)
    one = Request("tiny", str(tmp_path / "one"), overrides=f"{STORED.removeprefix(TWO)} {SIX}")
    alone = Artifact.open(train.run(one, stage="joint", shards=tiny_shards, teacher=given["teacher"]))
    first, other = losses(alone)[0], losses(straight)[0]
    assert abs(first["kd"] - other["kd"]) > 1e-3 * first["kd"]
    assert first["task"] == pytest.approx(other["task"], rel=1e-5)
    terminate_after(3)
    with pytest.raises(Interrupted):
        trained("cut")
    cut = trained("cut")
    assert losses(cut) == losses(straight)
    for name in ("model/model.safetensors", "method.safetensors"):
        assert cut.manifest["outputs"][name] == straight.manifest["outputs"][name]


def test_a_whole_chain_learns_its_selector_from_both(trained, tiny_shards, made, tmp_path):
    """Live teachers, a batch in parts, the policy's table of both's embeddings, and what stage levels shows."""
    request = Request("tiny", str(tmp_path / "chain"), overrides=f"{TWO} optim.batch=28 optim.accumulate=2")
    given = made(TWO)
    init = ""
    for stage in ("warmup", "alsn", "joint"):
        init = train.run(request, stage=stage, shards=tiny_shards, init=init, **given)
    artifact = Artifact.open(init)
    assert load_file(artifact.fetch("method.safetensors"))["lifts.image.weight"].shape == (32 + 24, 24)
    shown = Artifact.open(levels.run(request, shards=tiny_shards, joint=init, **given))
    assert json.loads(shown.fetch("metrics.json").read_text())


def test_the_store_of_a_further_teacher_has_no_levels(made):
    first, second = (Artifact.open(url) for url in (made(STORED)["teacher"], made(STORED)["artifacts"]["teacher-2"]))
    sizes = [sum(o["bytes"] for n, o in one.manifest["outputs"].items() if "stored/" in n) for one in (first, second)]
    assert 0 < sizes[1] * 4 < sizes[0]


def test_a_store_on_s3_streams_within_a_bound(trained, tiny_shards, made, tmp_path, s3_root, monkeypatch):
    here = trained("here", "kd")
    request = Request("tiny", s3_root, overrides=STORED)
    (second,) = further_teachers(request.resolved()).values()
    own = replace(request, own_overrides=as_overrides(own_fields(second)))
    given = {"teacher": teacher.run(request, shards=tiny_shards)}
    given["artifacts"] = {"teacher-2": teacher.run(own, shards=tiny_shards)}
    far = Request("tiny", str(tmp_path / "far"), ablation="kd", overrides=f"{STORED} {SIX} runtime.cache_gb=1")
    assert losses(Artifact.open(train.run(far, stage="joint", shards=tiny_shards, **given))) == losses(here)


def test_what_is_not_given_or_is_anothers_is_refused_with_the_way_out(tmp_path, tiny_shards, made):
    def joint(artifacts, row="none", overrides=STORED):
        request = Request("tiny", str(tmp_path), ablation=row, overrides=overrides)
        return train.run(
            request, stage="joint", shards=tiny_shards, teacher=made(STORED)["teacher"], artifacts=artifacts
        )

    missing = r"further teachers: teacher-2, and --artifacts gives: none\. run stage teacher .*model=tiny-student"
    with pytest.raises(InputError, match=missing):
        joint({})
    with pytest.raises(InputError, match="further teachers: none, and --artifacts gives: teacher-2. Leave out"):
        joint(made(STORED)["artifacts"], overrides=STORED.removeprefix(TWO).strip())
    with pytest.raises(InputError, match=r"--artifacts teacher-2 .* was made by another recipe(?s:.*)teacher.model"):
        joint({"teacher-2": made(STORED)["teacher"]})
    with pytest.raises(InputError, match=r"--artifacts teacher-2 .* another recipe(?s:.*)teacher_fit.views"):
        joint(made(TWO)["artifacts"])
    # A method without a teacher reads none, as of a suite or a run's reference.
    reference = Artifact.open(joint(made(STORED)["artifacts"], row="finetune", overrides=f"{TWO} {SIX}"))
    assert [*reference.manifest["inputs"]] == ["shards"]


def test_a_further_teacher_with_random_heads_is_refused_by_its_stage(tmp_path, tiny_shards) -> None:
    """As a form on a cluster may ask for it, which no submission has looked at."""
    own = as_overrides(own_fields(ModelConfig("lite0-minilm", "packages")))
    with pytest.raises(InputError, match="lite0-minilm:packages has towers without a joint space"):
        teacher.run(Request("tiny", str(tmp_path), own_overrides=own), shards=tiny_shards)
