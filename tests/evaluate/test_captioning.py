"""Captions of frozen towers: words, the decoder, and the task as a stage."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.writer import write_shards
from cmapkd_core.errors import Diverged
from cmapkd_core.evaluate import NotApplicable, Subject, caption_scores, caption_training
from cmapkd_core.evaluate.caption_decoder import PrefixDecoder
from cmapkd_core.evaluate.caption_images import TrainingFeatures, tower_features
from cmapkd_core.evaluate.caption_tokens import END, START, UNKNOWN, Vocabulary, words
from cmapkd_core.evaluate.caption_training import padded, train
from cmapkd_core.evaluate.captioning import captioned, coco_results, describe, examples, most_frequent, run_captioning
from cmapkd_core.models.build import build
from cmapkd_core.recipes import RECIPES
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards

CPU = torch.device("cpu")


@pytest.fixture
def no_java(tmp_path, monkeypatch):
    """METEOR reads its paraphrases for seconds, so most tests go without."""
    monkeypatch.setenv("PATH", str(tmp_path))


# Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man's T-shirt, isn't it?", "a man 's t-shirt is n't it"),
        ("don\u2019t  stop:\n3.5 of 1,000", "do n't stop 3.5 of 1,000"),
        ("Flag of \u00c5land \U0001f1e6\U0001f1fd", "flag of \u00e5land"),
        ("?!", ""),
    ],
)
def test_words_are_lower_case_without_punctuation(text, expected):
    assert words(text) == expected.split()
    assert words(expected) == expected.split()


def test_a_caption_of_known_words_comes_back_from_its_ids():
    vocabulary = Vocabulary.of(["a red cat", "a red dog's toy", "a"], size=100)
    assert vocabulary.known[:5] == ("<start>", "<end>", "<unknown>", "a", "red")
    ids = vocabulary.encode("A red dog's toy.", length=24)
    assert ids[-1] == END
    assert vocabulary.decode(ids) == "a red dog 's toy"
    assert vocabulary.decode([*ids, END, END]) == "a red dog 's toy"


def test_rare_words_are_unknown_and_long_captions_end_without_an_end():
    vocabulary = Vocabulary.of(["b b c c a"], size=2)
    assert vocabulary.known[3:] == ("b", "c")
    assert vocabulary.encode("a b", length=9) == [UNKNOWN, 3, END]
    assert vocabulary.encode("b b b", length=2) == [3, 3]
    assert vocabulary.unknown(["a b", "b c"]) == pytest.approx(25)


def test_the_decoder_reads_each_word_and_is_to_say_the_next():
    inputs, targets = padded([[7, 8, END], [9, END]])
    assert inputs.tolist() == [[START, 7, 8], [START, 9, END]]
    assert targets.tolist() == [[7, 8, END], [9, END, -100]]


# The decoder


@pytest.fixture(scope="module")
def shards(tiny_shards):
    return open_shards(Artifact.open(tiny_shards))


@pytest.fixture
def subject(shards, tmp_path, one_thread):
    def make(**changes):
        recipe = RECIPES["tiny"]
        captioning = dataclasses.replace(recipe.evaluate.captioning, **changes)
        config = dataclasses.replace(recipe.evaluate, captioning=captioning)
        backbone = build(recipe.student, 0, tmp_path).eval()
        said: list[str] = []
        return Subject(backbone, shards, config, 0, CPU, tmp_path, said.append), said

    return make


def learn(subject, rows, captions):
    """A decoder trained on the training pictures at `rows`, and what it says of them."""
    vocabulary = Vocabulary.of([text for group in captions for text in group], subject.config.captioning.vocabulary)
    seen = TrainingFeatures(subject, rows)
    config = subject.config.captioning
    decoder, losses = train(seen, captions, vocabulary, config, CPU, subject.say)
    return seen, decoder, losses, vocabulary


def test_the_decoder_learns_a_few_pictures_by_heart_and_describes_them(subject, no_java):
    one, _ = subject(epochs=150, batch=8, dropout=0.0, lr=5e-3)
    rows = list(range(8))
    captions = [group[:1] for group in captioned(one.shards, "train").values()][:8]
    _, decoder, losses, vocabulary = learn(one, rows, captions)
    assert losses[-1] < 0.1 < losses[0]
    training = dataclasses.replace(one, config=dataclasses.replace(one.config, split="train"))
    said = dict(zip(map(str, rows), describe(training, decoder, rows, vocabulary), strict=True))
    scores = caption_scores.score({str(i): captions[i] for i in rows}, {"": said}).systems[""]
    assert scores["BLEU-1"] > 90
    assert scores["CIDEr"] > 300


@pytest.mark.parametrize("update", [1, 4])  # of two epochs with two each; the last is in no loss that follows
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_no_decoder(subject, monkeypatch, update, value):
    one, _ = subject(epochs=2, batch=4)
    seen = [0]

    def poisoned(grad: torch.Tensor) -> torch.Tensor:
        seen[0] += 1
        return grad * value if seen[0] == update else grad

    def decoder(*given):
        made = PrefixDecoder(*given)
        made.places.register_hook(poisoned)
        return made

    monkeypatch.setattr(caption_training, "PrefixDecoder", decoder)
    captions = [group[:1] for group in captioned(one.shards, "train").values()][:8]
    epoch = (update + 1) // 2
    with pytest.raises(Diverged, match=rf"captioning: in epoch {epoch} .*: lower evaluate\.captioning\.lr"):
        learn(one, list(range(8)), captions)


def test_words_see_the_prefix_and_the_words_before_them_alone(subject):
    one, _ = subject(layers=2, width=128)
    images = torch.rand(2, 3, *[one.backbone.spec.image_size] * 2, generator=torch.Generator().manual_seed(0))
    sight = tower_features(one.backbone, images, 7)
    torch.manual_seed(0)
    decoder = PrefixDecoder(sight, 20, one.config.captioning).eval()
    tokens = torch.tensor([[START, 5, 6, 7]])
    first, other = sight[torch.tensor([0])], sight[torch.tensor([1])]
    with torch.no_grad():
        before = decoder(first, tokens)
        after = decoder(first, torch.tensor([[START, 5, 9, 7]]))
        torch.testing.assert_close(before[:, :2], after[:, :2])
        assert not torch.allclose(before[:, 2:], after[:, 2:])
        assert not torch.allclose(before[:, 0], decoder(other, tokens)[:, 0])
        forbidden = decoder.next_word(decoder.prefix(first), tokens[:, :1])[0].isinf()
    assert forbidden.nonzero().flatten().tolist() == [START, END, UNKNOWN]


def test_a_large_map_is_averaged_down_to_the_grid(subject):
    one, _ = subject()
    images = torch.zeros(1, 3, *[one.backbone.spec.image_size] * 2)
    whole, small = tower_features(one.backbone, images, 100), tower_features(one.backbone, images, 2)
    assert whole.maps.shape[1] > 4
    assert small.maps.shape[1] == 4
    assert small.maps.dtype == torch.float16


def test_pictures_seen_anew_every_epoch_train_the_same_decoder(subject):
    one, _ = subject(epochs=2)
    rows = list(captioned(one.shards, "train"))
    held, streamed = TrainingFeatures(one, rows), TrainingFeatures(one, rows, most=0)
    assert held.held
    assert not streamed.held
    captions = list(captioned(one.shards, "train").values())
    vocabulary = Vocabulary.of([text for group in captions for text in group], 100)
    state = torch.get_rng_state()
    losses = [train(seen, captions, vocabulary, one.config.captioning, CPU, one.say)[1] for seen in (held, streamed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert torch.equal(state, torch.get_rng_state())


# The task


def test_the_most_frequent_caption_and_ties():
    assert most_frequent(["A dog", "b", "a  dog", "c"]) == "a dog"
    assert most_frequent(["b", "a"]) == "a"


def test_results_have_coco_s_format_with_number_ids_where_keys_are_numbers():
    assert coco_results({"000042": "a cat"}) == [{"image_id": 42, "caption": "a cat"}]
    assert coco_results({"42": "a", "x": "b"}) == [
        {"image_id": "42", "caption": "a"},
        {"image_id": "x", "caption": "b"},
    ]


@pytest.mark.parametrize("keys", [["vg-1", "vg-2"], ["cc3m-val-7"], ["coco-1", "x"], ["coco-1/2"], ["train/000000000"]])
def test_keys_of_other_sources_stay_as_they_are(keys):
    assert [row["image_id"] for row in coco_results(dict.fromkeys(keys, "a cat"))] == keys


def test_the_official_evaluation_takes_the_results_for_coco_s_pictures(tmp_path):
    """Of a data set that source coco prepares, against ids as COCO's own annotations have them."""
    published, splits, images = tmp_path / "coco", {391895: "test", 9: "test", 522418: "train"}, []
    for number, split in splits.items():
        image, name = io.BytesIO(), f"COCO_val2014_{number:012d}.jpg"
        Image.new("RGB", (32, 32), (number % 256, 9, 9)).save(image, "PNG")
        storage.write_bytes(str(published / "val2014" / name), image.getvalue())
        entry = {"filename": name, "filepath": "val2014", "cocoid": number, "split": split}
        images.append({**entry, "sentences": [{"raw": "a cat"}]})
    storage.write_json(str(published / "dataset_coco.json"), {"images": images})
    config = DataConfig(source="coco", url=str(published))
    write_shards(open_rows(config), tmp_path / "prepared", config, lambda seen: None)
    keys = ShardSet.open(str(tmp_path / "prepared"), tmp_path).keys("test")
    storage.write_json(str(tmp_path / "truth.json"), {"images": [{"id": n} for n in splits], "annotations": []})
    storage.write_json(str(tmp_path / "results.json"), coco_results(dict.fromkeys(keys, "a cat")))
    found = COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "results.json"))
    assert sorted(row["image_id"] for row in found.anns.values()) == [9, 391895]


def test_the_coco_tools_read_the_results(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps({"images": [{"id": 42}, {"id": 7}], "annotations": []}))
    (tmp_path / "results.json").write_text(json.dumps(coco_results({"000042": "a cat", "7": "a dog"})))
    found = COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "results.json"))
    assert {found.anns[i]["image_id"]: found.anns[i]["caption"] for i in found.anns} == {42: "a cat", 7: "a dog"}


def test_examples_are_spread_over_the_split():
    said = {str(i): f"c{i}" for i in range(100)}
    chosen = examples(said, {key: [f"r{key}"] for key in said})
    assert [int(row["key"]) for row in chosen] == [i * 100 // 12 for i in range(12)]
    assert len(examples({"1": "x", "2": "y"}, {"1": ["a"], "2": ["b"]})) == 2


def test_the_same_seed_gives_the_same_result_and_another_seed_another(subject, no_java):
    outcomes = [run_captioning(subject(seed=seed)[0]) for seed in (0, 0, 1)]
    assert outcomes[0].metrics == outcomes[1].metrics
    assert outcomes[0].detail == outcomes[1].detail
    assert outcomes[0].detail["train"]["loss"] != outcomes[2].detail["train"]["loss"]


def test_the_outcome_has_the_contract_s_metrics_and_says_what_is_missing(subject, no_java, tmp_path):
    one, lines = subject()
    outcome = run_captioning(one)
    scores = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
    assert {f"{prefix}{name}" for prefix in ("", "baseline/", "shuffled/") for name in scores} <= set(outcome.metrics)
    assert outcome.metrics["images"] == one.shards.count("test")
    assert any("METEOR is left out" in line and "Java" in line and line.endswith("\n") for line in lines)
    assert "plain" in outcome.detail["tokenizer"]
    results = json.loads((tmp_path / "captions_results.json").read_text())
    assert [row["image_id"] for row in results] == one.column("key")
    assert all(row["caption"] for row in results)
    json.dumps(outcome.detail)


def test_data_without_captions_is_not_applicable(subject):
    one, _ = subject()
    absent = dataclasses.replace(one, config=dataclasses.replace(one.config, split="holdout"))
    with pytest.raises(NotApplicable, match="'holdout' has none in 0 images"):
        run_captioning(absent)


def test_the_task_as_a_stage(tmp_path, no_java, capsys):
    url = evaluate.run(
        Request("tiny", str(tmp_path / "root"), data="scenes"), model="recipe:student", task="captioning"
    )
    assert "METEOR is left out" in capsys.readouterr().out
    artifact = Artifact.open(url)
    assert {"captioning.json", "captions_results.json", "metrics.json"} <= set(artifact.files())
    assert "captioning/CIDEr" in json.loads(artifact.fetch("metrics.json").read_bytes())
