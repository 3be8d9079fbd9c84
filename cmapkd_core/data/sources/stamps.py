"""Tux Paint's stamps: photographs and drawings with one sentence each, from the Debian package.

    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb stamps

`data.url` is the unpacked folder. A stamp is a PNG with a .txt beside it, whose first line is the English caption.
Letters, digits and signs are glyphs and no pictures: symbols/alphabets and symbols/math are left out (178 files), and
so are NAME_mirror.png copies (11), which leaves 607. Each is put on a white square, since transparency and narrow
shapes (39 x 7) are the rule here. Several pictures have one caption: they are one group, and so are those whose
captions differ in article, number or punctuation alone.
"""

from __future__ import annotations

import io
import re
from functools import partial
from pathlib import PurePosixPath

from PIL import Image

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.files import below, files_below, place, read_picture
from cmapkd_core.data.images import shown
from cmapkd_core.data.rows import BadRow, Counted, LazyRow, Row, listed
from cmapkd_core.data.texts import BadValueError, decoded, text
from cmapkd_core.data.threads import in_order
from cmapkd_core.errors import BadImageError, InputError

LICENCE = "Tux Paint stamps, Bill Kendrick and contributors, GPL-2"
FOLDER = "usr/share/tuxpaint/stamps"
GLYPHS = ("symbols/alphabets/", "symbols/math/")
MIRRORED = "_mirror.png"

# What a stamp is called in a zero-shot prompt, by the longest folder that fits.
CLASSES = {
    "animals": "animal",
    "animals/birds": "bird",
    "animals/fish": "fish",
    "animals/insects": "insect",
    "animals/mammals": "mammal",
    "clothes": "piece of clothing",
    "food": "food",
    "food/fruit": "fruit",
    "food/vegetables": "vegetable",
    "hobbies": "toy",
    "hobbies/music": "musical instrument",
    "household": "household object",
    "household/tools": "tool",
    "medical": "medical object",
    "military": "weapon or soldier",
    "naturalforces": "force of nature",
    "people": "person",
    "plants": "plant",
    "plants/flowers": "flower",
    "seasonal": "holiday decoration",
    "space": "object in space",
    "sports": "sports equipment",
    "symbols": "symbol",
    "symbols/chess": "chess piece",
    "symbols/money": "coin or currency sign",
    "symbols/music": "musical sign",
    "town": "building",
    "town/flags": "flag",
    "town/roadsigns": "road sign",
    "vehicles": "vehicle",
}
_READERS = 16  # captions read at a time


def stamp_rows(config: DataConfig) -> Counted:
    """One row a stamp.

    Raises:
        InputError: `config.url` is no unpacked package.
    """
    url = place(config)
    root = below(url, FOLDER)
    files = [file for file in files_below(url, FOLDER) if _is_stamp(file)]
    if not files:
        raise InputError(
            f"data.source=stamps: {url} has no {FOLDER}/ with PNG files: unpack the package there with "
            "`apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb FOLDER`"
        )
    captions = in_order(files, partial(_caption, root), _READERS)
    entries = list(zip(files, captions, strict=True))
    return listed(entries, lambda entry: _row(root, *entry, config.max_pixels))


def _is_stamp(file: str) -> bool:
    return file.endswith(".png") and not file.endswith(MIRRORED) and not file.startswith(GLYPHS)


def _caption(root: str, file: str) -> str | BadValueError:
    """The first line of the .txt beside the picture, or why there is none."""
    key = file.removesuffix(".png")
    try:
        first = storage.read_bytes(below(root, f"{key}.txt")).partition(b"\n")[0]
        name = f"the first line of {key}.txt"
        return text(decoded(first, name).strip(), name)
    except FileNotFoundError:
        return BadValueError(f"{key}.txt is not there")
    except storage.StorageError:  # passing, and no fault of the file's
        raise
    except InputError as error:  # no text, or a link out of the folder
        return BadValueError(str(error))


def _row(root: str, file: str, caption: str | BadValueError, max_pixels: int) -> LazyRow | BadRow:
    key = file.removesuffix(".png")
    if isinstance(caption, BadValueError):
        return BadRow(key, str(caption))
    row = Row(key, b"", (caption,), class_name(file), f"stamp {stem(caption)}", licence=LICENCE)
    return LazyRow(row, partial(_on_white, root, file, max_pixels))


def class_name(file: str) -> str:
    """The class of a stamp by its folder."""
    folders = [folder.as_posix() for folder in PurePosixPath(file).parents]
    return next((CLASSES[folder] for folder in folders if folder in CLASSES), "")


def stem(caption: str) -> str:
    """What is left of a caption without its article, numbers, case and punctuation: equal for one thing."""
    words = re.sub(r"[^a-z]+", " ", caption.lower()).split()
    return " ".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) else words)


def _on_white(root: str, file: str, max_pixels: int) -> bytes:
    """PNG of the stamp in the middle of a white square."""
    with shown(read_picture(root, (file,)), max_pixels, min_side=1) as image:
        side = max(image.size)
        if side * side > max_pixels:
            raise BadImageError(f"a white square of {side}x{side} pixels is more than data.max_pixels={max_pixels}")
        square = Image.new("RGB", (side, side), (255, 255, 255))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    file_out = io.BytesIO()
    square.save(file_out, "PNG")
    return file_out.getvalue()
