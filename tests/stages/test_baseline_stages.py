"""Baselines through the stages: one budget, what an artifact holds, what answers queries."""

import json

import pytest
import torch
from safetensors.torch import load_file

from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError
from cmapkd_core.models.build import build, load_model
from cmapkd_core.models.compose import text_state
from cmapkd_core.places import RECIPE_STUDENT
from cmapkd_core.recipes import BASELINES, resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.training import phase_seed, train_loader

PHASES = ("coarse", "medium", "fine")
SHORT = "optim.batch=29"


def keys(recipe, shards: ShardSet) -> list[list[str]]:
    """The keys of every batch of every phase that trains a student."""
    batches = []
    for phase in PHASES:
        seed = phase_seed(recipe.seed, phase)
        loader = train_loader(recipe, shards, {}, batch=recipe.optim.batch, fraction=recipe.data.fraction, seed=seed)
        steps = getattr(recipe.schedule, phase).epochs * loader.steps_per_epoch
        batches += [batch.keys for batch in loader.batches(0, steps)]
    return batches


def test_every_row_gives_the_same_batches_and_the_same_number_of_updates(tiny_shards):
    shards = open_shards(Artifact.open(tiny_shards))
    wanted = keys(resolve("tiny"), shards)
    assert len(wanted) == 3 * 5
    for row in BASELINES:
        assert keys(resolve("tiny", row), shards) == wanted, row


def test_a_teacher_is_given_to_methods_that_have_one(tmp_path, tiny_shards, tiny_teacher):
    """As a pod gives it: the reference's has no --teacher."""
    from cmapkd_core.stages import train

    def stage(row: str, teacher: str = "") -> str:
        given = {"--recipe": "tiny", "--root": str(tmp_path), "--ablation": row, "--overrides": SHORT}
        given |= {"--stage": "warmup", "--shards": tiny_shards, "--artifact": str(tmp_path / row)}
        pairs = {**given, **({"--teacher": teacher} if teacher else {})}.items()
        return main(train.run, [part for pair in pairs for part in pair])

    assert stage("finetune") == 0
    alone = (tmp_path / "finetune").read_text()
    assert "teacher" not in Artifact.open(alone).manifest["inputs"]
    assert stage("finetune", tiny_teacher) == 0
    assert (tmp_path / "finetune").read_text() == alone
    with pytest.raises(InputError, match="stage warmup of method 'kd' trains towards its teacher: .* --teacher URL"):
        train.run(Request("tiny", str(tmp_path), ablation="kd", overrides=SHORT), stage="warmup", shards=tiny_shards)
    assert stage("kd", tiny_teacher) == 0


@pytest.fixture(scope="module")
def promptkd(tmp_path_factory, tiny_shards, tiny_teacher) -> dict[str, Artifact]:
    """warmup, alsn and joint of promptkd."""
    from cmapkd_core.stages import train

    torch.set_num_threads(1)
    request = Request("tiny", str(tmp_path_factory.mktemp("promptkd")), ablation="promptkd", overrides=SHORT)
    given, url, made = {"shards": tiny_shards, "teacher": tiny_teacher}, "", {}
    for stage in ("warmup", "alsn", "joint"):
        url = train.run(request, stage=stage, init=url, **given)
        made[stage] = Artifact.open(url)
    return made


def test_what_is_trained_on_and_what_is_evaluated_are_both_kept(promptkd, tiny_teacher):
    teacher = load_model(Artifact.open(tiny_teacher).fetch_folder("model"))
    for artifact in promptkd.values():
        shipped, student = (load_model(artifact.fetch_folder(name)) for name in ("model", "student"))
        own = load_file(artifact.fetch("method.safetensors"))
        assert {name.split(".")[0] for name in own} == {"projector", "bank", "filled"}
        assert shipped.spec.embed_dim == teacher.spec.embed_dim
        for name, x in text_state(shipped).items():
            assert torch.equal(x, text_state(teacher)[name])
        for name, x in student.model.visual.state_dict().items():
            assert torch.equal(x, shipped.model.visual.state_dict()[f"tower.{name}"])


def test_a_later_stage_goes_on_from_the_student(promptkd):
    visual = {
        stage: load_model(artifact.fetch_folder("student")).model.visual.state_dict()
        for stage, artifact in promptkd.items()
    }
    assert all(torch.equal(x, visual["alsn"][name]) for name, x in visual["warmup"].items())
    assert not torch.equal(visual["joint"]["proj"], visual["alsn"]["proj"])
    filled = [load_file(a.fetch("method.safetensors"))["filled"].item() for a in promptkd.values()]
    assert filled == [174, 174, 261]  # two epochs of 87 pairs, then one


def test_the_evaluation_measures_what_answers_queries_and_counts_it(tmp_path, promptkd, tiny_shards, tiny_teacher):
    request = Request("tiny", str(tmp_path), ablation="promptkd")

    def metrics(model: str) -> dict[str, float]:
        url = evaluate.run(request, model=model, shards=tiny_shards)
        return json.loads(Artifact.open(url).fetch("metrics.json").read_text())

    ours, teacher, student = (metrics(m) for m in (promptkd["joint"].url, tiny_teacher, RECIPE_STUDENT))
    assert ours["parameters/text"] == teacher["parameters/text"]
    assert ours["parameters/image"] == student["parameters/image"] + 24 * 32 + 2 * 32 + 32 * 32 + 32
    assert "retrieval/i2t/R@1" in ours


@pytest.mark.parametrize("row", ["fitnet_joint", "c2kd", "clip_kd", "llava_kd"])
def test_modules_of_a_method_are_in_its_artifact_and_not_in_the_student(tmp_path, train_tiny, row):
    artifact = Artifact.open(train_tiny(tmp_path, "joint", row, SHORT))
    assert not any(name.startswith("student/") for name in artifact.files())
    recipe = resolve("tiny", row)
    shipped = load_model(artifact.fetch_folder("model")).state_dict()
    plain = build(recipe.student, recipe.seed, tmp_path).state_dict()
    assert {n: x.shape for n, x in shipped.items()} == {n: x.shape for n, x in plain.items()}
    assert bool(load_file(artifact.fetch("method.safetensors"))) == (row != "llava_kd")


def test_hints_train_what_is_below_them_and_leave_the_rest(tmp_path, train_tiny):
    overrides = f"{SHORT} schedule.medium.epochs=0"
    artifact = Artifact.open(train_tiny(tmp_path, "warmup", "fitnet", overrides))
    recipe = resolve("tiny", "fitnet")
    before, after = build(recipe.student, recipe.seed, tmp_path), load_model(artifact.fetch_folder("model"))
    below, state = before.before(1), before.state_dict()
    moved = {name for name, x in after.state_dict().items() if not torch.equal(x, state[name])}
    assert moved == below


def test_dpt_trains_the_heads_alone(tmp_path, train_tiny):
    overrides = f"{SHORT} schedule.medium.epochs=0"
    artifact = Artifact.open(train_tiny(tmp_path, "warmup", "llava_kd", overrides))
    recipe = resolve("tiny", "llava_kd")
    state = build(recipe.student, recipe.seed, tmp_path).state_dict()
    after = load_model(artifact.fetch_folder("model")).state_dict()
    moved = {name.removeprefix("model.") for name, x in after.items() if not torch.equal(x, state[name])}
    assert moved == {"visual.proj", "text_projection", "logit_scale"}


def test_tinyclip_says_once_what_its_towers_inherit(tmp_path, train_tiny, capsys):
    warmup = train_tiny(tmp_path, "warmup", "tinyclip", SHORT)
    said = capsys.readouterr().out
    assert "tinyclip: image tower not inherited" in said
    assert "tinyclip: text tower not inherited" in said
    train_tiny(tmp_path, "joint", "tinyclip", SHORT, init=warmup)
    assert "inherited" not in capsys.readouterr().out
