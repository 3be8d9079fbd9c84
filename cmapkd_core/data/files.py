"""The files of a data set as its publishers lay them out: in a folder or below an s3:// prefix."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import ijson

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.images import BadImageError
from cmapkd_core.errors import InputError

MAX_FILE = 256 * 2**20  # bytes; larger pictures are not read at all


def place(config: DataConfig, holds: str) -> str:
    """`config.url`.

    Args:
        holds: what the folder must hold, for the message.

    Raises:
        InputError: there is no URL.
    """
    if not config.url:
        raise InputError(
            f"data.source={config.source} needs data.url: a folder or s3:// prefix with {holds}, such as "
            f"--data {config.source}:/data/{config.source}"
        )
    return config.url


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
def opened(url: str) -> Iterator[IO[bytes]]:
    """A binary file of the object, open for reading; of one on S3 a copy that is gone with the last who reads it.

    Raises:
        InputError: there is no such object.
    """
    with tempfile.TemporaryDirectory(prefix="cmapkd-") as folder:
        try:
            file = open(storage.fetch(url, Path(folder) / "file"), "rb")  # noqa: SIM115  closed below
        except FileNotFoundError:
            raise InputError(f"{url} is not there") from None
    with file:
        yield file


def json_items(url: str, path: str) -> Iterator[Any]:
    """The items of one list in a JSON file, one at a time: these files have up to gigabytes.

    Args:
        path: of the items as ijson names it: "item" of a list, "images.item" of the list `images` in an object.

    Raises:
        InputError: there is no such file, it is cut off or no JSON, or it has no such list or nothing in it.
    """
    count = 0
    with opened(url) as file:
        try:
            for item in ijson.items(file, path, use_float=True):
                count += 1
                yield item
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{url} is no complete JSON ({reason}): download it again") from None
    if not count:
        where = f"no list '{path.removesuffix('.item')}'" if path != "item" else "no list"
        raise InputError(f"{url} has {where}, or nothing in it: it is another file than its name says")


def required(item: Any, names: Sequence[str], url: str) -> list[Any]:
    """Values of the fields `names` of an object in the file `url`.

    Raises:
        InputError: a field is missing, so the file is of another format.
    """
    missing = [name for name in names if not isinstance(item, dict) or name not in item]
    if missing:
        raise InputError(f"{url}: an entry has no field {', '.join(missing)}: {str(item)[:120]}")
    return [item[name] for name in names]


def picture(url: str, *files: str) -> Callable[[], bytes]:
    """Reads the first of `files` that is below `url`; what a LazyRow wants."""
    return partial(read_picture, url, files)


def read_picture(url: str, files: Sequence[str]) -> bytes:
    """The encoded picture.

    Raises:
        FileNotFoundError: none of `files` is there; names the first.
        BadImageError: a file of more than MAX_FILE bytes, a link out of the folder, a pipe.
    """
    for file in files:
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


def _check_local(folder: Path, file: Path, name: str) -> None:
    """A named pipe would hang, and a link may lead anywhere."""
    if not file.is_file():
        raise BadImageError(f"file {name} is no regular file")
    if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
        raise BadImageError(f"file {name} is a link that leads out of the folder: copy the picture into it")
