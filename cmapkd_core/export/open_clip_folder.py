"""The student for open_clip alone: what `save_model` writes, with the tokenizer where open_clip looks for it.

open_clip reads a tokenizer from the model's own folder, but resolves the config of a Hugging Face text tower
against the working directory. So such a folder takes one argument more, which `usage` and `load` give.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import open_clip

from cmapkd_core.export.parity import Inexpressible, Towers
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import save_model
from cmapkd_core.models.construct import LIFT, TEXT_FOLDER
from cmapkd_core.models.model_folder import CONFIG
from cmapkd_core.usage import OPEN_CLIP, load_lines

_EMBED = """\
model.eval()
image = model.encode_image(preprocess(picture)[None], normalize=True)
text = model.encode_text(tokenizer(["a caption"]), normalize=True)
"""


def write(backbone: Backbone, folder: Path) -> None:
    """Config, safetensors and tokenizer; `load_model` of this package opens the same folder."""
    save_model(backbone, folder)
    for name, data in backbone.files.items():
        if name != "config.json":
            (folder / name).write_bytes(data)


def load(folder: Path) -> Towers:
    """The folder in open_clip.

    Raises:
        Inexpressible: a model that open_clip has no class for, or refuses.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if reasons := beyond_open_clip(config):
        raise Inexpressible(
            f"open_clip has no image tower with {reasons[0]} on it; "
            "cmapkd_core.models.build.load_model opens the folder"
        )
    text = config["model_cfg"]["text_cfg"]
    inside = {"text_cfg": text | {"hf_model_name": str(folder / TEXT_FOLDER)}} if "hf_model_name" in text else {}
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", **inside)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(
            line.strip() for line in str(error).strip().splitlines()[:2]
        )  # the first names the class alone
        raise Inexpressible(
            f"open_clip {open_clip.__version__} cannot load it without cmapkd_core: {reason}"
        ) from error
    model.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    encode_image, encode_text = (partial(f, normalize=True) for f in (model.encode_image, model.encode_text))
    return Towers(encode_image, encode_text, tokenize, preprocess)


def beyond_open_clip(config: Mapping[str, Any]) -> list[str]:
    """What a model's image tower has that neither open_clip nor transformers has a class for; [] where nothing."""
    parts = {"image_head": "a trained head", LIFT: "a lift"}
    return [name for key, name in parts.items() if key in config]


def usage(backbone: Backbone) -> str:
    """Python that embeds a picture and a caption, run beside the folder."""
    return load_lines(backbone.config["model_cfg"]["text_cfg"], OPEN_CLIP) + _EMBED
