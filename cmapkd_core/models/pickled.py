"""Weights files of torch's own formats, which are pickles: read with weights_only, and after a look at their headers.

Nothing here is for a file of others in this process (`convert_weights.py` has one of its own for that): readers with
weights_only have been fooled before, and a small file may ask for any amount of memory. What an installed package
brings is another matter, since its code could be run anyway.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from cmapkd_core.errors import InputError

_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers that lie among OpenAI's weights
_DEFLATED = 2**26  # bytes that a TorchScript archive's code may inflate to; torch stores tensors as they are


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Tensors of any shape [..] by name; no Python in the file is ever run.

    A training checkpoint's "state_dict" entry and a "module." prefix are taken off. OpenAI gave its weights as
    TorchScript programs, of which the state is read and nothing called.

    Raises:
        InputError: another format, a damaged file, one that claims to be larger than it is, or no flat table of
            tensors.
    """
    try:
        loaded: Any = _load(path)
    except InputError:
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, MemoryError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"weights file {path.name} cannot be read ({reason}): download it again, or save its "
            "state_dict as safetensors"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"weights file {path.name} is no table of tensors: save the model's state_dict")
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def _load(path: Path) -> Any:
    if not _is_script(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    with warnings.catch_warnings():  # torch would have everybody save otherwise; these files are as they are
        warnings.simplefilter("ignore", FutureWarning)
        state = torch.jit.load(path, map_location="cpu").state_dict()
    return {name: value for name, value in state.items() if name not in _OPENAI_SIZES}


def _is_script(path: Path) -> bool:
    """Whether a torch file is a TorchScript archive, which holds code beside its tensors.

    Raises:
        InputError: its records claim more bytes than a file of its size can hold.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    deflated = sum(record.file_size for record in records if record.compress_type != zipfile.ZIP_STORED)
    stored = sum(record.file_size for record in records if record.compress_type == zipfile.ZIP_STORED)
    size = path.stat().st_size
    if stored > size or deflated > _DEFLATED:
        raise InputError(
            f"weights file {path.name} has {size} bytes and claims to hold {stored + deflated}, {deflated} of them "
            "compressed: torch stores tensors as they are, so somebody has packed it again: get it from who made it"
        )
    return any(PurePosixPath(record.filename).parts[1:2] == ("code",) for record in records)
