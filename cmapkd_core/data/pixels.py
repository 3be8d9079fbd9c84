"""Encoded bytes to pixels for training and for hashes: those of `images.shown`, bit for bit, for less.

Nearly every picture is a plain JPEG. libjpeg-turbo alone decodes those in two thirds of the time that Pillow takes
around it, into the array that is asked for and through no copy of the pixels. All others, and all in which it finds
anything to remark on, are Pillow's, whose word on a damaged picture counts. Evaluation goes through Pillow anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image

from cmapkd_core.data.containers import jpeg_parts
from cmapkd_core.data.images import MIN_SIDE, orientation, shown
from cmapkd_core.data.turns import LARGE

_JPEG = b"\xff\xd8\xff"
_SPACES = ("YCbCr", "Gray")  # what Pillow too leaves to libjpeg; of CMYK and the like it makes RGB itself


@contextmanager
def shown_pixels(data: bytes, max_pixels: int, min_side: int = MIN_SIDE) -> Iterator[np.ndarray]:
    """What `images.shown` shows, as uint8 [height, width, 3]; of large pictures one at a time, and then it is gone.

    Raises:
        BadImageError: as of `images.decode`.
    """
    pixels = _plain_jpeg(data, max_pixels, min_side, "RGB")
    if pixels is not None:
        yield pixels
        return
    with shown(data, max_pixels, min_side) as image:
        yield np.array(image)


@contextmanager
def shown_quickly(data: bytes, max_pixels: int, min_side: int = MIN_SIDE) -> Iterator[Image.Image]:
    """What `images.shown` shows, as Pillow's picture in mode RGB or RGBX, which it takes without a copy.

    Raises:
        BadImageError: as of `images.decode`.
    """
    pixels = _plain_jpeg(data, max_pixels, min_side, "RGBX")
    if pixels is not None:
        yield Image.frombuffer("RGBX", pixels.shape[1::-1], pixels, "raw", "RGBX", 0, 1)
        return
    with shown(data, max_pixels, min_side) as image:
        yield image


def _plain_jpeg(data: bytes, max_pixels: int, min_side: int, mode: str) -> np.ndarray | None:
    """An upright sequential JPEG in order, of grey or of three channels; None of anything else."""
    if not data.startswith(_JPEG):
        return None
    parts = jpeg_parts(data)
    if not parts.sequential or (parts.exif and orientation(parts.exif) != 1):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(parts.pixels)
        if space not in _SPACES or min(width, height) < min_side or width * height > min(max_pixels, LARGE - 1):
            return None
        pixels: np.ndarray = simplejpeg.decode_jpeg(parts.pixels, mode)  # its warnings are errors
    except ValueError:
        return None
    return pixels
