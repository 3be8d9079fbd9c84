"""What the names of models and weights say by themselves, without a library that knows models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
SUFFIX = ".safetensors"
PICKLED = (".pt", ".pth", ".bin")  # of torch's own formats
UNFILED = ("random", "packages", "own")  # weights that are no file and no tag, rows of build.FILLS

_TAG = re.compile(r"[\w.-]+")  # what stands before the @ of TAG@FILE; a path has a slash there


@dataclass(frozen=True)
class Weights:
    """`ModelConfig.weights`, read: a row of FILLS, a pretrained tag, a file, or a file and the tag that it is of."""

    text: str
    tag: str = ""
    file: str = ""


def as_file(text: str) -> Weights:
    """`text`, which is no tag and no row of FILLS, as FILE or TAG@FILE."""
    tag, at, file = text.partition("@")
    return Weights(text, tag, file) if at and _TAG.fullmatch(tag) else Weights(text, file=text)


def weights_file(text: str) -> str:
    """The file that weights lie in; "" of a tag, of other weights without one, and of a file that is refused."""
    file = "" if text in UNFILED else as_file(text).file
    return file if file.endswith(SUFFIX) else ""
