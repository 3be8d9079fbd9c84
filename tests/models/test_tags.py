"""The same weights by tag and by file are the same model: what open_clip itself makes of the tag."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cmapkd_core import convert_weights
from cmapkd_core.config import ModelConfig
from cmapkd_core.data.augment import View, eval_view
from cmapkd_core.errors import InputError
from cmapkd_core.models import tags
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build, save_model
from cmapkd_core.models.model_folder import load_model
from cmapkd_core.models.named import read_weights
from cmapkd_core.models.open_clip_names import tags_of

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 4}
VIT = {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 4}


def timm(name: str, size: int, **more: str) -> dict[str, Any]:
    return {"image_size": size, "timm_model_name": name, **more}


FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        "text_cfg": TEXT,
    },
    "attention-pool": {
        "embed_dim": 192,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": timm("vit_tiny_patch16_224", 224, timm_pool="map", timm_proj="none"),
        "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
    "timm": {
        "embed_dim": 16,
        "vision_cfg": timm("test_convnext", 64, timm_pool="avg", timm_proj="linear"),
        "text_cfg": TEXT,
    },
}
OPENAI = {"quick_gelu": True, "mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28), "resize_mode": "shortest"}
LAION = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bilinear"}
CAPTIONS = ["a dog", "two cats on a red mat"]


@dataclass
class Named:
    """A name that open_clip knows with two tags, `openai` and `laion`, and the file of their weights."""

    name: str
    file: Path


@pytest.fixture(
    params=["vit", "attention-pool", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet", "timm"))]
)
def named(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Named:
    return register(request.param, tmp_path, monkeypatch)


def register(family: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Named:
    """Small models under names of their own; tags name a file, which open_clip takes in place of a download."""
    torch.set_num_threads(1)
    name, file = f"own-{family}", folder / "weights.safetensors"
    monkeypatch.setitem(factory._MODEL_CONFIGS, name, FAMILIES[family])
    told = {tag: {**facts, "file": str(file)} for tag, facts in (("openai", OPENAI), ("laion", LAION))}
    monkeypatch.setitem(pretrained._PRETRAINED, name, told)
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    with torch.no_grad():
        for parameter in model.parameters():  # activations must matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return Named(name, file)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def ours(backbone: Backbone, picture: Image.Image) -> torch.Tensor:
    """Embeddings of the picture and the captions, [3,E]."""
    view = View.of(backbone.identity.plain())
    with torch.no_grad():
        image = backbone.encode_image(eval_view(picture, view)[None])
        return torch.cat([image, backbone.encode_text(backbone.tokenize(CAPTIONS))])


def theirs(name: str, tag: str, picture: Image.Image) -> torch.Tensor:
    """The same by open_clip alone."""
    model, _, preprocess = open_clip.create_model_and_transforms(
        name, pretrained=tag, force_quick_gelu=tags.facts_of(name, tag)["quick_gelu"]
    )
    tokens = open_clip.get_tokenizer(name)(CAPTIONS)
    with torch.no_grad():
        image = model.eval().encode_image(preprocess(picture)[None], normalize=True)
        return torch.cat([image, model.encode_text(tokens, normalize=True)])


@pytest.mark.parametrize("tag", ["openai", "laion"])
def test_a_file_with_its_tag_is_the_model_of_the_tag(named: Named, tag: str, picture: Image.Image) -> None:
    by_tag = build(ModelConfig(named.name, tag), 0, named.file.parent)
    by_file = build(ModelConfig(named.name, f"{tag}@{named.file}"), 1, named.file.parent)
    expected = theirs(named.name, tag, picture)
    assert torch.equal(ours(by_file, picture), ours(by_tag, picture))
    torch.testing.assert_close(ours(by_tag, picture), expected, atol=2e-6, rtol=0)
    assert by_file.identity == by_tag.identity
    save_model(by_file, named.file.parent / "model")
    assert torch.equal(ours(load_model(named.file.parent / "model"), picture), ours(by_tag, picture))


def test_the_tags_make_two_models_of_one_file(named: Named, picture: Image.Image) -> None:
    one, other = (build(ModelConfig(named.name, f"{tag}@{named.file}"), 0, named.file.parent) for tag in told(named))
    assert (ours(one, picture) - ours(other, picture)).abs().max() > 1e-3
    assert one.identity.activations != other.identity.activations


def told(named: Named) -> list[str]:
    return tags_of(named.name)


def test_a_file_alone_is_refused_and_the_message_leads_out(named: Named, picture: Image.Image) -> None:
    with pytest.raises(InputError, match="do not agree, and a file does not say which it is") as caught:
        build(ModelConfig(named.name, str(named.file)), 0, named.file.parent)
    assert "QuickGELU, mean 0.48 0.46 0.41, std 0.27 0.26 0.28, shortest, bicubic: openai" in str(caught.value)
    assert "GELU, mean 0.5 0.5 0.5, std 0.5 0.5 0.5, squash, bilinear: laion" in str(caught.value)
    offered = re.search(r"weights=(\S+)$", str(caught.value))
    assert offered
    by_file = build(ModelConfig(named.name, offered[1]), 0, named.file.parent)
    assert torch.equal(ours(by_file, picture), ours(build(ModelConfig(named.name, "openai"), 0, Path()), picture))


# One name of each family whose tokenizer comes with open_clip, with the tags that make different models of one file.
NAMES = {
    "ViT-B-32": ("openai", "laion2b_s34b_b79k"),
    "ViT-L-14": ("openai", "laion2b_s32b_b82k"),
    "RN50": ("openai", "cc12m"),
    "convnext_base": ("laion400m_s13b_b51k",),
    "EVA02-B-16": ("merged2b_s8b_b131k",),
    "MobileCLIP-S1": ("datacompdr",),
    "MobileCLIP2-S0": ("dfndr2b",),
    "ViTamin-S": ("datacomp1b",),
    "PE-Core-T-16-384": ("meta",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_size_names_by_tag_and_by_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Image.Image
) -> None:
    file = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    del model
    for tag in NAMES[name]:
        told = {**pretrained.get_pretrained_cfg(name, tag), "file": str(file)}
        monkeypatch.setitem(pretrained._PRETRAINED[name], tag, told)
        by_tag = ours(build(ModelConfig(name, tag), 0, tmp_path), picture)
        assert torch.equal(ours(build(ModelConfig(name, f"{tag}@{file}"), 1, tmp_path), picture), by_tag)
        expected = theirs(name, tag, picture)
        print(name, tag, "largest difference to open_clip", (by_tag - expected).abs().max().item())
        torch.testing.assert_close(by_tag, expected, atol=1e-5, rtol=0)


class Script(nn.Module):
    """OpenAI's archives hold a scripted model whose state has three numbers beside the weights, in half precision."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in {**state, "input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)}.items():
            *path, leaf = name.split(".")
            module: nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_buffer(leaf, value)

    def forward(self) -> int:
        return 1


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_openais_own_archive_is_converted_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Image.Image
) -> None:
    named = register("vit", tmp_path, monkeypatch)
    by_tag = build(ModelConfig(named.name, "openai"), 0, tmp_path)
    half = {name: value.half().float() for name, value in by_tag.model.state_dict().items()}
    by_tag.model.load_state_dict(half)
    torch.jit.script(Script({name: value.half() for name, value in half.items()})).save(str(tmp_path / "own.pt"))
    by_hand = f"openai@{tmp_path / 'own.pt'}"
    with pytest.raises(InputError, match=r"only \.safetensors is read, since other formats may hold code") as caught:
        build(ModelConfig(named.name, by_hand), 0, tmp_path)
    command = shlex.split(str(caught.value).partition("python -m ")[2].partition(", and")[0])
    assert command[0] == convert_weights.__name__
    assert convert_weights.main(command[1:]) == 0  # the way out, as it is printed
    by_file = build(ModelConfig(named.name, f"openai@{command[2]}"), 0, tmp_path)
    assert torch.equal(ours(by_file, picture), ours(by_tag, picture))


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ("opnai@x.safetensors", "'opnai' is no pretrained tag of ViT-L-14: did you mean 'openai'"),
        ("a@b.safetensors", r"a file whose own name has an @ is written \./a@b\.safetensors"),
        ("openai@x.npz", "unknown weights 'openai@x.npz'"),
        ("opena", "did you mean 'openai'"),
    ],
)
def test_wrong_tags_of_files_get_a_way_out(weights: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_weights("ViT-L-14", weights)


def test_an_at_sign_in_a_path_is_no_tag() -> None:
    assert read_weights("ViT-L-14", "./a@b.safetensors").file == "./a@b.safetensors"
    assert read_weights("ViT-L-14", "s3://bucket/a@b.safetensors").file == "s3://bucket/a@b.safetensors"
    assert read_weights("ViT-L-14", "OpenAI@s3://b/a@b.safetensors").file == "s3://b/a@b.safetensors"


@pytest.mark.parametrize("model", [name for name in open_clip.list_models() if tags_of(name)])
def test_every_name_of_open_clip_takes_a_file_with_each_of_its_tags(model: str) -> None:
    """And without one exactly where its tags agree, as open_clip's table says."""
    facts = [tags.facts_of(model, read_weights(model, f"{tag}@x.safetensors").tag) for tag in tags_of(model)]
    if all(one == facts[0] for one in facts):
        assert tags.of_any_file(model, "x.safetensors") == facts[0]
    else:
        with pytest.raises(InputError, match=f"tags of {re.escape(model)} do not agree"):
            tags.of_any_file(model, "x.safetensors")


def test_the_names_that_need_a_tag_are_those_known() -> None:
    """A name that joins or leaves them is something that its users must hear of."""
    apart = ["ViT-B-16", "ViT-B-32", "ViT-H-14", "ViT-H-14-quickgelu", "ViT-L-14", "ViT-bigG-14"]
    found = {m: {json.dumps(tags.facts_of(m, tag)) for tag in tags_of(m)} for m in open_clip.list_models()}
    assert sorted(m for m, kinds in found.items() if len(kinds) > 1) == apart


def test_a_name_without_tags_takes_a_file_alone(tmp_path: Path) -> None:
    assert tags.of_any_file("ViT-M-16", "x.safetensors")["quick_gelu"] is False
    with pytest.raises(InputError, match=r"ViT-M-16 has no pretrained tags, so its file is named alone"):
        read_weights("ViT-M-16", "openai@x.safetensors")


Publish = Callable[[str, dict[str, Path]], None]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """`publish("org/name", files)`: a hub without a network, whose cache was filled beforehand."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(repository: str, files: dict[str, Path]) -> None:
        place = cache / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
        for name, path in files.items():
            (place / "snapshots" / ("0" * 40) / name).write_bytes(path.read_bytes())

    return put


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publish: Publish, picture: Any) -> None:
    named = register("vit", tmp_path, monkeypatch)
    original = build(ModelConfig(named.name, "laion"), 0, tmp_path)
    save_model(original, tmp_path / "model")
    folder = tmp_path / "model"
    files = {
        "open_clip_config.json": folder / "open_clip_config.json",
        "open_clip_model.safetensors": folder / "model.safetensors",
    }
    publish("org/small", files)
    for name in ("hf-hub:org/small", f"local-dir:{folder}"):
        found = build(ModelConfig(name, "own"), 0, tmp_path)
        assert torch.equal(ours(found, picture), ours(original, picture))
        assert found.identity.architecture == ("hf-hub:org/small" if name.startswith("hf") else "model")
    with pytest.raises(InputError, match=r"of org/none cannot be fetched .*local-dir:FOLDER"):
        build(ModelConfig("hf-hub:org/none", "own"), 0, tmp_path)


def test_a_folder_that_builds_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = register("vit", tmp_path, monkeypatch)
    save_model(build(ModelConfig(named.name, "openai"), 0, tmp_path), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = False
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"activations: \{'image': 'quick_gelu', 'text': 'quick_gelu'\} and not"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "model.json").unlink()  # of version 0.1
    assert load_model(tmp_path / "model").identity.activations["text"] == "gelu"


@pytest.mark.parametrize(
    ("preprocess", "reason"),
    [
        ({"means": [0.5] * 3}, "means .known: size, mode, mean"),
        ({"mean": [0.5] * 2}, "mean=.0.5, 0.5. .three numbers"),
        ({"std": [0.5, 0, 0.5]}, "three numbers, above 0"),
        ({"resize_mode": "short"}, "resize_mode=short .known: shortest, longest, squash"),
        ({"interpolation": "nearest"}, "interpolation=nearest .known: bicubic"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(preprocess: dict[str, Any], reason: str, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps({**FAMILIES["vit"], "preprocess_cfg": preprocess}))
    with pytest.raises(InputError, match=reason):
        build(ModelConfig(str(tmp_path / "own.json"), "random"), 0, tmp_path)
