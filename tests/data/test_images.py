import contextlib
import io
import multiprocessing
import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from cmapkd_core.data import images, turns
from cmapkd_core.data.images import decode, shown
from cmapkd_core.errors import BadImageError

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
        with contextlib.suppress(BadImageError), shown(bytes(data), LIMIT) as image:
            assert image.mode == "RGB"


def test_what_no_header_reader_takes_is_a_bad_image_and_metadata_is_none(picture: Make) -> None:
    data = picture()
    text = b"zTXtnote\0\0" + zlib.compress(bytes(3_000_000))
    noted = data[:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + data[33:]
    with shown(noted, LIMIT) as image:
        assert image.size == (20, 16)
    side = struct.pack("<I", 16_383 - 1)[:3]  # 268 million pixels, more than Pillow opens
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + side + side
    bomb = b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas
    short = data[:8] + struct.pack(">I", 4) + b"IHDR" + bytes(4) + struct.pack(">I", zlib.crc32(b"IHDR" + bytes(4)))
    for broken in (bomb, short):
        with pytest.raises(BadImageError, match="cannot be read"), shown(broken, LIMIT):
            pass


def test_composed_in_bands_is_composed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (40, 33, 4), dtype=np.uint8)
    data, image = encoded(Image.fromarray(noise)), Image.fromarray(noise)
    whole = Image.new("RGB", image.size, (255, 255, 255))
    whole.paste(image, mask=image.getchannel("A"))
    monkeypatch.setattr(images, "_BAND", 100)  # three lines of 33, the last band one
    assert decode(data, LIMIT).tobytes() == whole.tobytes()
    deep = np.random.default_rng(3).integers(0, 65536, (40, 33), dtype=np.uint16)
    assert (np.asarray(decode(encoded(Image.fromarray(deep)), LIMIT))[..., 0] == deep // 257).all()


def test_large_pictures_take_turns_over_threads_and_processes(picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LARGE", 400)
    large, small = picture(20, 20), picture(19, 20)
    held, peak = multiprocessing.Value("i", 0), multiprocessing.Value("i", 0)

    def look(data: bytes) -> None:
        with shown(data, LIMIT):
            with held.get_lock():
                held.value += 1
                peak.value = max(peak.value, held.value)
            time.sleep(0.05)
            with held.get_lock():
                held.value -= 1

    def at_once(data: bytes) -> int:
        peak.value = 0
        fork = multiprocessing.get_context("fork")
        both = [kind(target=look, args=(data,)) for kind in (fork.Process, fork.Process, Thread, Thread)]
        for one in both:
            one.start()
        for one in both:
            one.join()
        return int(peak.value)

    assert at_once(large) == 1
    assert at_once(small) > 1


def test_a_picture_whose_turn_does_not_come_is_shown_all_the_same(
    picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LARGE", 1)
    monkeypatch.setattr(turns, "_PATIENCE", 0.1)
    with shown(picture(), LIMIT), shown(picture(), LIMIT) as image:
        assert image.size == (20, 16)


def test_a_turn_ends_though_a_process_was_forked_in_it(picture: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LARGE", 1)
    monkeypatch.setattr(turns, "_PATIENCE", 5.0)
    ended, end = os.pipe()
    with shown(picture(), LIMIT):
        child = os.fork()
        if not child:
            os.close(end)
            os.read(ended, 1)
            os._exit(0)
    start = time.monotonic()
    with shown(picture(), LIMIT):
        waited = time.monotonic() - start
    os.close(end)
    os.waitpid(child, 0)
    os.close(ended)
    assert waited < 4
