"""A picture as the image tower wants it, with Pillow and numpy alone: this file lies beside the ONNX graphs.

`towers` is what towers.json holds. The pixels are those of open_clip's `image_transform`, bit for bit before they are
normalised. Put transparent pictures on white first, as was done in training.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image


def pixels(picture: Image.Image, towers: Mapping[str, Any]) -> np.ndarray:
    """An RGB picture -> float32 [1,3,H,H] for the input `images` of image.onnx."""
    resampling = Image.Resampling.BILINEAR if towers["interpolation"] == "bilinear" else Image.Resampling.BICUBIC
    square = SQUARES[towers["resize_mode"]](picture.convert("RGB"), towers, resampling)
    values = (np.asarray(square, dtype=np.float32) / 255 - np.float32(towers["mean"])) / np.float32(towers["std"])
    batch: np.ndarray = values.transpose(2, 0, 1)[None]
    return batch


def _shortest(picture: Image.Image, towers: Mapping[str, Any], resampling: Image.Resampling) -> Image.Image:
    """Shortest side to H, then the middle."""
    size, short = towers["image_size"], min(picture.size)
    width, height = (int(size * side / short) for side in picture.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return picture.resize((width, height), resampling).crop((left, top, left + size, top + size))


def _longest(picture: Image.Image, towers: Mapping[str, Any], resampling: Image.Resampling) -> Image.Image:
    """Longest side to H, in the middle of a square of one grey."""
    size, ratio = towers["image_size"], max(picture.size) / towers["image_size"]
    width, height = (round(side / ratio) for side in picture.size)
    square = Image.new("RGB", (size, size), (towers["fill_color"],) * 3)
    square.paste(picture.resize((width, height), resampling), ((size - width) // 2, (size - height) // 2))
    return square


def _squash(picture: Image.Image, towers: Mapping[str, Any], resampling: Image.Resampling) -> Image.Image:
    """Both sides to H."""
    return picture.resize((towers["image_size"], towers["image_size"]), resampling)


SQUARES = {"shortest": _shortest, "longest": _longest, "squash": _squash}
