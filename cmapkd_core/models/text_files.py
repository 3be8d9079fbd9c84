"""Hugging Face config and tokenizer of a text tower, as files that travel with the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from cmapkd_core import storage, temporary
from cmapkd_core.errors import OutsideError
from cmapkd_core.models.weights import PackageWeights, package_folder

TEXT_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


def of_package(entry: PackageWeights) -> dict[str, bytes]:
    """The files that an installed package has of its tower."""
    folder = package_folder(entry.package) / entry.folder
    files = {name: (folder / name).read_bytes() for name in TEXT_FILES if (folder / name).is_file()}
    return _cleaned(files, len(entry.layers))


def of_config(model_cfg: Mapping[str, Any], home: str) -> dict[str, bytes]:
    """Files of the Hugging Face names in `model_cfg`: a folder beside the config, any folder or s3://, or the hub.

    Args:
        home: where the config lies; "" for one that lies nowhere.

    Raises:
        InputError: neither a folder nor on the hub.
    """
    text = model_cfg["text_cfg"]
    model, tokenizer = text.get("hf_model_name", ""), text.get("hf_tokenizer_name", text.get("hf_model_name", ""))
    files: dict[str, bytes] = {}
    for name in dict.fromkeys(filter(None, (tokenizer, model))):
        place = name if "://" in name or PurePosixPath(name).is_absolute() else home and storage.join(home, name)
        files |= _stored(place) or _from_hub(name, bool(model) and name == model, name == tokenizer)
    return _cleaned(files, 0)


def beside(model_cfg: Mapping[str, Any], home: str) -> dict[str, bytes]:
    """The same of a model's own folder, where open_clip looks for the tokenizer whatever its name."""
    text = model_cfg["text_cfg"]
    inside = [name for name in (text.get("hf_model_name"), text.get("hf_tokenizer_name")) if name]
    if not inside:
        return {}
    files = _stored(home)
    for name in inside:
        if not PurePosixPath(name).is_absolute():
            files |= _stored(storage.join(home, name))
    if "tokenizer.json" in files or any(name.startswith(("vocab", "spiece", "sentencepiece")) for name in files):
        return _cleaned(files, 0)
    return of_config(model_cfg, home)


def _stored(place: str) -> dict[str, bytes]:
    files = [file for file in storage.list_files(place) if file in TEXT_FILES] if place else []
    return {file: storage.read_bytes(storage.join(place, file)) for file in files}


def _from_hub(name: str, config: bool, tokenizer: bool) -> dict[str, bytes]:
    with temporary.folder() as folder:
        try:
            if config:
                AutoConfig.from_pretrained(name).save_pretrained(folder)
            if tokenizer:
                AutoTokenizer.from_pretrained(name).save_pretrained(folder)
            return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in TEXT_FILES}
        except (OSError, ValueError, RecursionError) as error:
            raise OutsideError(
                f"text tower '{name}' is no folder with {', '.join(TEXT_FILES[:3])} and cannot be fetched from the "
                f"Hugging Face hub: put the folder beside the model's config file and name it in text_cfg; of a name "
                "of open_clip write the whole model, where there is a network: `python -m cmapkd_core.fetch_weights`"
            ) from error


def _cleaned(files: dict[str, bytes], layers: int) -> dict[str, bytes]:
    """Without the places that Hugging Face notes in its files; `layers` above 0 makes the tower that deep."""
    cleaned = dict(files)
    for name in ("config.json", "tokenizer_config.json"):
        if name in files:
            entries = {k: v for k, v in json.loads(files[name]).items() if k not in ("_name_or_path", "name_or_path")}
            if layers and name == "config.json":
                entries["num_hidden_layers"] = layers
            cleaned[name] = (json.dumps(entries, indent=2) + "\n").encode()
    return cleaned
