"""The student as a transformers `CLIPModel`: an open_clip ViT with OpenAI's text transformer, and nothing else.

transformers has one CLIP architecture: every option of open_clip's config that is not at its default and not a
size has no place in it, and is the reason that is given. The tokenizer files hold open_clip's own vocabulary;
transformers does not mend text before it (HTML entities, curly quotes), as open_clip does with ftfy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from cmapkd_core.export.open_clip_folder import beyond_open_clip
from cmapkd_core.export.parity import Inexpressible, Towers
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.compose import text_state
from cmapkd_core.models.identity import Identity

# Options that the two libraries share, by open_clip's names; all others must be at open_clip's defaults.
VISION_SIZES = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout")
TEXT_SIZES = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
START, END = "<|startoftext|>", "<|endoftext|>"  # what transformers calls open_clip's two special tokens

# open_clip's names -> transformers' (its own spelling); the blocks are numbered below both.
_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

_USAGE = """\
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained("huggingface").eval()
processor = AutoProcessor.from_pretrained("huggingface")
inputs = processor(text=["a caption"], images=picture, padding="max_length", truncation=True, return_tensors="pt")
found = model(**inputs)
image, text = found.image_embeds, found.text_embeds
"""


def write(backbone: Backbone, folder: Path) -> None:
    """CLIPModel's config and weights, the tokenizer and the image processor.

    Raises:
        Inexpressible: names every option that a CLIPModel has not.
    """
    if reasons := obstacles(backbone.config):
        raise Inexpressible(f"a transformers CLIPModel cannot express {'; '.join(reasons)}")
    model = CLIPModel(clip_config(backbone))
    model.load_state_dict(clip_state(backbone), strict=True)
    model.save_pretrained(folder)
    write_clip_tokenizer(backbone.tokenize, backbone.spec.context_length, folder)
    CLIPImageProcessor(**processing(backbone.identity)).save_pretrained(folder)


def processing(identity: Identity) -> dict[str, Any]:
    """CLIPImageProcessor's arguments for a model's pixels; it knows no padding, which `obstacles` refuses."""
    square = {"height": identity.image_size, "width": identity.image_size}
    whole = identity.resize_mode == "squash"
    bilinear = identity.interpolation == "bilinear"
    return {
        "size": square if whole else {"shortest_edge": identity.image_size},
        "do_center_crop": not whole,
        "crop_size": square,
        "resample": (Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC).value,
        "image_mean": list(identity.mean),
        "image_std": list(identity.std),
    }


def obstacles(config: Mapping[str, Any]) -> list[str]:
    """What of a complete open_clip config a CLIPModel cannot express; [] where it can all of it."""
    model, vision, text = config["model_cfg"], config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    reasons = [f"{part} on the image tower" for part in beyond_open_clip(config)]
    if "timm_model_name" in vision:
        reasons.append(f"the image tower {vision['timm_model_name']} of timm")
    else:
        reasons += _beyond(CLIPVisionCfg, vision, VISION_SIZES, "vision_cfg")
        reasons += ["a convolutional image tower"] if isinstance(vision.get("layers"), list | tuple) else []
    if "hf_model_name" in text:
        reasons.append("a text tower of Hugging Face's own")
    else:
        reasons += _beyond(CLIPTextCfg, text, TEXT_SIZES, "text_cfg")
    reasons += ["a logit bias"] if model.get("init_logit_bias") is not None else []
    resize = config["preprocess_cfg"]["resize_mode"]
    return reasons + ([f"preprocess_cfg.resize_mode={resize}"] if resize == "longest" else [])


def _beyond(kind: type, given: Mapping[str, Any], sizes: tuple[str, ...], where: str) -> list[str]:
    defaults = {field.name: field.default for field in fields(kind)}
    return [f"{where}.{n}={v}" for n, v in given.items() if n not in sizes and v != defaults.get(n)]


def clip_config(backbone: Backbone) -> CLIPConfig:
    """The same sizes in transformers' words."""
    model = backbone.config["model_cfg"]
    vision, text = vars(CLIPVisionCfg(**model["vision_cfg"])), vars(CLIPTextCfg(**model["text_cfg"]))
    act = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    return CLIPConfig(
        projection_dim=model["embed_dim"],
        vision_config={
            **_sizes(vision, vision["width"] // vision["head_width"], act, model["embed_dim"]),
            "image_size": backbone.spec.image_size,
            "patch_size": vision["patch_size"],
        },
        text_config={
            **_sizes(text, text["heads"], act, model["embed_dim"]),
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": backbone.tokenize.sot_token_id,  # type: ignore[attr-defined]
            # It pools at the first of these; open_clip at the highest id, which is the same token.
            "eos_token_id": backbone.tokenize.eot_token_id,  # type: ignore[attr-defined]
            "pad_token_id": backbone.tokenize.eot_token_id,  # type: ignore[attr-defined]
        },
    )


def _sizes(tower: Mapping[str, Any], heads: int, act: str, embed: int) -> dict[str, Any]:
    return {
        "hidden_size": tower["width"],
        "intermediate_size": int(tower["width"] * tower["mlp_ratio"]),
        "num_hidden_layers": tower["layers"],
        "num_attention_heads": heads,
        "hidden_act": act,
        "projection_dim": embed,
    }


def clip_state(backbone: Backbone) -> dict[str, Tensor]:
    """Every weight by CLIPModel's names; the fused attention input is split in three, projections are transposed."""
    vision, text = dict(backbone.model.visual.state_dict()), text_state(backbone)
    state = {
        "logit_scale": backbone.model.logit_scale.reshape(()),
        "visual_projection.weight": vision.pop("proj").T,
        "text_projection.weight": text.pop("text_projection").T,
        **_tower(vision, "vision_model", _VISION),
        **_tower(text, "text_model", _TEXT),
    }
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _tower(state: Mapping[str, Tensor], prefix: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """A tower's tensors [..] under the names that transformers has for them; in_proj is split into three."""
    renamed = {}
    for name, tensor in state.items():
        if name in names:
            renamed[f"{prefix}.{names[name]}"] = tensor
            continue
        number, _, rest = name.removeprefix("transformer.resblocks.").partition(".")
        block = f"{prefix}.encoder.layers.{number}"
        if rest.startswith("attn.in_proj_"):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            renamed |= {f"{block}.self_attn.{which}_proj.{rest.rpartition('_')[2]}": part for which, part in parts}
        else:
            part, _, leaf = rest.rpartition(".")
            renamed[f"{block}.{_BLOCK[part]}.{leaf}"] = tensor
    return renamed


def write_clip_tokenizer(tokenizer: SimpleTokenizer, context_length: int, folder: Path) -> None:
    """open_clip's byte-pair vocabulary in the files that `CLIPTokenizer` reads (every version of transformers)."""
    folder.mkdir(parents=True, exist_ok=True)
    names = dict(zip([tokenizer.decoder[i] for i in tokenizer.all_special_ids], (START, END), strict=False))
    vocabulary = {names.get(token, token): number for token, number in tokenizer.encoder.items()}
    merges = "".join(f"{first} {second}\n" for first, second in tokenizer.bpe_ranks)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, **special}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> Towers:
    """The folder in transformers."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = CLIPTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    size, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    blank, end = torch.zeros(1, 3, size, size), torch.tensor([[model.config.text_config.eos_token_id]])

    def tokenize(captions: list[str]) -> Tensor:
        given = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        result: Tensor = given["input_ids"]
        return result

    return Towers(
        # One call for both towers: what get_image_features returns differs between versions.
        lambda images: model(pixel_values=images, input_ids=end).image_embeds,
        lambda tokens: model(pixel_values=blank, input_ids=tokens).text_embeds,
        tokenize,
        lambda picture: processor(images=picture, return_tensors="pt")["pixel_values"][0],
    )


def usage(backbone: Backbone) -> str:
    """Python that embeds a picture and a caption, run beside the folder."""
    return _USAGE
