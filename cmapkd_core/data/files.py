"""The files of a data set as its publishers lay them out: in a folder or below an s3:// prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path

from cmapkd_core import storage, temporary
from cmapkd_core.config import DataConfig
from cmapkd_core.data.images import BadImageError
from cmapkd_core.data.texts import BadValueError, decoded, printable, shown
from cmapkd_core.errors import InputError
from cmapkd_core.folders import named_folder

MAX_FILE = 256 * 2**20  # bytes; larger pictures are not read at all
_LONGEST = 255  # bytes of a name, what file systems allow


def place(config: DataConfig) -> str:
    """`config.url`.

    Raises:
        InputError: there is no URL.
    """
    return named_folder(config.source, config.url)


def find(config: DataConfig, names: Sequence[str], way_out: str) -> str:
    """URL of the first of `names` that is below `config.url`.

    Args:
        way_out: where the file comes from, for the message.

    Raises:
        InputError: none of them is there.
    """
    for name in names:
        if storage.exists(url := storage.join(config.url, name)):
            return url
    raise InputError(f"data.source={config.source}: {config.url} has no {' or '.join(names)}: {way_out}")


@contextmanager
def opened(url: str) -> Iterator[BufferedReader]:
    """A binary file of the object, open for reading; of one on S3 a copy that is gone with the last who reads it.

    Raises:
        InputError: there is no such object.
    """
    with temporary.folder() as folder:
        try:
            file = open(storage.fetch(url, folder / "file"), "rb")  # noqa: SIM115  closed below
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
        there = storage.join(url, file)
        if "://" not in url and Path(there).exists():
            _check_local(Path(url), Path(there), file)
        try:
            size = storage.size(there)
            if size > MAX_FILE:
                raise BadImageError(f"file {file} has {size} bytes, more than {MAX_FILE}")
            return storage.read_bytes(there)
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
    if ".." in parts or "://" in file or "\0" in file or longest > _LONGEST:
        raise BadImageError(f"file {shown(file)} is no name of a file below the folder")


def _check_local(folder: Path, file: Path, name: str) -> None:
    """A named pipe would hang, and a link may lead anywhere."""
    if not file.is_file():
        raise BadImageError(f"file {name} is no regular file")
    if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
        raise BadImageError(f"file {name} is a link that leads out of the folder: copy the picture into it")
