"""Encoded bytes to an RGB picture, with a reason where that cannot be. Metadata never decides over pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cmapkd_core.data.containers import jpeg_pixels, png_pixels
from cmapkd_core.errors import InputError

MIN_SIDE = 8  # pixels; smaller ones are tracking pixels and separators, not pictures
EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_PIXELS: dict[str, Callable[[bytes], tuple[bytes, bytes]]] = {"PNG": png_pixels, "JPEG": jpeg_pixels}
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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

    The size is read from the header and checked before a pixel is decoded. Of all metadata the orientation alone is
    read, and one that cannot be read is upright.

    Raises:
        BadImageError: unknown format, too large, too small, truncated or broken.
    """
    name = format_of(data)
    try:
        pixels, exif = _PIXELS[name](data) if name in _PIXELS else (data, b"")
        image = _open(name, pixels)
        width, height = image.size
        if width * height > max_pixels:
            raise BadImageError(f"{width}x{height} pixels are more than data.max_pixels={max_pixels}")
        if min(width, height) < min_side:
            raise BadImageError(f"{width}x{height} pixels: a side is shorter than {min_side}")
        image.load()
        turn = _UPRIGHT.get(_orientation(exif or image.info.get("exif", b"")))
        upright = _rgb(image, _depth(name, data))
        return upright.transpose(turn) if turn is not None else upright
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


def _orientation(exif: bytes) -> int:
    """1..8; 1, which is upright, of anything that is no EXIF with an orientation in it."""
    if not exif:
        return 1
    try:
        read = Image.Exif()
        read.load(exif)
        value = read.get(_ORIENTATION, 1)
    except Exception:  # as above; whatever it is, it is no reason to lose a picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _depth(name: str, data: bytes) -> int:
    """Bits of a channel: those of a PNG's header, 8 of all others."""
    return data[24] if name == "PNG" and len(data) > 24 else 8


def _rgb(image: Image.Image, depth: int) -> Image.Image:
    """On white where it is transparent; `depth`: bits of a channel in the file."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips to white
        return _deep_grey(np.asarray(image).clip(0, 65535), image.info.get("transparency"))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image.info["transparency"] = _as_pixels(image, depth)
        if image.info["transparency"] is None:
            del image.info["transparency"]
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _deep_grey(values: np.ndarray, clear: Any) -> Image.Image:
    grey = (values // 257).astype(np.uint8)
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _as_pixels(image: Image.Image, depth: int) -> Any:
    """The transparent colour as Pillow holds the pixels, which are 8 bits whatever the file has.

    Of 16-bit RGB only the upper halves are left, so its neighbours become transparent too.
    """
    clear = image.info.get("transparency")
    if image.mode == "L" and isinstance(clear, int):
        return (clear & (2**depth - 1)) * 255 // (2**depth - 1)
    if image.mode == "RGB" and depth == 16 and isinstance(clear, tuple):
        return tuple(value >> 8 for value in clear)
    return clear
