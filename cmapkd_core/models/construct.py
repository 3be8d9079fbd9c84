"""From a complete open_clip config to a Backbone with seeded random weights; no hub, no package, no registry."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import nn

from cmapkd_core import temporary
from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.headed import HeadedVisual, ImageHead
from cmapkd_core.models.lifted import LiftedVisual
from cmapkd_core.models.small_maps import pad_first

TEXT_FOLDER = "text"  # how configs name the Hugging Face files that travel with them
LIFT = "image_lift"  # of a config: {"width": ..}
DEFAULT_CONTEXT = 77  # what open_clip takes where text_cfg names no context_length


def construct(name: str, config: dict[str, Any], files: dict[str, bytes], seed: int) -> Backbone:
    """The architecture of `config` with random weights from `seed`; torch's global generator is left alone.

    Args:
        name: how messages call the model.
        config: {"model_cfg", "preprocess_cfg"} in open_clip's form; Hugging Face names in it stand for `files`.
            "image_lift" of a lifted model: the width. "image_head" of a composed one: what of its image tower's
            model_cfg differs.
        files: Hugging Face config and tokenizer files by name; {} where the config names none.

    Raises:
        InputError: open_clip, timm or transformers refuse the config, or it is a model without taps.
    """
    config = copy.deepcopy(config)
    config["model_cfg"]["text_cfg"].setdefault("context_length", DEFAULT_CONTEXT)
    with temporary.folder() as folder, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        try:
            model = _model(config["model_cfg"], str(folder))
            if "image_head" in config:
                model.visual = _model({**config["model_cfg"], **config["image_head"]}, str(folder)).visual
            if LIFT in config:
                model.visual = LiftedVisual(model.visual, config[LIFT]["width"])
            if "image_head" in config:
                widths = config["image_head"]["embed_dim"], config["model_cfg"]["embed_dim"]
                model.visual = HeadedVisual(model.visual, ImageHead(*widths))
            model = model.float()
            tokenize = _tokenizer(config["model_cfg"]["text_cfg"], str(folder))
        except (TypeError, ValueError, KeyError, RuntimeError, AssertionError, OSError) as error:
            raise InputError(f"model {name} cannot be built ({error}): correct its config") from error
    _check_context(name, model, config["model_cfg"]["text_cfg"]["context_length"])
    preprocess = {**config["preprocess_cfg"], "size": model.visual.image_size}
    set_model_preprocess_cfg(model, preprocess)
    return Backbone(model, {**config, "preprocess_cfg": preprocess}, files, tokenize)


def _model(model_cfg: dict[str, Any], folder: str) -> Any:
    """The class and the arguments that `open_clip.create_model` would choose, with no weights fetched."""
    arguments = copy.deepcopy(model_cfg)
    vision, text = arguments["vision_cfg"], arguments["text_cfg"]
    custom = arguments.pop("custom_text", False) or "hf_model_name" in text
    if "hf_model_name" in text:
        text |= {"hf_model_name": folder, "hf_model_pretrained": False}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    model = (CustomTextCLIP if custom else CLIP)(**arguments)
    if isinstance(model.visual, TimmModel):
        _resize(model.visual)
        model.visual.to(memory_format=torch.channels_last)  # 1.7 x the speed of an EfficientNet on a CPU
        pad_first(model.visual)
    return model


def _resize(visual: Any) -> None:
    """timm transformers are built for their own image size; convolutions take any."""
    built = getattr(getattr(visual.trunk, "patch_embed", None), "img_size", None)
    if built is not None and tuple(built) != tuple(visual.image_size):
        visual.set_input_size(visual.image_size)


def _tokenizer(text_cfg: dict[str, Any], folder: str) -> Any:
    """open_clip's tokenizer of the config; nothing of `folder` is read after this."""
    arguments = {"context_length": text_cfg["context_length"], **text_cfg.get("tokenizer_kwargs", {})}
    if "hf_tokenizer_name" in text_cfg:
        return HFTokenizer(folder, tokenizer_mode=text_cfg.get("tokenizer_mode"), **arguments)
    return _bpe(json.dumps(arguments))


class SharedTokenizer(SimpleTokenizer):  # type: ignore[misc]  # open_clip has no types
    """open_clip's BPE, whose tables nothing changes: models and their copies have the same one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedTokenizer:
        return self


@functools.lru_cache(maxsize=8)
def _bpe(arguments: str) -> SharedTokenizer:
    """The tokenizer with arguments in JSON: reading its tables takes as long as building a small model."""
    return SharedTokenizer(**json.loads(arguments))


def _check_context(name: str, model: nn.Module, wanted: int) -> None:
    """Hugging Face towers have position embeddings of their own; some keep pad_token_id + 1 of them unused."""
    transformer = getattr(getattr(model, "text", None), "transformer", None)
    embeddings: Any = getattr(transformer, "embeddings", None)
    if getattr(embeddings, "position_embeddings", None) is None:
        return
    table = embeddings.position_embeddings
    room = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    if wanted > room:
        raise InputError(f"model {name}: text_cfg.context_length={wanted}, and the text tower has {room} positions")
