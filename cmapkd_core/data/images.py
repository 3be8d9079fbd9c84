"""Encoded bytes to an RGB picture, with a reason where that cannot be. Metadata never decides over pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cmapkd_core.data.containers import jpeg_pixels, png_pixels
from cmapkd_core.data.turns import LARGE, turn
from cmapkd_core.errors import BadImageError

MIN_SIDE = 8  # pixels; smaller ones are tracking pixels and separators, not pictures
EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_PIXELS: dict[str, Callable[[bytes], tuple[bytes, bytes]]] = {"PNG": png_pixels, "JPEG": jpeg_pixels}
_BAND = 1_000_000  # pixels worked on at a time
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
    return _upright(_opened(data, max_pixels, min_side))


@contextmanager
def shown(data: bytes, max_pixels: int, min_side: int = MIN_SIDE) -> Iterator[Image.Image]:
    """`decode` for as long as the picture is used; of large ones one at a time (`turns`), and then it is gone.

    Raises:
        BadImageError: as of `decode`.
    """
    opened = [_opened(data, max_pixels, min_side)]
    pixels = opened[0].image.width * opened[0].image.height
    if pixels >= LARGE:  # a WebP's decoder has its buffers from the start: none while others are in their turn
        opened.clear()
    with turn(pixels):
        image = _upright(opened.pop() if opened else _opened(data, max_pixels, min_side))
        try:
            yield image
        finally:
            image.close()


class _Opened(NamedTuple):
    """A picture whose header has been read, and whose pixels have not. depth: as of `_depth`. exif: taken out of it."""

    name: str
    image: Image.Image
    depth: int
    exif: bytes


def _opened(data: bytes, max_pixels: int, min_side: int) -> _Opened:
    name = format_of(data)
    with _with_reason(name):
        pixels, exif = _pixels(name, data)
        image = _open(name, pixels)
        width, height = image.size
        if width * height > max_pixels:
            raise BadImageError(f"{width}x{height} pixels are more than data.max_pixels={max_pixels}")
        if min(width, height) < min_side:
            raise BadImageError(f"{width}x{height} pixels: a side is shorter than {min_side}")
        return _Opened(name, image, _depth(name, data), exif)


def _upright(opened: _Opened) -> Image.Image:
    name, image, depth, exif = opened
    with _with_reason(name):
        image.load()
        turned = _UPRIGHT.get(orientation(exif or image.info.get("exif", b"")))
        upright = _rgb(image, depth)
        return upright.transpose(turned) if turned is not None else upright


@contextmanager
def _with_reason(name: str) -> Iterator[None]:
    """Pillow's decoders raise nearly every type on broken bytes."""
    try:
        yield
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(f"the {name} cannot be read: {error or type(error).__name__}") from None


def _pixels(name: str, data: bytes) -> tuple[bytes, bytes]:
    """The file without what is no pixel, and its EXIF where that was taken out."""
    return _PIXELS[name](data) if name in _PIXELS else (data, b"")


def _open(name: str, data: bytes) -> Image.Image:
    """The picture with its header read.

    Not by Image.open, whose warning of large pictures can only be silenced for all threads at once; the check of the
    size is ours.
    """
    try:
        return _READERS[name](io.BytesIO(data))
    except (SyntaxError, IndexError, TypeError, KeyError, OSError, struct.error):
        raise BadImageError(f"the {name} cannot be read: its header is broken") from None


def orientation(exif: bytes) -> int:
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
        return _deep_grey(image, image.info.get("transparency"))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image.info["transparency"] = _as_pixels(image, depth)
        if image.info["transparency"] is None:
            del image.info["transparency"]
        return _on_white(image if image.mode == "RGBA" and "transparency" not in image.info else image.convert("RGBA"))
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """An RGBA picture in RGB; the two and a band are all that is held."""
    white = Image.new("RGB", image.size, (255, 255, 255))
    for box in _bands(image):
        band = image.crop(box)
        white.paste(band, box, mask=band.getchannel("A"))
    image.close()
    return white


def _deep_grey(image: Image.Image, clear: Any) -> Image.Image:
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    for box in _bands(image):
        values = np.asarray(image.crop(box)).clip(0, 65535)
        band = grey[box[1] : box[3]]
        band[:] = values // 257
        if isinstance(clear, int):
            band[values == clear] = 255
    image.close()
    return Image.fromarray(grey).convert("RGB")


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes from top to bottom of no more than _BAND pixels, or one line."""
    height = max(_BAND // image.width, 1)
    for top in range(0, image.height, height):
        yield 0, top, image.width, min(top + height, image.height)


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
