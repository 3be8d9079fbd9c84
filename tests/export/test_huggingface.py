"""The student as a transformers CLIPModel: the same embeddings, the same token ids, and a reason where it cannot be."""

import json

import pytest
import torch
from transformers import AutoModel, AutoProcessor, AutoTokenizer, CLIPModel, CLIPTokenizer

from cmapkd_core.errors import InputError
from cmapkd_core.export import FORMATS, Inexpressible, ParityError, parity
from cmapkd_core.export.huggingface import clip_state, load, obstacles, write

PLAIN = [
    "",
    " ",
    "!",
    "a red fox",
    "Don't it's I'LL 42",
    "ünïcödé naïve",
    "日本語の説明",
    "🦊 e\u0301",
    "x" * 90,
    "a b " * 40,
]
MENDED = ["fish &amp; chips", "“curly” quotes", "ﬁne", "\uff11\uff12"]


@pytest.fixture(params=["plain", "quick"])
def student(request):
    return request.getfixturevalue(request.param)


def test_the_same_embeddings(student, given, tmp_path):
    write(student, tmp_path / "hf")
    found = parity.measure(load(tmp_path / "hf"), given(student))
    parity.check("huggingface", found)
    assert found["image"]["max_difference"] < 2e-6
    assert found["text"]["max_difference"] < 2e-6
    assert found["preprocessing"]["min_cosine"] > 0.999
    assert found["captions_otherwise"] == []
    assert found["image"]["inputs"] == 3 + parity.NOISE
    assert found["text"]["inputs"] == 4 + len(parity.HARD)


def test_transformers_finds_model_and_processor_by_itself(plain, pictures, tmp_path):
    write(plain, tmp_path)
    model, processor = AutoModel.from_pretrained(tmp_path).eval(), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(model, CLIPModel)
    texts = ["a red fox", "a dog"]
    inputs = processor(text=texts, images=pictures[:1], padding="max_length", truncation=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits_per_image
        ours = parity.probe(plain, pictures[:1], texts)
        expected = plain.scale() * ours.image[:1] @ ours.text[:2].T
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_every_weight_has_its_place(student):
    """Nothing is made up and nothing is left out: as many numbers, apart from the scalars that are not exported."""
    ours = sum(x.numel() for x in student.model.state_dict().values())
    assert sum(x.numel() for x in clip_state(student).values()) == ours


@pytest.mark.parametrize("kind", [CLIPTokenizer, AutoTokenizer])
def test_the_same_token_ids(plain, tmp_path, kind):
    write(plain, tmp_path)
    tokenizer, length = kind.from_pretrained(tmp_path), plain.spec.context_length
    theirs = tokenizer(PLAIN, truncation=True, max_length=length)["input_ids"]
    end = plain.tokenize.eot_token_id
    ours = [row[: row.index(end) + 1] for row in plain.tokenize(PLAIN).tolist()]
    assert theirs == ours


def test_captions_that_open_clip_mends_first_are_named(plain, pictures, tmp_path):
    write(plain, tmp_path)
    found = parity.measure(load(tmp_path), parity.probe(plain, pictures, ["a dog", *MENDED]))
    assert found["captions_otherwise"] == MENDED


def test_a_wrong_activation_is_found(quick, given, tmp_path):
    write(quick, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = parity.measure(load(tmp_path), given(quick))
    with pytest.raises(ParityError, match="huggingface export gives other image embeddings than the student"):
        parity.check("huggingface", found)
    assert issubclass(ParityError, InputError)


def test_towers_of_others_give_a_reason(foreign, tmp_path):
    with pytest.raises(Inexpressible, match="test_efficientnet of timm; a text tower of Hugging Face's own"):
        FORMATS["huggingface"].write(foreign, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_lift_gives_a_reason(lifted, tmp_path):
    with pytest.raises(Inexpressible, match="a transformers CLIPModel cannot express a lift on the image tower$"):
        FORMATS["huggingface"].write(lifted, tmp_path / "hf")


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type=avg"),
        ("vision_cfg", {"ls_init_value": 1e-4}, "vision_cfg.ls_init_value=0.0001"),
        ("vision_cfg", {"layers": [1, 1, 1, 1]}, "a convolutional image tower"),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask=True"),
        ("text_cfg", {"pool_type": "eos", "eos_id": 49407}, "text_cfg.pool_type=eos"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "canonicalize"}}, "text_cfg.tokenizer_kwargs="),
        ("", {"init_logit_bias": -10}, "a logit bias"),
        ("preprocess", {"resize_mode": "longest"}, "preprocess_cfg.resize_mode=longest"),
    ],
)
def test_options_that_a_clip_model_lacks_are_named(plain, part, change, reason):
    config = json.loads(json.dumps(plain.config))
    target = config["preprocess_cfg"] if part == "preprocess" else config["model_cfg"]
    (target[part] if part.endswith("_cfg") else target).update(change)
    assert any(found.startswith(reason) for found in obstacles(config))
    assert obstacles(plain.config) == []
