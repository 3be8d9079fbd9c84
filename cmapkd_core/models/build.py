"""A recipe's ModelConfig as a Backbone with its weights.

weights      what                                                      activation and preprocessing are those of
openai       a pretrained tag of open_clip, from the hub               the tag
openai@FILE  a file (path or s3://) that holds, or goes on from, it    the tag
FILE         a file                                                    the config; of an open_clip name all its tags'
own          what lies beside the config of hf-hub: or local-dir:      the config
packages     installed packages that the config names                  the config
random       none: the seed makes them                                 the config; of an open_clip name its tags'
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg

from cmapkd_core import storage
from cmapkd_core.config import FOLDER, HUB, ModelConfig, StudentConfig
from cmapkd_core.errors import InputError, OutsideError
from cmapkd_core.models import tags
from cmapkd_core.models.architecture import Architecture, read_architecture
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bounded import convert_here
from cmapkd_core.models.compose import with_lift
from cmapkd_core.models.construct import construct
from cmapkd_core.models.model_folder import load_model, save_model
from cmapkd_core.models.named import (
    NO_WEIGHTS,
    PICKLED,
    SUFFIX,
    Weights,
    read_weights,
    refuse_other,
    require_known,
    says_itself,
)
from cmapkd_core.models.open_clip_names import builtin
from cmapkd_core.models.weights import fill_from_file, fill_from_package

__all__ = ["build", "build_student", "load_model", "save_model"]

_STEMS = ("open_clip_pytorch_model", "pytorch_model")  # as converted, else as they are, which is refused
OWN_FILES = (
    *("open_clip_model.safetensors", "model.safetensors"),
    *(f"{stem}{suffix}" for suffix in (SUFFIX, ".bin") for stem in _STEMS),
)


def build(config: ModelConfig, seed: int, cache: Path) -> Backbone:
    """The model that `config` names, with its weights, on the CPU and in evaluation mode.

    What its weights do not cover (the heads of towers from packages) is random, from `seed`; torch's
    global generator is left alone. What comes from the hub stays in the hub's own cache (HF_HOME).

    Args:
        cache: local folder for files from s3://.

    Raises:
        InputError: unknown model or weights, weights that do not fit (names the tensors), that may be of several
            models (tags.of_any_file), or none to be had.
    """
    require_known(config.model)
    weights = read_weights(config.model, config.weights)
    architecture = read_architecture(config.model, _facts(config.model, weights))
    backbone = construct(config.model, architecture.config, architecture.files, seed)
    fill = FILLS.get(weights.text, _from_file if weights.file else _from_tag)
    fill(backbone, architecture, weights, cache)
    return backbone


def build_student(config: StudentConfig, seed: int, cache: Path) -> Backbone:
    """`build`, with the lift that the student has beside its architecture.

    Raises:
        InputError: as `build`, or a tower that has no place for a lift.
    """
    backbone = build(config, seed, cache)
    return with_lift(backbone, config.lift, seed) if config.lift else backbone


def _facts(model: str, weights: Weights) -> tags.Facts | None:
    """What decides activation and preprocessing of an open_clip name; None where its config says so itself."""
    if says_itself(model):
        return None
    if weights.tag:
        return tags.facts_of(model, weights.tag)
    return tags.of_any_file(model, weights.file) if weights.file else None


def _random(backbone: Backbone, architecture: Architecture, weights: Weights, cache: Path) -> None:
    """Nothing to fill: the seed made them."""


def _from_packages(backbone: Backbone, architecture: Architecture, weights: Weights, cache: Path) -> None:
    if not architecture.packages:
        raise InputError(
            f"model {architecture.name} names no packages: choose a tag, a file or 'random' as its weights"
        )
    for entry in architecture.packages:
        fill_from_package(backbone.model, entry)


def _from_own(backbone: Backbone, architecture: Architecture, weights: Weights, cache: Path) -> None:
    name = architecture.name
    if name.startswith(HUB):
        path = _fetched(name, lambda: download_pretrained_from_hf(name.removeprefix(HUB)))
        fill_from_file(backbone.model, _without_code(path, cache), name)
        return
    if not name.startswith(FOLDER):
        raise InputError(
            f"weights 'own' are those beside the config of hf-hub:NAME or local-dir:FOLDER, and {name} is neither: "
            "choose a tag, a file or 'random'"
        )
    folder = name.removeprefix(FOLDER)
    existing = next((file for file in OWN_FILES if storage.exists(storage.join(folder, file))), None)
    if existing is None:
        raise InputError(f"{folder} has none of {', '.join(OWN_FILES[:2])}: name the file, weights={folder}/FILE")
    refuse_other(storage.join(folder, existing))
    fill_from_file(backbone.model, storage.fetch(storage.join(folder, existing), cache / "weights" / existing), name)


def _from_tag(backbone: Backbone, architecture: Architecture, weights: Weights, cache: Path) -> None:
    tag, name = get_pretrained_cfg(builtin(architecture.name), weights.tag), architecture.name
    path = _fetched(f"weights '{weights.tag}' of {name}", lambda: download_pretrained(tag))
    fill_from_file(backbone.model, _without_code(path, cache), name)


def _without_code(path: Path, cache: Path) -> Path:
    """A hub's file as safetensors: some of its weights are older than that format."""
    if path.suffix not in PICKLED:
        return path
    made = cache / "weights" / f"{path.stem}{SUFFIX}"
    made.parent.mkdir(parents=True, exist_ok=True)
    convert_here(path, made)
    return made


def _fetched(what: str, download: Callable[[], str]) -> Path:
    try:
        return Path(download())
    # huggingface_hub, urllib and httpx each have their own family of errors for an absent network
    except Exception as error:
        raise OutsideError(
            f"{what} cannot be fetched ({type(error).__name__}): give the file that you have, weights=TAG@FILE (a path "
            "or s3://; of hf-hub: the model's folder, local-dir:FOLDER), have `python -m cmapkd_core.fetch_weights` "
            "write one where there is a network, or check yours"
        ) from error


def _from_file(backbone: Backbone, architecture: Architecture, weights: Weights, cache: Path) -> None:
    try:
        path = storage.fetch(weights.file, cache / "weights" / weights.file.rpartition("/")[2])
    except FileNotFoundError:
        raise InputError(NO_WEIGHTS.format(weights.file, architecture.name)) from None
    fill_from_file(backbone.model, path, architecture.name)


FILLS: dict[str, Callable[[Backbone, Architecture, Weights, Path], None]] = {
    "random": _random,
    "packages": _from_packages,
    "own": _from_own,
}
