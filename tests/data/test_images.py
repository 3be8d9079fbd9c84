import contextlib
import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from cmapkd_core.data.images import BadImageError, decode

LIMIT = 1_000_000
Make = Callable[..., bytes]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels in 41 bytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 100) + b"IDAT"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_allowed_format_gives_rgb_at_its_own_size(picture: Make, kind: str) -> None:
    image = decode(picture(20, 16, (200, 30, 30), kind), LIMIT)
    assert (image.mode, image.size) == ("RGB", (20, 16))
    assert np.abs(np.asarray(image, dtype=int) - (200, 30, 30)).max() < 12


def test_transparent_pixels_become_white(picture: Make) -> None:
    assert decode(picture(colour=(10, 20, 30, 0)), LIMIT).getpixel((3, 3)) == (255, 255, 255)
    assert decode(picture(colour=(0, 0, 0, 128)), LIMIT).getpixel((3, 3)) == (127, 127, 127)


def test_a_palette_with_a_transparent_colour_becomes_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    assert decode(encoded(image, transparency=1), LIMIT).getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    image = Image.fromarray(np.full((16, 16), 0x8080, dtype=np.uint16))
    assert decode(encoded(image), LIMIT).getpixel((3, 3)) == (128, 128, 128)


def test_cmyk_and_grey_jpegs_are_read(picture: Make) -> None:
    assert decode(encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG"), LIMIT).getpixel((3, 3)) == (255, 255, 255)
    assert decode(picture(colour=(77,), kind="JPEG"), LIMIT).getpixel((3, 3)) == (77, 77, 77)


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    data = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    assert decode(data, LIMIT).size == (20, 40)


@pytest.mark.parametrize("side", [2000, 15200, 60000])  # 15200: 231 megapixels, beyond Pillow's own limit
def test_a_huge_picture_is_refused_from_its_header(side: int) -> None:
    with pytest.raises(BadImageError, match="pixels"):
        decode(png_header(side, side), LIMIT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GIF89a" + bytes(50), "no PNG, JPEG or WebP"),
        (b"<html>not found</html>", "no PNG, JPEG or WebP"),
        (b"\x80\x04\x95pickle", "no PNG, JPEG or WebP"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG cannot be read"),
        (b"\xff\xd8\xff\xe0", "JPEG cannot be read"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WEBP cannot be read"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        decode(data, LIMIT)


def test_tracking_pixels_are_refused_and_small_pictures_are_not(picture: Make) -> None:
    with pytest.raises(BadImageError, match="1x1 pixels"):
        decode(picture(1, 1), LIMIT)
    assert decode(picture(8, 43), LIMIT).size == (8, 43)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_pictures_are_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(BadImageError):
            decode(data[: int(len(data) * share)], LIMIT)


def test_a_thousand_fuzzed_files_never_raise_anything_else(picture: Make) -> None:
    draw = random.Random(0)
    sources = [picture(kind=kind) for kind in ("PNG", "JPEG", "WEBP")]
    for _ in range(1000):
        data = bytearray(draw.choice(sources))
        for _ in range(draw.randrange(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with contextlib.suppress(BadImageError):
            assert decode(bytes(data), LIMIT).mode == "RGB"
