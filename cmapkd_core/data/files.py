"""The files of a data set as its publishers lay them out: in a folder or below an s3:// prefix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from io import BufferedReader
from pathlib import Path

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.texts import BadValueError, decoded, printable, shown
from cmapkd_core.errors import BadImageError, InputError
from cmapkd_core.folders import named_folder, require_there

MAX_FILE = 256 * 2**20  # bytes; larger pictures are not read at all
_LONGEST = 255  # bytes of a name, what file systems allow
_LONGEST_PATH = 1024  # of a place below the folder, what S3 allows


def place(config: DataConfig) -> str:
    """`config.url`.

    Raises:
        InputError: there is no URL, or no such local folder.
    """
    url = named_folder(config.source, config.url)
    require_there(url)
    return url


def find(config: DataConfig, names: Sequence[str], way_out: str) -> str:
    """URL of the first of `names` that is below `config.url`.

    Args:
        way_out: where the file comes from, for the message.

    Raises:
        InputError: none of them is there, or it is a link out of the folder.
    """
    for name in names:
        if storage.exists(url := below(config.url, name)):
            return url
    raise InputError(f"data.source={config.source}: {config.url} has no {' or '.join(names)}: {way_out}")


def below(url: str, *parts: str) -> str:
    """URL of what is called `parts` below a data set's folder; there need not be such a thing.

    Raises:
        InputError: it, or a folder on the way to it, is a link that leads out of the folder. What a data set holds is
            others' work, and a link in it may name any file that the stage can read.
    """
    path = storage.join(url, *parts)
    if "://" not in url:
        try:
            inside = Path(path).resolve().is_relative_to(_resolved(os.path.abspath(url)))
        except (OSError, RuntimeError):  # links in a circle; what reads it says that nothing is there
            inside = True
        if not inside:
            file = "/".join(part for part in parts if part)
            raise InputError(
                f"file {shown(file)} is, or is below, a link that leads out of {url}: copy or mount it there"
            )
    return path


def files_below(url: str, *parts: str, only: str = "") -> list[str]:
    """Names of all files below a folder of a data set, relative to it, sorted.

    Args:
        only: how the names end that are asked for.

    Raises:
        InputError: there is a link out of the data set, or to a folder of it with such files. No listing follows it:
            what lies there would be missed, or be of another split, in silence.
    """
    start = below(url, *parts)
    if "://" not in url:
        for folder, folders, _ in os.walk(start):
            for name in folders:
                if os.path.islink(link := os.path.join(folder, name)):
                    below(url, os.path.relpath(link, url))
                    if only and not any(file.endswith(only) for file in storage.list_files(link)):
                        continue
                    raise InputError(
                        f"folder {link} is a link, which is not followed: copy or mount what it leads to there"
                    )
    return [name for name in storage.list_files(start) if name.endswith(only)]


@lru_cache(maxsize=16)
def _resolved(folder: str) -> Path:
    return Path(folder).resolve()


@contextmanager
def opened(url: str) -> Iterator[BufferedReader]:
    """A file of a data set, as `storage.opened`.

    Raises:
        InputError: there is no such file.
    """
    try:
        file = storage.opened(url)
    except FileNotFoundError:
        raise InputError(f"{url} is not there") from None
    with file:
        yield file


def read_text(url: str) -> str:
    """The text of a small file.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is not UTF-8.
    """
    try:
        return decoded(storage.read_bytes(url), url)
    except BadValueError as error:
        raise InputError(f"{error}: save it as UTF-8") from None


def picture(url: str, *files: str) -> Callable[[], bytes]:
    """Reads the first of `files` that is below `url`; what a LazyRow wants."""
    return partial(read_picture, url, files)


def read_picture(url: str, files: Sequence[str]) -> bytes:
    """The encoded picture.

    Raises:
        FileNotFoundError: none of `files` is there; names the first.
        BadImageError: a file of more than MAX_FILE bytes, a link out of the folder, a pipe, no name of a file in it.
    """
    for file in files:
        _check_name(file)
        try:
            path = below(url, file)
        except InputError as error:
            raise BadImageError(str(error)) from None
        if "://" not in url and Path(path).exists() and not Path(path).is_file():  # a named pipe would hang
            raise BadImageError(f"file {shown(file)} is no regular file")
        try:
            size = storage.size(path)
            if size > MAX_FILE:
                raise BadImageError(f"file {file} has {size} bytes, more than {MAX_FILE}")
            return storage.read_bytes(path)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(files[0])


def _check_name(file: str) -> None:
    """Annotations are others' words: what no file can be called must not reach the system or another folder."""
    parts = file.split("/")
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        raise BadImageError(f"file {printable(file)} is no valid Unicode") from None
    if ".." in parts or "://" in file or "\0" in file or longest > _LONGEST or len(file.encode()) > _LONGEST_PATH:
        raise BadImageError(f"file {shown(file)} is no name of a file below the folder")
