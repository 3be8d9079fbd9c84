"""The evaluate stage on generated pictures and models of a few thousand parameters."""

import json
import re

import pytest
import torch
from manifests import manifest
from PIL import Image

from cmapkd_core.errors import InputError
from cmapkd_core.evaluate import count_parameters
from cmapkd_core.models.build import build, save_model
from cmapkd_core.recipes import RECIPES
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate, prepare
from cmapkd_core.stages.artifact import Artifact

SETTINGS = "data.test_share=0.3 evaluate.batch=8"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    request = Request("tiny", str(tmp_path_factory.mktemp("root")), overrides=SETTINGS)
    return request, prepare.run(request)


def read(url, name):
    return json.loads(Artifact.open(url).fetch(name).read_bytes())


@pytest.fixture(scope="module")
def student(scenes):
    request, shards = scenes
    return evaluate.run(request, model="recipe:student", shards=shards)


def test_metrics_are_flat_and_in_percent(scenes, student):
    metrics = read(student, "metrics.json")
    assert {"retrieval/i2t/R@1", "retrieval/t2i/median_rank", "zeroshot/top1", "zeroshot/majority"} <= set(metrics)
    assert metrics["retrieval/i2t/R@1"] <= metrics["retrieval/i2t/R@5"] <= metrics["retrieval/i2t/R@10"] <= 100
    assert metrics == Artifact.open(student).manifest["metrics"]


def test_every_test_image_has_its_ranking_by_key(scenes, student):
    found = read(student, "retrieval.json")
    metrics = read(student, "metrics.json")
    assert len(found["i2t"]) == metrics["retrieval/images"]
    assert len(found["t2i"]) == metrics["retrieval/captions"]
    share = sum(query["rank"] == 1 for query in found["i2t"].values()) / len(found["i2t"])
    assert metrics["retrieval/i2t/R@1"] == pytest.approx(100 * share)
    for query in found["i2t"].values():
        assert query["correct"]
        assert [score for _, score in query["top"]] == sorted((s for _, s in query["top"]), reverse=True)
        if query["rank"] <= 5:
            assert {text for text, _ in query["top"]} & set(query["correct"])


def test_the_batch_size_changes_no_result(scenes, student):
    request, shards = scenes
    other = Request(request.recipe, request.root + "/other", overrides=SETTINGS.replace("batch=8", "batch=3"))
    assert read(evaluate.run(other, model="recipe:student", shards=shards), "metrics.json") == pytest.approx(
        read(student, "metrics.json")
    )


def test_a_finished_evaluation_answers_at_once(scenes, student, capsys):
    request, shards = scenes
    assert evaluate.run(request, model="recipe:student", shards=shards) == student
    assert "already complete" in capsys.readouterr().out


def test_an_open_clip_name_and_one_task_alone(scenes):
    request, shards = scenes
    url = evaluate.run(request, model="tiny-student:random", shards=shards, task="retrieval")
    assert Artifact.open(url).files() == ["journal.jsonl", "metrics.json", "model.json", "retrieval.json"]
    assert Artifact.open(url).manifest["models"]["model"] == read(url, "model.json")


@pytest.mark.parametrize(
    ("stage", "fields", "name"),
    [
        ("joint", {"method.name": "finetune", "teacher.model": "T"}, "joint by finetune 0123abcd"),
        ("teacher", {"teacher.model": "T", "method.name": "m"}, "teacher T 0123abcd"),
        ("warmup", {}, "warmup 0123abcd"),
    ],
)
def test_a_model_is_called_what_a_person_knows_it_by(tmp_path, stage, fields, name):
    place = tmp_path / stage / "0123abcdef01"
    place.mkdir(parents=True)
    (place / "manifest.json").write_bytes(manifest(stage=stage, fields=fields))
    assert evaluate.called(str(place)) == name
    tags = evaluate.evaluation_tags(str(place), ("vqa", "captioning"), "", "emoji")
    assert evaluate.evaluation_name(tags) == f"evaluate vqa+captioning of {name}"


def test_evaluations_are_told_apart_by_words(scenes, student):
    _, shards = scenes
    assert Artifact.open(student).manifest["stage"] == "evaluate retrieval+zeroshot on scenes of the untrained student"
    # By hand another recipe's source is no word about these shards.
    tags = evaluate.evaluation_tags("tiny-student:random", ("retrieval",), shards, "emoji")
    assert evaluate.evaluation_name(tags) == "evaluate retrieval on scenes of tiny-student:random"
    assert evaluate.evaluation_tags("o'clip", ("retrieval",), shards, "emoji")["model"] == "oclip"


def test_unknown_names_get_the_nearest_one(scenes):
    request, shards = scenes
    with pytest.raises(InputError, match="unknown task 'retrival': did you mean 'retrieval'"):
        evaluate.run(request, model="recipe:student", shards=shards, task="retrival")
    with pytest.raises(InputError, match="has no manifest"):
        evaluate.run(request, model=request.root + "/joint/000000000000", shards=shards)
    with pytest.raises(InputError, match=rf"or give one that is complete: below it are {shards}$"):
        evaluate.run(request, model="recipe:student", shards=shards.rpartition("/")[0], task="retrieval")


def test_a_model_in_a_folder_by_a_name_of_open_clip(scenes, tmp_path, monkeypatch):
    """Neither a hub's name nor a folder is taken for an artifact, and what is no artifact says how models are named."""
    request, shards = scenes
    save_model(build(RECIPES["tiny"].student, 3, tmp_path), tmp_path / "mine")
    with pytest.raises(InputError, match=r"no stage has finished there.* hf-hub:.*local-dir:") as caught:
        evaluate.run(request, model=f"{tmp_path}/mine", shards=shards, task="retrieval")
    offered = re.search(r"local-dir:\S+", str(caught.value))
    found = read(evaluate.run(request, model=offered[0], shards=shards, task="retrieval"), "metrics.json")
    named = f"tiny-student:{tmp_path}/mine/model.safetensors"
    assert found == read(evaluate.run(request, model=named, shards=shards, task="retrieval"), "metrics.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"of org/none cannot be fetched from the Hugging Face hub"):
        evaluate.run(request, model="hf-hub:org/none", shards=shards, task="retrieval")


@pytest.fixture(scope="module")
def classless(tmp_path_factory):
    """Pictures of one colour each, with captions and without classes."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(12):
        Image.new("RGB", (16, 16), (20 * i, 10, 250 - 20 * i)).save(folder / f"{i}.png")
        split = "test" if i < 4 else "train"
        rows.append({"key": str(i), "file": f"{i}.png", "caption": f"colour {i}", "split": split})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = Request("tiny", str(tmp_path_factory.mktemp("root")), data=f"folder:{folder}")
    return request, prepare.run(request)


def test_pictures_without_classes_leave_zeroshot_out_and_say_so(classless, capsys):
    request, shards = classless
    url = evaluate.run(request, model="recipe:student", shards=shards)
    assert "needs images with a class" in read(url, "zeroshot.json")["missing"]
    assert "zeroshot is left out" in capsys.readouterr().out
    assert not [name for name in read(url, "metrics.json") if name.startswith("zeroshot/")]


def test_zeroshot_asked_by_name_without_classes_is_an_error(classless):
    request, shards = classless
    with pytest.raises(InputError, match="needs images with a class, and split 'test' has 0"):
        evaluate.run(request, model="recipe:student", shards=shards, task="zeroshot")


def test_an_empty_split_is_an_error(classless):
    request, shards = classless
    other = Request(request.recipe, request.root, data=request.data, overrides="evaluate.split=val")
    with pytest.raises(InputError, match="val"):
        evaluate.run(other, model="recipe:student", shards=shards, task="retrieval")


def test_parameters_are_counted_per_tower(tmp_path):
    torch.set_num_threads(1)
    backbone = build(RECIPES["tiny"].student, 0, tmp_path)
    counts = count_parameters(backbone)
    total = sum(p.numel() for p in backbone.model.parameters())
    scalars = backbone.model.logit_scale.numel()
    assert counts["parameters/image"] + counts["parameters/text"] + scalars == total
