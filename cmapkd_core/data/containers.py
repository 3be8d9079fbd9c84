"""The parts of an encoded picture that are pixels, and its EXIF: everything else is left to nobody.

Decoders read all that a file says before they show a pixel, and refuse the picture for a text of more than a megabyte,
a colour profile that does not inflate, a checksum of a comment. Nothing here is inflated, and nothing is decoded.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_PNG = 8  # bytes of the signature
_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_START_OF_SCAN, _EXIF_SEGMENT, _ADOBE, _JFIF, _COMMENT = 0xDA, 0xE1, 0xEE, 0xE0, 0xFE
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a length
_SEQUENTIAL, _FRAMES = frozenset({0xC0, 0xC1}), frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_EXIF = b"Exif\0\0"


def png_pixels(data: bytes) -> tuple[bytes, bytes]:
    """A PNG without the chunks that are no pixels, and what its eXIf chunk holds; of an animated one the first frame.

    A file whose chunks end in the middle keeps that end, so that its decoder says what is missing.
    """
    kept, exif, at = [data[:_PNG]], b"", _PNG
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        stop = at + 12 + length
        if stop > len(data) or not kind.isalpha():
            break
        if kind in _PIXELS:
            kept.append(data[at:stop])
        elif kind == b"eXIf" and not exif:
            exif = data[at + 8 : stop - 4]
        at = stop
        if kind == b"IEND":
            return b"".join(kept), exif
    return b"".join([*kept, data[at:]]), exif


def jpeg_pixels(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG without its application segments and comments, and its first EXIF.

    JFIF's and Adobe's stay, which say how the channels are meant. What does not follow the format from some place on
    is left as it is from there.
    """
    parts = jpeg_parts(data)
    return parts.pixels, parts.exif


class JpegParts(NamedTuple):
    """What `jpeg_pixels` gives.

    sequential: all up to the first scan follows the format, and it is one frame that is not progressive. Of what is
    missing in a progressive one decoders make different guesses, and without a word.
    """

    pixels: bytes
    exif: bytes
    sequential: bool


def jpeg_parts(data: bytes) -> JpegParts:
    """`jpeg_pixels`, and what kind of JPEG it is."""
    kept, exif, at, frames, sequential = [data[:2]], b"", 2, set[int](), False
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _ALONE or marker == _START_OF_SCAN:
            sequential = marker == _START_OF_SCAN and len(frames) == 1 and frames <= _SEQUENTIAL
            break
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 4 or at + length > len(data):
            break
        body = data[at + 4 : at + length]
        if marker in _FRAMES:
            frames.add(marker)
        if marker == _EXIF_SEGMENT and body.startswith(_EXIF) and not exif:
            exif = body
        if not _said_of_pictures(marker, body):
            kept.append(data[at : at + length])
        at += length
    whole = sum(map(len, kept)) == at  # nothing was left out: no copy
    return JpegParts(data if whole else b"".join([*kept, data[at:]]), exif, sequential)


def _said_of_pictures(marker: int, body: bytes) -> bool:
    """Whether a JPEG's segment is a comment or belongs to an application, and decides over no pixel."""
    if (marker == _JFIF and body.startswith(b"JFIF\0")) or (marker == _ADOBE and body.startswith(b"Adobe")):
        return len(body) < 12
    return marker == _COMMENT or 0xE0 <= marker <= 0xEF
