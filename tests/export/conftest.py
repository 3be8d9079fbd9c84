"""Students of a few thousand parameters, one of each kind that formats tell apart, and what they are compared on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from cmapkd_core.config import ModelConfig
from cmapkd_core.export import parity
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build
from cmapkd_core.models.compose import with_lift

CAPTIONS = ["a red fox", "two cats, 12 dogs!", "日本語 naïve", "one caption that is longer than sixteen tokens " * 3]


@pytest.fixture(autouse=True)
def _one(one_thread: None) -> None:
    """These models are too small for more."""


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """open_clip's ViT and OpenAI's text transformer, with gelu."""
    return build(ModelConfig("tiny-student", "random"), 0, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The same of other sizes, with QuickGELU."""
    return build(ModelConfig("tiny-teacher", "random"), 0, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="session")
def lifted(plain: Backbone) -> Backbone:
    """The first with more channels behind its image tower, which have moved from where they start."""
    made = with_lift(plain, 40, seed=0)
    with torch.no_grad():
        made.model.visual.tower.proj.add_(0.1 * torch.randn(40, 24, generator=torch.Generator().manual_seed(0)))
    return made


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """An image tower of timm beside a text tower of Hugging Face."""
    folder = tmp_path_factory.mktemp("foreign")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 32}
    BertConfig(**sizes, vocab_size=64, max_position_embeddings=16).save_pretrained(folder / "bert")
    write_tokenizer(folder / "bert")
    text = {"hf_model_name": "bert", "hf_tokenizer_name": "bert", "hf_pooler_type": "mean_pooler"}
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "timm_model_name": "test_efficientnet"},
        "text_cfg": {"context_length": 12, "hf_proj_type": "linear", **text},
    }
    (folder / "foreign.json").write_text(json.dumps(config))
    return build(ModelConfig(str(folder / "foreign.json"), "random"), 0, folder)


def write_tokenizer(folder: Path) -> None:
    """Words of the captions in lower case; every other word is unknown."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "fox", "two", "cats", "one", "caption", "that", "is"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Smooth noise in several shapes."""
    random = np.random.default_rng(0)
    shapes = (100, 100), (140, 100), (70, 90)
    return [Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(shape) for shape in shapes]


@pytest.fixture
def given(pictures: list[Image.Image]) -> Callable[[Backbone], parity.Probe]:
    """What a format is compared on."""
    return lambda backbone: parity.probe(backbone, pictures, CAPTIONS)


@pytest.fixture
def embed() -> Callable[[Backbone, Image.Image, str], torch.Tensor]:
    """[2,E]: the student's own embeddings of one picture and one caption."""

    def both(backbone: Backbone, picture: Image.Image, caption: str) -> torch.Tensor:
        found = parity.probe(backbone, [picture], [caption])
        return torch.stack([found.image[0], found.text[0]])

    return both
