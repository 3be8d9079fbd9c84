"""What the training stages write, pass on, and refuse."""

import json
import math
import re

import pyarrow.parquet as pq
import pytest
import torch
from manifests import rewrite
from torch.nn.modules.module import register_module_forward_pre_hook

from cmapkd_core.config import ALL_LEVELS, STAGE_PHASES
from cmapkd_core.errors import InputError
from cmapkd_core.models.build import build, build_student, load_model
from cmapkd_core.places import stage_url
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare, teacher, train
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.foreign import differing
from cmapkd_core.stages.training import phase_seed


@pytest.fixture(scope="module")
def chain(tmp_path_factory, tiny_shards, tiny_teacher, tiny_warmup) -> dict[str, Artifact]:
    """warmup, alsn and joint of the tiny recipe."""
    request = Request("tiny", str(tmp_path_factory.mktemp("chain")))
    alsn = train.run(request, stage="alsn", shards=tiny_shards, teacher=tiny_teacher, init=tiny_warmup)
    joint = train.run(request, stage="joint", shards=tiny_shards, teacher=tiny_teacher, init=alsn)
    return {name: Artifact.open(url) for name, url in {"warmup": tiny_warmup, "alsn": alsn, "joint": joint}.items()}


def points(artifact: Artifact) -> list[dict]:
    return json.loads(artifact.fetch("history.json").read_text())["points"]


def own(artifact: Artifact) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(artifact.fetch("method.safetensors"))


def test_every_stage_leaves_a_student_that_loads_and_its_history(chain):
    for name, artifact in chain.items():
        assert load_model(artifact.fetch_folder("model")).spec.embed_dim == 24
        assert [p["phase"] for p in points(artifact)] == sorted(
            (p["phase"] for p in points(artifact)), key=STAGE_PHASES[name].index
        )
        assert {p["phase"] for p in points(artifact)} == set(STAGE_PHASES[name])
        assert all(math.isfinite(v) for p in points(artifact) for v in p["terms"].values())


def test_manifests_say_what_the_models_are(chain, tiny_teacher):
    """Of each model that a stage used: read off the model, so an artifact's folder and its manifest agree."""
    teacher = Artifact.open(tiny_teacher)
    for artifact in (teacher, *chain.values()):
        told = artifact.manifest["models"]
        if artifact is not teacher:  # which students of other weights share
            assert told["student"]["activations"] == {"image": "gelu", "text": "gelu"}
            assert told["student"]["mean"] == [0.5, 0.5, 0.5]
        assert told["teacher"] == json.loads((teacher.fetch_folder("model") / "model.json").read_text())
        assert told["teacher"]["activations"] == {"image": "quick_gelu", "text": "quick_gelu"}
    assert json.loads((chain["joint"].fetch_folder("model") / "model.json").read_text()) == told["student"]


def test_the_journal_holds_what_the_history_holds(chain):
    for artifact in chain.values():
        lines = [json.loads(line) for line in artifact.fetch("journal.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "samples_per_second" in line["metrics"]]
        assert [line["step"] for line in steps] == [p["step"] for p in points(artifact)]
        for line, point in zip(steps, points(artifact), strict=True):
            assert {n[6:]: v for n, v in line["metrics"].items() if n.startswith("terms/")} == point["terms"]


def test_warmup_writes_a_row_of_statistics_per_trained_pair(chain):
    table = pq.read_table(chain["warmup"].fetch("sample_stats.parquet"))
    expected = {"key", "teacher_image", "teacher_text", "difficulty"}
    assert set(table.column_names) >= expected | {f"{p}_{n}" for p in "du" for n in ALL_LEVELS}
    assert table.num_rows == 80  # 87 pairs in batches of 16
    assert len(set(table["key"].to_pylist())) == 80
    for name in ALL_LEVELS:
        d, u = table[f"d_{name}"].to_numpy(), table[f"u_{name}"].to_numpy()
        assert ((d > 0) & (d < 2)).all()
        assert (abs(u) <= 1 + 1e-5).all()
        assert (u != 0).all()
    lengths = {len(row) for row in table["teacher_image"].to_pylist()}
    assert lengths == {32}


def test_alsn_changes_the_selector_and_nothing_else(chain):
    before, after = own(chain["warmup"]), own(chain["alsn"])
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"selector"}
    ours, theirs = (load_model(chain[n].fetch_folder("model")).state_dict() for n in ("warmup", "alsn"))
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_a_frozen_student_stays_as_it_was(tmp_path, train_tiny):
    overrides = "optim.batch=29 schedule.fine.lr.student=0 runtime.shares_every=1"
    artifact = Artifact.open(train_tiny(tmp_path, "joint", "none", overrides))
    ours = load_model(artifact.fetch_folder("model")).state_dict()
    recipe = resolve("tiny")
    theirs = build(recipe.student, recipe.seed, tmp_path).state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    assert all(p["shares"] == {} for p in points(artifact))


@pytest.mark.parametrize("stage", ["alsn", "joint"])
def test_weights_of_each_sample_are_distributions(chain, stage):
    table = pq.read_table(chain[stage].fetch("weights.parquet"))
    stats = pq.read_table(chain["warmup"].fetch("sample_stats.parquet"))
    assert table["key"] == stats["key"]
    assert table["difficulty"] == stats["difficulty"]
    for side in (ALL_LEVELS[:4], ALL_LEVELS[4:]):
        total = sum(table[f"w_{name}"].to_numpy() for name in side)
        assert total == pytest.approx([1.0] * 80, abs=1e-5)


def test_joint_trains_the_student(chain):
    ours, theirs = (load_model(chain[n].fetch_folder("model")).state_dict() for n in ("alsn", "joint"))
    assert not torch.equal(ours["model.visual.proj"], theirs["model.visual.proj"])
    last = points(chain["joint"])[-1]
    assert chain["joint"].manifest["metrics"]["final/task"] == last["terms"]["task"]
    assert set(last["shares"]) == set(last["terms"])
    assert last["shares"]["policy"] == 0  # its gradient reaches the selector alone
    assert last["shares"]["intra"] > 0.01
    assert sum(last["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize("row", ["no_alsn", "random_alsn", "finetune", "kd"])
def test_a_row_without_a_learned_selector_hands_the_warmup_on(tmp_path, train_tiny, capsys, row):
    warmup = train_tiny(tmp_path, "warmup", row, "optim.batch=29")
    assert train_tiny(tmp_path, "alsn", row, "optim.batch=29", init=warmup) == warmup
    assert f"alsn: nothing to train for this recipe; it hands on {warmup}" in capsys.readouterr().out
    with pytest.raises(InputError, match="has no manifest"):
        train_tiny(tmp_path, "alsn", row, "optim.batch=29", init=f"{tmp_path}/warmup/0000")


@pytest.mark.parametrize(
    ("first", "second"), [("no_alsn", "none"), ("none", "manual_alsn"), ("random_alsn", "seed_alsn")]
)
def test_rows_that_choose_weights_in_other_ways_share_the_warmup_of_whichever_ran_first(
    tmp_path, train_tiny, first, second
):
    warmup = train_tiny(tmp_path, "warmup", first)
    assert train_tiny(tmp_path, "warmup", second) == warmup
    assert not [name for name in own(Artifact.open(warmup)) if name.startswith("selector.")]
    alsn = train_tiny(tmp_path, "alsn", second, init=warmup)
    assert points(Artifact.open(train_tiny(tmp_path, "joint", second, init=alsn)))


def test_a_method_without_a_teacher_never_opens_it(tmp_path, tiny_shards):
    request = Request("tiny", str(tmp_path), ablation="finetune", overrides="optim.batch=29")
    url = train.run(request, stage="joint", shards=tiny_shards, teacher="no/such/teacher")
    assert set(Artifact.open(url).manifest["inputs"]) == {"shards"}


def test_the_same_command_gives_the_same_bits(tmp_path, train_tiny, digests):
    one, two = (train_tiny(tmp_path / name, "joint", "none", "optim.batch=29") for name in "ab")
    assert digests(one) == digests(two)
    other = train_tiny(tmp_path / "c", "joint", "none", "optim.batch=29", seed="1")
    assert digests(other)["model/model.safetensors"] != digests(one)["model/model.safetensors"]


def test_the_teacher_is_fitted_the_same_whatever_ran_before(tmp_path, tiny_shards, tiny_teacher, digests):
    torch.manual_seed(12345)
    again = teacher.run(Request("tiny", str(tmp_path)), shards=tiny_shards)
    assert digests(again) == digests(tiny_teacher)


def test_phases_do_not_repeat_each_others_batches():
    phases = [phase for names in STAGE_PHASES.values() for phase in names]
    seeds = [phase_seed(seed, phase) for seed in range(5) for phase in phases]
    assert len(set(seeds)) == len(seeds)


# ---- bad input ------------------------------------------------------------------------------------


def test_alsn_without_the_warmups_table_is_refused(train_tiny, tmp_path):
    with pytest.raises(InputError, match=r"sample_stats\.parquet: give the warm-up's artifact as --init"):
        train_tiny(tmp_path, "alsn")


def test_a_joint_stage_without_a_warmup_says_what_is_missing(train_tiny, tmp_path, capsys):
    url = train_tiny(tmp_path, "joint", "none", "optim.batch=29")
    assert "no table of the samples' levels is written" in capsys.readouterr().out
    assert "weights.parquet" not in Artifact.open(url).files()


def test_another_methods_artifact_as_init_is_refused(train_tiny, tmp_path, tiny_warmup):
    with pytest.raises(
        InputError, match=r"--init \S+ was made by another recipe(.|\n)*method\.name: cmapkd -> contrastive"
    ):
        train_tiny(tmp_path, "joint", "finetune", init=tiny_warmup)


def test_an_init_of_other_sizes_is_refused(train_tiny, tmp_path, tiny_warmup):
    with pytest.raises(InputError, match=r"--init \S+ was made by another recipe(.|\n)*optim\.batch: 16 -> 8"):
        train_tiny(tmp_path, "joint", "none", "optim.batch=8", init=tiny_warmup)


def test_an_artifact_of_another_stage_as_teacher_is_refused(tmp_path, tiny_shards):
    with pytest.raises(InputError, match="has no folder model/"):
        train.run(Request("tiny", str(tmp_path)), stage="warmup", shards=tiny_shards, teacher=tiny_shards)


def test_a_teacher_fitted_for_other_levels_is_refused(train_tiny, tmp_path):
    with pytest.raises(InputError, match=r"pyramid\.width"):
        train_tiny(tmp_path, "warmup", "none", "pyramid.width=8")


def test_an_unknown_stage_is_refused(train_tiny, tmp_path):
    with pytest.raises(InputError, match="unknown stage 'wramup': did you mean 'warmup'"):
        train_tiny(tmp_path, "wramup")


def test_more_pairs_a_batch_than_there_are_is_refused(train_tiny, tmp_path):
    with pytest.raises(InputError, match=r"87 training samples are fewer than one batch of 100"):
        train_tiny(tmp_path, "joint", "finetune", "optim.batch=100")


def test_data_without_a_training_split_is_refused(tmp_path, tiny_shards):
    """prepare writes no such data set; one from elsewhere may be so."""
    request = Request("tiny", str(tmp_path))
    url = prepare.run(request)
    manifest = json.loads(Artifact.open(url).fetch("shards.json").read_text())
    manifest["splits"]["train"] = {**manifest["splits"]["train"], "count": 0}
    rewrite(url, "shards.json", json.dumps(manifest).encode())
    with pytest.raises(InputError, match=r"has no training pairs \(splits: .*prepare data with train among"):
        teacher.run(request, shards=url)


FOREIGN = {
    "a store of another seed": ("teacher_fit.seed=1", r"--teacher \S+ was made .*\n  teacher_fit\.seed: 0 -> 1\n"),
    "fitted for other epochs": (
        "teacher_fit.pyramid.epochs=9",
        r"--teacher \S+ .*\n  teacher_fit\.pyramid\.epochs: \d -> 9\n",
    ),
    "other data": ("data.size=50", r"--shards \S+ was made .*\n  data\.size: \d+ -> 50\n"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_another_recipe_made_is_refused_with_the_differing_fields(train_tiny, tmp_path, what):
    overrides, says = FOREIGN[what]
    with pytest.raises(InputError, match=says) as refused:
        train_tiny(tmp_path, "warmup", overrides=overrides)
    assert not list(tmp_path.glob("warmup/*"))
    stage = "prepare" if "--shards" in says else "teacher"
    way_out = re.search(rf"or run stage {stage} with this one, which makes (\S+)", str(refused.value))
    assert way_out
    assert way_out[1] == stage_url(str(tmp_path), stage, resolve("tiny", overrides=overrides))


def test_an_init_of_another_recipe_is_refused(train_tiny, tiny_warmup, tmp_path):
    with pytest.raises(InputError, match=r"--init \S+ was made by another .*\n  seed: 0 -> 3\n"):
        train_tiny(tmp_path, "joint", overrides="seed=3", init=tiny_warmup)


def test_a_teacher_is_not_fitted_on_shards_of_another_recipe(tiny_shards, tmp_path):
    with pytest.raises(InputError, match=r"--shards \S+ was made .*\n  data\.size: \d+ -> 50\n"):
        teacher.run(Request("tiny", str(tmp_path), overrides="data.size=50"), shards=tiny_shards)


def test_fields_that_are_younger_than_an_artifact_had_their_defaults(tiny_teacher):
    made = Artifact.open(tiny_teacher)
    del made.manifest["fields"]["teacher_fit.alpha_prior"]
    assert differing(resolve("tiny"), made) == []
    changed = differing(resolve("tiny", overrides="teacher_fit.alpha_prior=0.5"), made)
    assert [line.partition(":")[0] for line in changed] == ["teacher_fit.alpha_prior"]


@pytest.mark.parametrize("row", ["none", "promptkd"])
def test_activations_that_are_computed_again_change_nothing(train_tiny, tmp_path, digests, row):
    """Not even the artifact's place; utilities and shares are measured through them."""
    urls, ran = [], [0]

    def count(module, _) -> None:
        ran[-1] += isinstance(module, torch.nn.MultiheadAttention)

    counting = register_module_forward_pre_hook(count)
    for name in ("true", "false"):
        fields = f"optim.batch=14 runtime.shares_every=3 runtime.grad_checkpointing={name}"
        urls.append(train_tiny(tmp_path / name, "joint", row, fields))
        ran.append(0)
    counting.remove()
    assert ran[0] > 1.2 * ran[1] > 0  # the teacher runs once
    assert urls[0].rpartition("/")[2] == urls[1].rpartition("/")[2]
    assert digests(urls[0]) == digests(urls[1])


def test_a_lift_is_trained_and_handed_on(train_tiny, tmp_path):
    """Both stages' students have it, and every channel of it has moved; the teacher's artifact is that of all rows."""
    begins = build_student(resolve("tiny", "lift_128").student, 0, tmp_path).model.visual.lift.weight
    warmup = train_tiny(tmp_path, "warmup", "lift_128")
    joint = train_tiny(tmp_path, "joint", "lift_128", init=warmup)
    lifts = [load_model(Artifact.open(url).fetch_folder("model")).model.visual.lift.weight for url in (warmup, joint)]
    assert [lift.shape for lift in lifts] == [(128, 24)] * 2
    for before, after in zip([begins, lifts[0]], lifts, strict=True):
        assert ((after - before).abs().sum(1) > 0).all()
