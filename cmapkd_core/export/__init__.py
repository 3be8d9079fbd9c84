"""Formats of an exported student by folder name; a new format is one module and one line here.

A format writes a `Backbone` into a folder, opens that folder with its own library alone, and says how a user does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cmapkd_core.export import huggingface, onnx, open_clip_folder
from cmapkd_core.export.parity import Inexpressible, ParityError, Towers
from cmapkd_core.models.backbones import Backbone

__all__ = ["FORMATS", "Format", "Inexpressible", "ParityError", "Towers"]


@dataclass(frozen=True)
class Format:
    """write: raises Inexpressible. load: the folder by the library alone. usage: Python for the card, run beside it."""

    title: str
    write: Callable[[Backbone, Path], None]
    load: Callable[[Path], Towers]
    usage: Callable[[Backbone], str]


FORMATS: dict[str, Format] = {
    "open_clip": Format("open_clip", open_clip_folder.write, open_clip_folder.load, open_clip_folder.usage),
    "huggingface": Format("transformers", huggingface.write, huggingface.load, huggingface.usage),
    "onnx": Format("ONNX Runtime", onnx.write, onnx.load, onnx.usage),
}
