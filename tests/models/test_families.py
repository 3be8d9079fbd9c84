"""Which of open_clip's names can be teacher and student: built on the meta device, which has sizes and no weights.

.venv/bin/python tests/models/test_families.py       prints the tables of docs/models.md (7 minutes)
.venv/bin/python -m pytest -m slow tests/models/test_families.py
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from cmapkd_core.config import ALL_LEVELS, ModelConfig
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.measure import flops
from cmapkd_core.models import tags
from cmapkd_core.models.architecture import preprocessing
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.build import build
from cmapkd_core.models.construct import _model, set_model_preprocess_cfg
from cmapkd_core.models.open_clip_names import tags_of

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
# How names of a family begin, in the order in which they are tried.
FAMILIES: dict[str, tuple[str, ...]] = {
    "CoCa": ("coca_",),
    "NLLB-CLIP": ("nllb-",),
    "Hugging Face text": ("roberta-", "xlm-", "mt5-"),
    "SigLIP 2": ("ViT-B-16-SigLIP2", "ViT-B-32-SigLIP2", "ViT-L-16-SigLIP2", "ViT-gopt"),
    "SigLIP 2, SO400M": ("ViT-SO400M-14-SigLIP2", "ViT-SO400M-16-SigLIP2"),
    "SigLIP": ("ViT-B-16-SigLIP", "ViT-L-16-SigLIP", "ViT-SO400M"),
    "CLIPA": ("ViT-H-14-CLIPA", "ViT-L-14-CLIPA", "ViT-bigG-14-CLIPA"),
    "CLIP, ResNet": ("RN",),
    "EVA-CLIP": ("EVA",),
    "MobileCLIP, FastViT": ("MobileCLIP-S", "MobileCLIP2-S"),
    "MobileCLIP, ViT": ("MobileCLIP",),
    "PE-Core": ("PE-Core",),
    "ViTamin": ("ViTamin",),
    "ConvNeXt": ("convnext",),
    "Swin": ("swin",),
    "ViT of timm": ("vit_",),
    "CLIP, ViT": ("ViT-",),
}


class Tokens(SimpleTokenizer):
    """Stands for every tokenizer, whose files the hub has: ids that any vocabulary of these models holds."""

    def __init__(self, length: int, end: int) -> None:
        super().__init__(context_length=length)
        self.eot_token_id, self.length = end, length

    def __call__(self, texts: Any, context_length: int | None = None) -> torch.Tensor:
        ids = torch.zeros(len(texts), self.length, dtype=torch.long)
        ids[:, :3] = torch.tensor([5, 7, self.eot_token_id])
        return ids


def family_of(name: str) -> str:
    return next(family for family, starts in FAMILIES.items() if name.startswith(starts))


def needs_the_hub(name: str) -> bool:
    """Whether the text tower itself is described by a config of the hub."""
    return "hf_model_name" in open_clip.get_model_config(name)["text_cfg"]


def on_meta(name: str) -> Backbone:
    """The towers of a name without weights; as `build` makes them, but for the tokenizer."""
    facts = tags.agreed(name)
    config = open_clip.get_model_config(name) | {"quick_gelu": facts["quick_gelu"]}
    text = config["text_cfg"]
    text.setdefault("context_length", 77)
    model = _model(config, "").float()
    pictures = preprocessing({field: facts[field] for field in tags.FIELDS}, name)
    set_model_preprocess_cfg(model, {**pictures, "size": model.visual.image_size})
    end = text.get("eos_id", 1 if text["vocab_size"] < 49408 else 49407)
    return Backbone(model, {"architecture": name, "model_cfg": config}, {}, Tokens(text["context_length"], end))


@cache
def try_out(name: str) -> Backbone:
    """All that training and evaluation ask of a model: taps, levels, patch embeddings, gradients, FLOPs."""
    with torch.device("meta"):
        backbone = on_meta(name)
        images, tokens = torch.zeros(1, 3, *[backbone.spec.image_size] * 2), backbone.tokenize(["a"])
        vision, text = backbone.vision(images), backbone.text(tokens)
        levels = LevelTower(backbone.spec, backbone.spec.vision_grids[2], 64)(vision, text, ALL_LEVELS)
        patches = backbone.project_map(backbone.final_map(vision))
        work = flops(partial(backbone.encode_image, images))
        reached = [backbone.before(tap) for tap in range(4)]
    assert tuple(levels.vectors) == ALL_LEVELS
    assert patches.shape == (1, backbone.spec.vision_grids[3] ** 2, backbone.spec.embed_dim)
    assert work > 1e8
    for earlier, later in pairwise(reached):  # every tap depends on more, in both towers
        assert earlier <= later
    for tower in (True, False):
        assert any(found.startswith("visual.") is tower for found in (n.removeprefix("model.") for n in reached[0]))
    return backbone


SMALL = ["ViT-S-32", "RN50", "ViT-B-16-SigLIP"]  # a tower of each kind; the other names take minutes
OTHERS = [name for name in open_clip.list_models() if family_of(name) != "CoCa" and not needs_the_hub(name)]


@pytest.mark.heavy
@pytest.mark.parametrize("name", SMALL)
def test_a_model_of_each_kind_of_tower_can_be_teacher_and_student(name: str) -> None:
    try_out(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*OTHERS} - {*SMALL}))
def test_every_name_that_builds_without_the_hub_can_be_both(name: str) -> None:
    try_out(name)


@pytest.mark.parametrize("name", [name for name in open_clip.list_models() if name.startswith("coca")])
def test_coca_says_why_not_and_names_what_can_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a CoCa: its text tower pools a token of its own .* choose a plain CLIP"):
        build(ModelConfig(name, "random"), 0, tmp_path)


def test_the_document_counts_every_name_once() -> None:
    """open_clip's list changes with its versions: a name that is not in the table has not been looked at."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCS.read_text().splitlines()]
    told = {row[0]: int(row[1]) for row in rows if len(row) == 4 and row[0] in FAMILIES}  # the first table
    counts: dict[str, int] = defaultdict(int)
    for name in open_clip.list_models():
        counts[family_of(name)] += 1
    assert told == counts


@pytest.mark.slow
def test_the_document_says_what_was_found() -> None:
    for made in tables():
        assert made in DOCS.read_text()


def tables() -> tuple[str, str]:
    """The tables of docs/models.md, family by family: what can be used, and what the towers are like."""
    names = {family: [name for name in open_clip.list_models() if family_of(name) == family] for family in FAMILIES}
    roles = [f"| {family} | {len(found)} | {_role(found)} | {_pictures(found)} |" for family, found in names.items()]
    towers = [f"| {family} | {_towers(found)} |" for family, found in names.items() if {*found} & {*OTHERS}]
    first = ["| family | names | teacher, student | pictures, by its tags |", "|---|---|---|---|", *roles]
    second = ["| family | sides of the image taps | activations |", "|---|---|---|", *towers]
    return "\n".join(first), "\n".join(second)


def _role(names: list[str]) -> str:
    if {*names} & {*OTHERS}:
        return "both"
    return "none" if family_of(names[0]) == "CoCa" else "untried: text tower from the hub"


def _towers(names: list[str]) -> str:
    tried = [try_out(name) for name in names if name in OTHERS]
    grids = sorted({tuple(one.spec.vision_grids) for one in tried})
    kinds = dict.fromkeys(" / ".join(dict.fromkeys(one.identity.activations.values())) for one in tried)
    return f"{', '.join(map(_sides, grids))} | {'<br>'.join(kinds)}"


def _sides(grids: Sequence[int]) -> str:
    """The sides of the four taps' maps, one number where they are the same."""
    return "/".join(map(str, dict.fromkeys(grids)))


def _pictures(names: list[str]) -> str:
    facts = [tags.facts_of(name, tag) for name in names for tag in tags_of(name)]
    prepared = [f"{one['resize_mode']}, {one['interpolation']}, mean {one['mean'][0]:.2g}" for one in facts]
    return "<br>".join(dict.fromkeys(prepared)) or "no tags"


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(tables()) + "\n")
