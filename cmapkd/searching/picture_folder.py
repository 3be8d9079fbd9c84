"""A folder of pictures to search: which files they are, and how one is read."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from cmapkd_core.config import DataConfig
from cmapkd_core.data.images import decode, format_of
from cmapkd_core.errors import BadImageError, InputError

# Raster formats that Pillow reads without a program beside it. Others in the folder are counted.
PICTURES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ico", ".ppm", ".pgm")
)


@dataclass(frozen=True)
class PictureFile:
    """One file.

    Attributes:
        path: below the folder.
        mtime_ns, size: as the file system has them; a change is another picture.
        caption: what is known to be on it, "" where nothing is.
    """

    path: str
    mtime_ns: int
    size: int
    caption: str = ""


@dataclass(frozen=True)
class PictureFolder:
    """The pictures below a folder, in the order of their names. others: files that are none by their names."""

    place: str
    pictures: tuple[PictureFile, ...]
    others: int

    @classmethod
    def of(cls, folder: str) -> PictureFolder:
        """All pictures below `folder`, its subfolders too; not what hidden folders hold.

        Raises:
            InputError: no such folder, or no picture in it.
        """
        place = Path(folder).expanduser()
        if not place.is_dir():
            raise InputError(f"{place} is no folder{' but a file' * place.exists()}: give a folder with pictures")
        names = [path.relative_to(place) for path in sorted(place.rglob("*")) if path.is_file()]
        visible = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        pictures = [name for name in visible if name.suffix.lower() in PICTURES]
        if not pictures:
            endings = " ".join(sorted(PICTURES))
            raise InputError(f"{place} has no picture ({len(visible)} other files): give one with files in {endings}")
        stats = [(name, (place / name).stat()) for name in pictures]
        files = tuple(PictureFile(str(name), stat.st_mtime_ns, stat.st_size) for name, stat in stats)
        return cls(str(place), files, len(visible) - len(pictures))

    @property
    def identity(self) -> bytes:
        """What embeddings of its pictures are kept by."""
        return os.fsencode(Path(self.place).resolve())

    def read(self, picture: PictureFile) -> Image.Image:
        """In RGB, upright, on white where it is transparent.

        Raises:
            BadImageError: it cannot be read; the message is the reason.
        """
        return read_picture(Path(self.place) / picture.path)


def read_picture(path: Path) -> Image.Image:
    """PNG, JPEG and WebP as in training, others by Pillow alone: the first frame, upright, on white, in RGB.

    Raises:
        BadImageError: it cannot be read; the message is the reason.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImageError(f"the file cannot be read: {error.strerror or error}") from error
    return picture_of(data)


def picture_of(data: bytes) -> Image.Image:
    """The same of a file's bytes."""
    return decode(data, DataConfig().max_pixels, 1) if _in_training(data) else _by_pillow(data)


def _in_training(data: bytes) -> bool:
    try:
        return bool(format_of(data))
    except BadImageError:
        return not data  # then `decode` says so


def _by_pillow(data: bytes) -> Image.Image:
    most = DataConfig().max_pixels
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > most:
                raise BadImageError(f"{image.width}x{image.height} pixels are more than {most}")
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(f"it is of no format that Pillow reads (it starts with {data[:8]!r})") from None
    except Exception as error:  # Pillow's decoders raise nearly every type on broken bytes
        raise BadImageError(f"the image cannot be read: {error or type(error).__name__}") from error
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def shown(name: str) -> str:
    """A file's name as it may stand on a terminal and on a page: what cannot be seen or written is a sign for it."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
