"""A recipe's ModelConfig as a Backbone with its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

from cmapkd_core import storage
from cmapkd_core.config import ModelConfig
from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.models.architecture import Architecture, read_architecture
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.construct import construct
from cmapkd_core.models.folder import load_model, save_model
from cmapkd_core.models.weights import SUFFIXES, fill_from_file, fill_from_package

__all__ = ["build", "load_model", "save_model"]


def build(config: ModelConfig, seed: int, cache: Path) -> Backbone:
    """The model that `config` names, with its weights, on the CPU and in evaluation mode.

    What its weights do not cover (the heads of towers from packages) is random, from `seed`; torch's
    global generator is left alone.

    Args:
        cache: local folder for whatever has to be fetched.

    Raises:
        InputError: unknown model or weights, weights that do not fit (names the tensors), or none to be had.
    """
    tag = config.weights if get_pretrained_cfg(config.model.replace("/", "-"), config.weights) else ""
    architecture = read_architecture(config.model, tag, cache)
    backbone = construct(config.model, architecture.config, architecture.files, seed)
    source = WEIGHTS.get(config.weights, _from_tag if tag else _from_file)
    source(backbone, architecture, config.weights, cache)
    return backbone


def _random(backbone: Backbone, architecture: Architecture, weights: str, cache: Path) -> None:
    """Nothing to fill: the seed made them."""


def _from_packages(backbone: Backbone, architecture: Architecture, weights: str, cache: Path) -> None:
    if not architecture.packages:
        raise InputError(
            f"model {architecture.name} names no packages: choose a tag, a file or 'random' as its weights"
        )
    for entry in architecture.packages:
        fill_from_package(backbone.model, entry)


def _from_tag(backbone: Backbone, architecture: Architecture, weights: str, cache: Path) -> None:
    tag = get_pretrained_cfg(architecture.name.replace("/", "-"), weights)
    try:
        path = download_pretrained(tag, cache_dir=str(cache))
    # huggingface_hub, urllib and httpx each have their own family of errors for an absent network
    except Exception as error:
        raise InputError(
            f"weights '{weights}' of {architecture.name} cannot be fetched ({type(error).__name__}): "
            "give weights=FILE (a path or s3://), or check the network"
        ) from error
    fill_from_file(backbone.model, Path(path), architecture.name)


def _from_file(backbone: Backbone, architecture: Architecture, weights: str, cache: Path) -> None:
    if not weights.endswith(SUFFIXES):
        known = (*WEIGHTS, *list_pretrained_tags_by_model(architecture.name.replace("/", "-")))
        raise InputError(
            f"unknown weights '{weights}' of {architecture.name}: {nearest(weights, known)} "
            f"A file ends in {', '.join(SUFFIXES)}"
        )
    try:
        path = storage.fetch(weights, cache / "weights" / weights.rpartition("/")[2])
    except FileNotFoundError:
        raise InputError(f"there is no weights file {weights} for {architecture.name}: check the place") from None
    fill_from_file(backbone.model, path, architecture.name)


WEIGHTS: dict[str, Callable[[Backbone, Architecture, str, Path], None]] = {
    "random": _random,
    "packages": _from_packages,
}
