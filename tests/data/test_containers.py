"""Metadata never decides over pixels: whatever is said beside them, and however broken it is."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from cmapkd_core.data.containers import jpeg_pixels, png_pixels
from cmapkd_core.data.images import decode
from cmapkd_core.errors import BadImageError

LIMIT = 1_000_000
PHOTO = Image.fromarray(
    np.stack([np.add.outer(np.arange(24), np.arange(32)) * k % 256 for k in (3, 5, 7)], axis=-1).astype(np.uint8)
)
SIDEWAYS = 6  # the orientation of a camera held upright


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    told = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", told)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def exif(entries: list[tuple[int, int, int, bytes]], order: str = "<") -> bytes:
    """A TIFF block with one directory: (tag, type, count, four bytes of value) each."""
    start = b"II" if order == "<" else b"MM"
    body = struct.pack(f"{order}2sHIH", start, 42, 8, len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
    return body + struct.pack(f"{order}I", 0)


def turned(order: str = "<", kind: int = 3) -> tuple[int, int, int, bytes]:
    code = {1: "B", 3: "H", 4: "I"}[kind]
    return 0x0112, kind, 1, struct.pack(f"{order}{code}", SIDEWAYS)


# What lies beside the orientation and is not of the type that its tag has: Pillow can read these and not write them.
MISTYPED = [
    (0x011A, 3, 1, b"\x48\0"),  # XResolution as a short
    (0x011B, 2, 3, b"72\0"),  # YResolution as a text
    (0x0102, 2, 2, b"8\0"),  # BitsPerSample as a text
    (0x0132, 7, 4, b"\xff\xfe\0\x01"),  # DateTime as bytes
    (0x010F, 2, 1_000_000, b"\0\0\0\x70"),  # Make somewhere far behind the end
    (0x8769, 2, 4, b"abc\0"),  # the pointer to another directory as a text
    (0x9286, 13, 4, b"\x07\0\0\0"),  # a type that no reader knows
]
BROKEN_EXIF = [b"", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*" + bytes(40), b"\x89nonsense" * 50, bytes(70_000)]


def pngs() -> Iterator[tuple[str, bytes]]:
    plain = encoded(PHOTO, "PNG")
    head, rest = plain[:33], plain[33:]  # the signature with IHDR
    inflated = zlib.compress(bytes(20_000_000))
    for name, extra in {
        "text of 3 MB": chunk(b"tEXt", b"note\0" + b"a" * 3_000_000),
        "text that inflates": chunk(b"zTXt", b"note\0\0" + inflated),
        "text with a wrong method": chunk(b"zTXt", b"note\0\x09abc"),
        "international text": chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + inflated),
        "profile that inflates": chunk(b"iCCP", b"icc\0\0" + inflated),
        "profile that does not": chunk(b"iCCP", b"icc\0\0nonsense"),
        "profile without a name": chunk(b"iCCP", b""),
        "wrong checksum": chunk(b"tEXt", b"note\0text", 7),
        "short gamma": chunk(b"gAMA", b"\0"),
        "short size": chunk(b"pHYs", b"\0"),
        "private": chunk(b"prVt", bytes(100)),
        "broken EXIF": chunk(b"eXIf", b"nonsense"),
        "an animation's header": chunk(b"acTL", struct.pack(">II", 3, 0)),
    }.items():
        yield name, head + extra + rest
        yield f"{name}, behind the pixels", plain[:-12] + extra + plain[-12:]


def jpegs() -> Iterator[tuple[str, bytes]]:
    plain = encoded(PHOTO, "JPEG", quality=95)
    for name, extra in {
        "broken Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0"),
        "profile in too many parts": segment(0xE2, b"ICC_PROFILE\0\x01\x09profile"),
        "profile without numbers": segment(0xE2, b"ICC_PROFILE\0"),
        "several pictures": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"x" * 60_000),
        "comment": segment(0xFE, b"\xff\xd8\xff" * 1000),
        "short JFIF": segment(0xE0, b"JFIF\0"),
        "short Adobe": segment(0xEE, b"Adobe"),
        "empty": segment(0xE5, b""),
        "a megabyte of it": segment(0xE7, bytes(65_000)) * 16,
        "fill bytes": b"\xff" * 9,
    }.items():
        yield name, plain[:2] + extra + plain[2:]


@pytest.mark.parametrize(("name", "data"), [*pngs(), *jpegs()])
def test_pixels_are_the_same_whatever_is_said_beside_them(name: str, data: bytes) -> None:
    plain = encoded(PHOTO, "PNG") if data.startswith(b"\x89PNG") else encoded(PHOTO, "JPEG", quality=95)
    assert np.array_equal(decode(data, LIMIT), decode(plain, LIMIT))


def with_exif(kind: str, body: bytes) -> bytes:
    if kind == "PNG":
        data = encoded(PHOTO, "PNG")
        return data[:33] + chunk(b"eXIf", body) + data[33:]
    if kind == "JPEG":
        data = encoded(PHOTO, "JPEG", quality=95)
        return data[:2] + segment(0xE1, b"Exif\0\0" + body[:65_000]) + data[2:]
    return encoded(PHOTO, "WEBP", lossless=True, exif=b"Exif\0\0" + body)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("beside", [[], *[[one] for one in MISTYPED], MISTYPED])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_read_whatever_lies_beside_it(kind: str, beside: list, order: str) -> None:
    entries = sorted([turned(order), *beside])
    upright = decode(with_exif(kind, exif([])), LIMIT)
    found = decode(with_exif(kind, exif(entries, order)), LIMIT)
    assert np.array_equal(found, upright.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("body", [*BROKEN_EXIF, exif([(0x0112, 3, 1, b"\x09\0")]), exif([(0x0112, 2, 2, b"6\0")])])
def test_an_orientation_that_is_none_is_upright(kind: str, body: bytes) -> None:
    assert np.array_equal(decode(with_exif(kind, body), LIMIT), decode(with_exif(kind, exif([])), LIMIT))


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_that_of_the_standard(value: int) -> None:
    """Row 0 and column 0 of the stored picture, as EXIF 2.32 says where they belong."""
    rows = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}
    columns = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}
    stored = np.zeros((20, 30, 3), dtype=np.uint8)
    stored[0, :, 0], stored[:, 0, 1] = 255, 255
    data = encoded(Image.fromarray(stored), "PNG")
    body = exif([(0x0112, 3, 1, struct.pack("<H", value))])
    shown = np.asarray(decode(data[:33] + chunk(b"eXIf", body) + data[33:], LIMIT))
    edges = {"top": shown[0], "bottom": shown[-1], "left": shown[:, 0], "right": shown[:, -1]}
    assert edges[rows[value]][:, 0].min() == 255
    assert edges[columns[value]][:, 1].min() == 255


@pytest.mark.parametrize("strip", [png_pixels, jpeg_pixels])
def test_a_file_that_ends_anywhere_is_given_on_as_it_is(strip: Callable[[bytes], tuple[bytes, bytes]]) -> None:
    data = with_exif("PNG" if strip is png_pixels else "JPEG", exif([turned()]))
    for stop in range(len(data)):
        strip(data[:stop])
        if stop < len(data) - 30:  # a decoder may do without the last marker
            with pytest.raises(BadImageError):
                decode(data[:stop], LIMIT)


# ---- transparency --------------------------------------------------------------------------------


def png(depth: int, colour: int, rows: list[bytes], *chunks: bytes) -> bytes:
    """A PNG written by hand: eight rows high, rows repeated."""
    width = 8
    header = struct.pack(">IIBBBBB", width, 8, depth, colour, 0, 0, 0)
    body = b"".join(b"\0" + rows[i % len(rows)] for i in range(8))
    signature = b"\x89PNG\r\n\x1a\n"
    return (
        signature
        + chunk(b"IHDR", header)
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def grey(depth: int, values: list[int]) -> bytes:
    """A row of eight grey values at any depth."""
    if depth == 16:
        return struct.pack(">8H", *values)
    bits = "".join(f"{value:0{depth}b}" for value in values)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_at_every_depth(depth: int) -> None:
    top = 2**depth - 1
    values = [0, top, 1 % (top + 1), top - 1, top // 2, 0, top, 1]
    clear = values[4]
    data = png(depth, 0, [grey(depth, values)], chunk(b"tRNS", struct.pack(">H", clear)))
    expected = [255 if value == clear else round(value * 255 / top) for value in values]
    shown = np.asarray(decode(data, LIMIT))[0, :, 0].astype(int)
    assert np.abs(shown - expected).max() <= (1 if depth == 16 else 0)


def test_the_bits_above_the_depth_do_not_count() -> None:
    """The standard has them ignored."""
    row = [grey(2, [0, 1, 2, 3] * 2)]
    shown = np.asarray(decode(png(2, 0, row, chunk(b"tRNS", struct.pack(">H", 0xFF01))), LIMIT))[0, :4, 0]
    assert shown.tolist() == [0, 255, 170, 255]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white(depth: int) -> None:
    scale = 257 if depth == 16 else 1
    colours = [(10, 20, 30), (200, 100, 50)] * 4
    code = ">24H" if depth == 16 else "24B"
    row = struct.pack(code, *(scale * value for colour in colours for value in colour))
    clear = struct.pack(">3H", *(scale * value for value in colours[0]))
    shown = np.asarray(decode(png(depth, 2, [row], chunk(b"tRNS", clear)), LIMIT))[0]
    assert shown[0].tolist() == [255, 255, 255]
    assert shown[1].tolist() == [200, 100, 50]


@pytest.mark.parametrize(("depth", "colour"), [(8, 4), (16, 4), (8, 6), (16, 6)])
def test_alpha_lets_white_through(depth: int, colour: int) -> None:
    """Grey or RGB with alpha 0, half and 1: value * alpha + 255 (1 - alpha)."""
    pixel = (40,) if colour == 4 else (40, 80, 120)
    scale = 257 if depth == 16 else 1
    values = [scale * v for alpha in (0, 128, 255, 255) * 2 for v in (*pixel, alpha)]
    row = struct.pack(f">{len(values)}{'H' if depth == 16 else 'B'}", *values)
    shown = np.asarray(decode(png(depth, colour, [row]), LIMIT))[0].astype(int)
    full = [pixel[0]] * 3 if colour == 4 else list(pixel)
    assert shown[0].tolist() == [255] * 3
    assert np.abs(shown[1] - [v * 128 / 255 + 255 * 127 / 255 for v in full]).max() <= 1
    assert shown[2].tolist() == full


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_has_an_alpha_for_each_colour(depth: int) -> None:
    palette = chunk(b"PLTE", bytes([0, 0, 0, 200, 100, 50]))
    row = [grey(depth, [0, 1] * 4)]
    for alphas, first, second in (
        (b"\0", [255] * 3, [200, 100, 50]),
        (b"\xff\0", [0] * 3, [255] * 3),
        (b"\x80\x80", [127] * 3, None),
        (b"", [0] * 3, [200, 100, 50]),
    ):
        extra = (chunk(b"tRNS", alphas),) if alphas else ()
        shown = np.asarray(decode(png(depth, 3, row, palette, *extra), LIMIT))[0].astype(int)
        assert np.abs(shown[0] - first).max() <= 1
        assert second is None or shown[1].tolist() == second


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr"])
def test_jpegs_of_every_kind_keep_their_colours(mode: str) -> None:
    grey_or_red = (90,) if mode == "L" else (200, 30, 30)
    image = Image.new("L" if mode == "L" else "RGB", (16, 16), grey_or_red if mode != "L" else 90).convert(mode)
    expected = np.asarray(image.convert("RGB"))[0, 0].astype(int)
    shown = np.asarray(decode(encoded(image, "JPEG", quality=100), LIMIT))[8, 8].astype(int)
    assert np.abs(shown - expected).max() <= 4
