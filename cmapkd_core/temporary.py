"""Temporary folders: the one place where they are made, and where those are cleared that no process owns any more.

Whoever works in a folder holds a lock on it, which the kernel drops with the process, however that ends. So the next
process can tell what was left behind (kill -9, a machine that went down) from what another one is working in.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cmapkd_core.errors import OutsideError

log = logging.getLogger(__name__)

PREFIX = "cmapkd-scratch-"


@contextmanager
def folder() -> Iterator[Path]:
    """A new empty folder of this user alone, gone with all that is in it when the block ends.

    Raises:
        OutsideError: there is no place for one.
    """
    path, lock = _made()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        give_back(lock)


def give_back(lock: int) -> None:
    """Free the lock that an open file or folder holds, and close it.

    Not by closing alone: a worker that was forked meanwhile has it open too, and would keep the lock.
    """
    with suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def _made() -> tuple[Path, int]:
    """A folder and the descriptor that holds its lock; another one where a sweeper was at it first."""
    while True:
        try:
            path = Path(tempfile.mkdtemp(prefix=PREFIX))
        except OSError as error:
            where = f" in {tempfile.tempdir}" if tempfile.tempdir else ""
            raise OutsideError(
                f"cannot make a temporary folder{where}: {error.strerror or error}; give this process a TMPDIR on a "
                "disk of this machine that has room"
            ) from error
        lock = _locked(path)
        if lock is not None:
            return path, lock


def _locked(path: Path) -> int | None:
    """A descriptor of the folder that holds its lock; None where another process has it, or deleted the folder."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.stat()
    except (BlockingIOError, FileNotFoundError):
        os.close(opened)
        return None
    except OSError:  # a file system without locks: then nothing there can be told from what is in use, nor is swept
        log.debug("%s cannot be locked", path)
    return opened


@dataclass(frozen=True)
class Cleared:
    """What `clear` found: folders, the bytes of their files, and where."""

    folders: int = 0
    bytes: int = 0
    place: str = ""

    def __add__(self, other: Cleared) -> Cleared:
        return Cleared(self.folders + other.folders, self.bytes + other.bytes, self.place or other.place)

    def __str__(self) -> str:
        many = f"{self.folders} temporary folder{'s' * (self.folders != 1)}"
        return f"cleared {many} ({self.bytes / 1e6:.1f} MB) of processes that were killed from {self.place}"


def clear() -> Cleared:
    """Delete this user's folders that no process owns; what cannot be deleted stays, and is not counted."""
    try:
        place = Path(tempfile.gettempdir())
    except OSError:  # `folder` says why there is none
        return Cleared()
    folders = total = 0
    for path in place.glob(f"{PREFIX}*"):
        size = _cleared(path)
        if size is not None:
            folders, total = folders + 1, total + size
    return Cleared(folders, total, str(place))


def delete_unowned(path: Path, lock: int) -> int | None:
    """Delete a folder if the lock of the descriptor `lock` is free, and hold that until it is gone; its bytes."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = bytes_below(path)
        shutil.rmtree(path)
    except OSError:
        return None
    return size


def _cleared(path: Path) -> int | None:
    """Delete one folder; its bytes, None where it is a process's or another user's."""
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            return None
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return delete_unowned(path, opened)  # its maker may just come to lock it
    finally:
        os.close(opened)


def bytes_below(folder: Path) -> int:
    """Of all files in a folder that others may delete meanwhile."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
