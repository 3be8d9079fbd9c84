"""What the names of models and weights say by themselves, and which are none, without a library that knows models."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmapkd_core import storage
from cmapkd_core.config import FOLDER, HUB, ModelConfig, StudentConfig
from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.models import open_clip_names
from cmapkd_core.models.open_clip_names import builtin, is_tag, tags_of

CONFIGS = Path(__file__).parent / "configs"
FOLDER_CONFIG = "open_clip_config.json"
SUFFIX = ".safetensors"
PICKLED = (".pt", ".pth", ".bin")  # of torch's own formats
UNFILED = ("random", "packages", "own")  # weights that are no file and no tag, rows of build.FILLS

NO_CONFIG = "there is no model config {}: write one, or name a model of open_clip"
NO_FOLDER = f"{{}} has no {FOLDER_CONFIG}: give a folder as open_clip writes and reads them"
WITHOUT_LIFT = "leave student.lift at 0, or choose a student such as ViT-B-32"
NO_LIFT = f"student.lift={{}} is for vision transformers of open_clip's own, not for {{}}: {WITHOUT_LIFT}"
POOLED_BEFORE = (
    "student.lift={} stands between the last norm of the tokens and their pooling, and this image tower pools by "
    f"attention, before its norm, or has no projection: {WITHOUT_LIFT}"
)
NARROW_LIFT = "student.lift={} is below the width of the student's image tower, {}: give the teacher's width"
NO_WEIGHTS = "there is no weights file {} for {}: check the place"

_TAG = re.compile(r"[\w.-]+")  # what stands before the @ of TAG@FILE; a path has a slash there


# ---- models ---------------------------------------------------------------------------------------


def says_itself(model: str) -> bool:
    """Whether the model's own config says activation and preprocessing, so that no tag is asked."""
    return model.startswith((HUB, FOLDER)) or model.endswith(".json") or (CONFIGS / f"{model}.json").is_file()


def require_known(model: str) -> None:
    """Raises InputError for a name that is none; names the nearest. Files, folders and the hub are not looked at."""
    if says_itself(model) or builtin(model) in open_clip_names.names():
        return
    own = sorted(path.stem for path in CONFIGS.glob("*.json"))
    hint = nearest(model, (*own, *open_clip_names.names()))
    others = f"one of {', '.join(own)}, a config file, {HUB}NAME, {FOLDER}FOLDER, or open_clip.list_models()"
    raise InputError(f"unknown model '{model}': {hint if hint.startswith('did') else others}")


def check_model(config: ModelConfig, here: bool) -> None:
    """Refuse a model or weights that are none, before a stage opens them. What lies on a hub or on S3 is left to it.

    Args:
        here: the stage runs on this machine, so that local files have to be there.

    Raises:
        InputError: as `require_known` and `read_weights`, or a file that is not there.
    """
    require_known(config.model)
    weights = read_weights(config.model, config.weights)
    if here:
        _require_there(config, weights)


def _require_there(config: ModelConfig, weights: Weights) -> None:
    folder = config.model.removeprefix(FOLDER) if config.model.startswith(FOLDER) else ""
    for place, message in (
        (config.model if config.model.endswith(".json") else "", NO_CONFIG.format(config.model)),
        (folder and storage.join(folder, FOLDER_CONFIG), NO_FOLDER.format(folder)),
        (weights.file, NO_WEIGHTS.format(weights.file, config.model)),
    ):
        if place and "://" not in place and not storage.exists(place):
            raise InputError(message)


def check_lift(student: StudentConfig) -> None:
    """Refuse a lift that the student's image tower has no place for, as far as a config that is here says so.

    Raises:
        InputError: another kind of tower than open_clip's own vision transformer, one that pools in another way, or a
            wider one.
    """
    vision = _config(student.model).get("vision_cfg", {}) if student.lift else {}
    other = vision.get("timm_model_name") or ("a ResNet" if isinstance(vision.get("layers"), list) else "")
    if other:
        raise InputError(NO_LIFT.format(student.lift, other))
    if vision.get("attentional_pool") or vision.get("final_ln_after_pool"):
        raise InputError(POOLED_BEFORE.format(student.lift))
    if vision.get("width", 0) > student.lift:
        raise InputError(NARROW_LIFT.format(student.lift, vision["width"]))


def embed_dim(model: str) -> int:
    """Numbers of the model's embedding, as its config says; 0 where that lies on a hub, on S3 or is none."""
    return int(_config(model).get("embed_dim", 0))


def _config(model: str) -> dict[str, Any]:
    """The model's config; {} where it lies on a hub, on S3 or is none."""
    if model.startswith(FOLDER):
        file = Path(model.removeprefix(FOLDER)) / FOLDER_CONFIG
    elif says_itself(model):
        own = CONFIGS / f"{model}.json"
        file = own if own.is_file() else Path(model)
    else:
        file = open_clip_names.config_file(model)
    config = json.loads(file.read_bytes()) if file.is_file() else {}
    result: dict[str, Any] = config.get("model_cfg", config)
    return result


# ---- weights --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """`ModelConfig.weights`, read: a row of FILLS, a pretrained tag, a file, or a file and the tag that it is of."""

    text: str
    tag: str = ""
    file: str = ""


def read_weights(model: str, text: str) -> Weights:
    """What `text` names as the weights of `model`.

    Raises:
        InputError: none of the forms that the docstring of models/build.py lists, or a tag that the model has not.
    """
    if text in UNFILED:
        return Weights(text)
    if is_tag(model, text):
        return Weights(text, tag=text)
    result = as_file(text)
    if result.tag and not is_tag(model, result.tag):
        raise _unknown_tag(model, result.tag, text)
    if not result.file.endswith((SUFFIX, *PICKLED)):
        known = (*UNFILED, *tags_of(model))
        raise InputError(f"unknown weights '{text}' of {model}: {nearest(text, known)}; a file ends in {SUFFIX}")
    refuse_other(result.file)
    return result


def as_file(text: str) -> Weights:
    """`text`, which is no tag and no row of FILLS, as FILE or TAG@FILE."""
    tag, at, file = text.partition("@")
    return Weights(text, tag, file) if at and _TAG.fullmatch(tag) else Weights(text, file=text)


def weights_file(text: str) -> str:
    """The file that weights lie in; "" of a tag, of other weights without one, and of a file that is refused."""
    file = "" if text in UNFILED else as_file(text).file
    return file if file.endswith(SUFFIX) else ""


def refuse_other(file: str) -> None:
    """Raises InputError of a weights file that is no safetensors, with the command that makes one of it."""
    if file.endswith(SUFFIX):
        return
    stem = file[: file.rindex(".")] if file.endswith(PICKLED) else ""
    way_out = (
        f": convert it once, python -m cmapkd_core.convert_weights {file} {stem}{SUFFIX}, and name that" if stem else ""
    )
    raise InputError(f"weights file {file}: only {SUFFIX} is read, since other formats may hold code{way_out}")


def _unknown_tag(model: str, tag: str, weights: str) -> InputError:
    """The error for `tag` of weights=TAG@FILE, which is no tag of `model`."""
    known = tags_of(model)
    if not known:
        return InputError(
            f"weights '{weights}': {model} has no pretrained tags, so its file is named alone: write weights=FILE "
            f"(a file whose own name has an @: ./{weights})"
        )
    return InputError(
        f"weights '{weights}': '{tag}' is no pretrained tag of {model}: {nearest(tag, known)}; "
        f"a file whose own name has an @ is written ./{weights}"
    )
