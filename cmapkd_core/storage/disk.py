"""The storage verbs on a local folder.

Every write goes to a hidden `.NAME.XXXX.partial` file beside the target and appears under its name in
one step, so a process that dies in the middle leaves nothing that a reader would take for an object. Its writer holds a
lock on it, which the kernel drops with the process: `sweep` knows by that what nobody will finish.

Another process may delete the folder that is written to, at any moment: then it is made again, and the file with it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import IO

from cmapkd_core import temporary
from cmapkd_core.errors import InputError
from cmapkd_core.storage.entry import Entry
from cmapkd_core.storage.failures import StorageError

_TRIES = 20  # of a write whose folder others delete meanwhile, and of the deletion of one that they write to
_PERMISSION = "give this user write permission there, or choose another folder"
_TO_READ = "give this user the right to read it, and to enter the folders above it"
_SPACE = "free some space, or choose a folder on another disk"
_WAYS_OUT = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EEXIST: "a part of the path is a file: choose another folder",
    errno.EISDIR: "it is a folder: name a file in it",
}
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # nothing is there, or a link leads to nothing or to itself


@contextmanager
def _named(action: str, url: str) -> Iterator[None]:
    """Turn an OSError into a FileNotFoundError or StorageError that names `url`."""
    try:
        yield
    except FileNotFoundError as error:
        if action == "write":  # parents are made, again and again
            raise StorageError(f"cannot write {url}: {_no_folder(Path(url).parent)}") from error
        raise FileNotFoundError(url) from None
    except OSError as error:
        raise StorageError(f"cannot {action} {url}: {in_words(error, reads=action in ('read', 'list'))}") from error


def in_words(error: OSError, reads: bool = False) -> str:
    """Cause and way out. reads: nothing was to be written."""
    way_out = _WAYS_OUT.get(error.errno or 0, "choose another folder")
    return f"{error.strerror or error}; {_TO_READ if reads and way_out == _PERMISSION else way_out}"


def _no_folder(folder: Path) -> str:
    """Why nothing can be written into a folder: there can be none, or there is one and it went away each time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return "no folder can be made there; choose another one"
    return "another process deletes its folder again and again; end that one, or choose another folder"


@contextmanager
def partial(target: Path) -> Iterator[IO[bytes]]:
    """A binary file beside `target` that is on disk when the block ends and gone after it.

    The block is where the caller renames or links `file.name`; parents are made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
    try:
        with path.open("xb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
    finally:
        path.unlink(missing_ok=True)


def _placed(url: str, fill: Callable[[IO[bytes]], object], place: Callable[[str, str], object]) -> None:
    """Write a partial file and place it as `url`, anew where its folder was deleted meanwhile."""
    for left in reversed(range(_TRIES)):
        try:
            with partial(Path(url)) as file:
                fill(file)
                _settle(file)
                place(file.name, url)
            return
        except FileNotFoundError:
            if not left:
                raise
        except FileExistsError as error:  # not the link: a part of the path is a file, or was just deleted
            name = error.filename
            if error.filename2 is not None or not left or (os.path.lexists(name) and not os.path.isdir(name)):
                raise


def sweep(url: str) -> int:
    """Delete what writers below the folder `url` left there when they were killed; returns the bytes.

    A file that a living process of this machine writes is locked and stays. One of another machine may not seem so;
    its writer then writes it anew.
    """
    freed = 0
    for folder, folders, files in os.walk(url):
        for name in filter(_is_partial, folders):
            freed += temporary.bytes_below(Path(folder, name))
            _remove(Path(folder, name))
        folders[:] = [name for name in folders if not _is_partial(name)]
        for name in filter(_is_partial, files):
            freed += _swept(Path(folder, name))
    return freed


def _swept(path: Path) -> int:
    """Delete one partial file that nobody writes; its bytes."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = path.stat().st_size
            path.unlink()
    except OSError:  # locked, gone, or of somebody else
        return 0
    return size


def _remove(folder: Path) -> None:
    """A whole tree that others may still write to, or delete as well."""
    for left in reversed(range(_TRIES)):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            if not folder.exists():
                return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not left:
                raise
        else:
            return


def _settle(file: IO[bytes]) -> None:
    """Contents before the name: without this a power cut can leave the name on an empty file."""
    file.flush()
    os.fsync(file.fileno())


def read_bytes(url: str) -> bytes:
    with _named("read", url):
        return Path(url).read_bytes()


def read_part(url: str, first: int, size: int) -> bytes:
    with _named("read", url), open(url, "rb") as file:
        file.seek(first)
        return file.read(size)


def opened(url: str) -> BufferedReader:
    if not exists(url):  # a pipe would wait for its writer
        raise FileNotFoundError(url)
    with _named("read", url):
        return open(url, "rb")


def write_bytes(url: str, data: bytes) -> None:
    with _named("write", url):
        _placed(url, lambda file: file.write(data), os.replace)


def create(url: str, data: bytes) -> bool:
    with _named("write", url):
        try:
            _placed(url, lambda file: file.write(data), os.link)
        except FileExistsError as error:
            if error.filename2 is None:  # not the link: a part of the path is a file
                raise
            return False
        return True


def exists(url: str) -> bool:
    with _named("read", url):
        return Path(url).is_file()


def misfit(url: str) -> str:
    """What lies in an object's place and is none; "" of an object, and of nothing."""
    path = Path(url)
    if path.is_file() or not os.path.lexists(url):
        return ""
    if path.is_dir():
        return "it is a folder"
    return "it is a link that leads nowhere" if path.is_symlink() else "it is no regular file"


def rename(url: str, target: str) -> None:
    with _named("write", target):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        os.rename(url, target)


def size(url: str) -> int:
    if not exists(url):
        raise FileNotFoundError(url)
    with _named("read", url):
        return Path(url).stat().st_size


def delete(url: str) -> None:
    with _named("delete", url):
        Path(url).unlink(missing_ok=True)


def delete_tree(url: str) -> None:
    """Renamed first, so that the tree is gone at once or still whole."""
    path = Path(url)
    if path.resolve() == Path(path.anchor).resolve():
        raise InputError(f"{url} is the root of the file system: name a folder to delete")
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with _named("delete", url):
        if not path.is_dir():
            return
        try:
            path.rename(aside)
        except FileNotFoundError:  # another process deletes it too
            return
        _remove(aside)


def list_files(url: str) -> list[str]:
    names: list[str] = []
    with _named("list", url):
        for folder, folders, files in os.walk(url, onerror=_unless_gone):
            folders[:] = [name for name in folders if not _is_partial(name)]
            names += [Path(folder, name).relative_to(url).as_posix() for name in files if not _is_partial(name)]
    return sorted(names)


def a_few(url: str, most: int) -> list[str]:
    with _named("list", url):
        files = (
            os.path.relpath(os.path.join(folder, name), url) for folder, _, names in os.walk(url) for name in names
        )
        return sorted(islice(files, most))


def folders(url: str) -> list[str]:
    with _named("list", url):
        try:
            with os.scandir(url) as entries:
                return sorted(one.name for one in entries if one.is_dir() and not _is_partial(one.name))
        except OSError as error:
            _unless_gone(error)
            return []


def entries(url: str) -> dict[str, Entry]:
    by_name = {}
    with _named("list", url):
        for name in [""] if Path(url).is_file() else list_files(url):
            try:
                status = Path(url, name).stat()
            except OSError as error:
                _unless_gone(error)
                continue
            by_name[name] = Entry(status.st_size, str(status.st_mtime_ns), status.st_mtime)
    return by_name


def _unless_gone(error: OSError) -> None:
    """What another process deletes meanwhile, and a link that leads nowhere, holds nothing to list."""
    if error.errno not in _NOWHERE:
        raise error


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(".partial")


def fetch(url: str, target: Path) -> Path:
    """The file itself: what is local already is not copied to `target`."""
    if not exists(url):
        raise FileNotFoundError(url)
    return Path(url)


def sha256(url: str) -> str:
    with _named("read", url), open(url, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put(local: Path, url: str) -> None:
    with _named("write", url), local.open("rb") as source:

        def fill(file: IO[bytes]) -> None:
            source.seek(0)
            shutil.copyfileobj(source, file, 1 << 20)

        _placed(url, fill, os.replace)


def briefly() -> AbstractContextManager[None]:
    """Nothing to shorten here: a folder answers at once."""
    return nullcontext()
