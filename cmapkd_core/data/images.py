"""Encoded bytes to an RGB picture, with a reason where that cannot be."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import IO

import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cmapkd_core.errors import InputError

MIN_SIDE = 8  # pixels; smaller ones are tracking pixels and separators, not pictures
EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_READERS: dict[str, Callable[[IO[bytes]], Image.Image]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WEBP": WebPImageFile,
}


class BadImageError(InputError):
    """Bytes that are no usable picture; the message is the reason."""


def format_of(data: bytes) -> str:
    """The key of EXTENSIONS that the first bytes announce.

    Raises:
        BadImageError: an empty file or any other format.
    """
    if not data:
        raise BadImageError("the image file is empty")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise BadImageError(f"the image is no PNG, JPEG or WebP (it starts with {data[:8]!r})")


def decode(data: bytes, max_pixels: int, min_side: int = MIN_SIDE) -> Image.Image:
    """The picture in RGB at its own size: upright as its EXIF says, alpha composed on white.

    The size is read from the header and checked before a pixel is decoded.

    Raises:
        BadImageError: unknown format, too large, too small, truncated or broken.
    """
    name = format_of(data)
    try:
        image = _open(name, data)
        width, height = image.size
        if width * height > max_pixels:
            raise BadImageError(f"{width}x{height} pixels are more than data.max_pixels={max_pixels}")
        if min(width, height) < min_side:
            raise BadImageError(f"{width}x{height} pixels: a side is shorter than {min_side}")
        image.load()
        return _rgb(ImageOps.exif_transpose(image) if "exif" in image.info else image)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on broken bytes
        raise BadImageError(f"the {name} cannot be read: {error or type(error).__name__}") from None


def _open(name: str, data: bytes) -> Image.Image:
    """The picture with its header read.

    Not by Image.open, whose warning of large pictures can only be silenced for all threads at once; the check of the
    size is ours.
    """
    try:
        return _READERS[name](io.BytesIO(data))
    except (SyntaxError, IndexError, TypeError, KeyError, OSError, struct.error):
        raise BadImageError(f"the {name} cannot be read: its header is broken") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips to white
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")
