"""A model as a folder that stands alone: it loads on a machine without packages, hub or network.

    open_clip_config.json   open_clip's own form; Hugging Face names in it are "text"
    model.json              what was built from it (identity.py), which a later version of a library must build again
    model.safetensors       every weight, by open_clip's names
    text/                   config and tokenizer of a Hugging Face text tower, where the model has one

Models without text/ also open as `open_clip.create_model("local-dir:FOLDER")`; a composed one (`compose.py`: its
config has an "image_head" or an "image_lift") does not, since open_clip knows neither.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.construct import TEXT_FOLDER, construct
from cmapkd_core.models.identity import unlike
from cmapkd_core.models.text_files import TEXT_FILES
from cmapkd_core.models.weights import fill, read_tensors

CONFIG, IDENTITY, WEIGHTS = "open_clip_config.json", "model.json", "model.safetensors"


def save_model(backbone: Backbone, folder: Path) -> None:
    """Write `backbone` into `folder` (made where missing); equal weights give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(backbone.config, indent=2) + "\n", encoding="utf-8")
    (folder / IDENTITY).write_text(json.dumps(backbone.identity.plain(), indent=2) + "\n", encoding="utf-8")
    # A copy each: safetensors wants contiguous tensors, and none that share memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in backbone.model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for name, data in backbone.files.items():
        (folder / TEXT_FOLDER).mkdir(exist_ok=True)
        (folder / TEXT_FOLDER / name).write_bytes(data)


def load_model(folder: Path) -> Backbone:
    """The Backbone that `save_model` wrote into `folder`, in evaluation mode; embeddings are bit-equal.

    Raises:
        InputError: a file is missing or damaged, the weights do not fit the config, or what is built from the config
            is another model than the one that was saved.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"model folder {folder} has no {name}: give a folder that save_model wrote")
    config = _read(folder, CONFIG)
    text = folder / TEXT_FOLDER
    files = {name: (text / name).read_bytes() for name in sorted(TEXT_FILES) if (text / name).is_file()}
    backbone = construct(folder.name, config, files, seed=0)
    # Folders of version 0.1 have no record.
    recorded = _read(folder, IDENTITY) if (folder / IDENTITY).is_file() else {}
    if differences := unlike(recorded, backbone.identity):
        raise InputError(
            f"model folder {folder} was saved as another model than its {CONFIG} builds here ({'; '.join(differences)}"
            "): undo the change of that file, or use the library versions of the environment that wrote it"
        )
    fill(backbone.model, read_tensors(folder / WEIGHTS), f"{WEIGHTS} does not fit {CONFIG} in {folder}")
    return backbone


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"model folder {folder}: {name} is no JSON ({error}): write the folder again") from error
    return parsed
