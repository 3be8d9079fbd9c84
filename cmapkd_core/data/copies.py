"""Local copies of remote files, each fetched and checked once and shared by the ranks and workers of a machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cmapkd_core import storage, temporary
from cmapkd_core.errors import DamagedInput, again

log = logging.getLogger(__name__)
_WAY_OUT = again("STAGE")


def fetch_once(
    url: str, name: str, digest: str, cache: Path, way_out: str = _WAY_OUT, room: Callable[[], object] | None = None
) -> Path:
    """A local path of a file: where it is, or a copy in `cache` whose digest has been checked once.

    Of all processes that want the same file one fetches it and the others wait; those that want another file do not.
    A process that is killed in the middle leaves its turn and its room on the disk to the next.

    Args:
        way_out: what to do where the file is damaged.
        room: called by the one process that is about to fetch the file; what it raises ends the call.

    Raises:
        FileNotFoundError: there is none.
        InputError: two downloads did not have the digest, or `cache` cannot be used.
    """
    target = cache / name
    if "://" not in url:
        return storage.fetch(storage.join(url, name), target)
    _check_owner(machine_folder())
    if _is_known(target, digest):  # complete and checked, by us or by another process
        return target
    with turn(target) as folder:
        if not _is_known(target, digest) and not _is_good(target, digest):  # nobody has fetched it while we waited
            if room is not None:
                room()
            _fetch(storage.join(url, name), digest, target, folder, way_out)
            _note(target, digest)
    return target


def machine_folder() -> Path:
    """Where this user's processes of a machine share copies. Anyone could make it first: see `_check_owner`."""
    return Path(tempfile.gettempdir()) / f"cmapkd-{os.getuid()}"


def clear() -> temporary.Cleared:
    """Delete parts of files that processes were fetching when they were killed; the copies themselves stay."""
    folder = machine_folder()
    folders = total = 0
    if not folder.is_dir() or folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return temporary.Cleared()
    for part in folder.glob("turns/*.part"):
        with suppress(OSError), part.with_suffix(".lock").open("ab") as file:
            size = temporary.delete_unowned(part, file.fileno())
            folders, total = folders + (size is not None), total + (size or 0)
    return temporary.Cleared(folders, total, str(folder.parent))


def _check_owner(folder: Path) -> None:
    """Make the folder for this user alone.

    Raises:
        StorageError: another user made it, or may write there: the copies in it could be anything.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            if status.st_mode & 0o077:
                folder.chmod(0o700)
            return
    except OSError as error:
        raise _unusable(folder, error) from error
    fault = "may be written by other users" if status.st_uid == os.getuid() else f"is of user {status.st_uid}"
    if not stat.S_ISDIR(status.st_mode):
        fault = "is a link or a file"
    raise storage.StorageError(
        f"{folder} {fault}, so copies in it are not to be trusted: "
        "have it deleted, or set TMPDIR to a folder of your own"
    )


def forget(target: Path) -> None:
    """Delete a copy, and what is noted of it."""
    target.unlink(missing_ok=True)
    _note_of(target).unlink(missing_ok=True)


def clear_part(target: Path) -> bool:
    """Whether nobody fetches `target`; what a killed process had of it is deleted then."""
    lock = os.open(_lock_of(target), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(_lock_of(target).with_suffix(".part"), ignore_errors=True)
    except BlockingIOError:
        os.close(lock)
        return False
    temporary.give_back(lock)
    return True


def _lock_of(target: Path) -> Path:
    return machine_folder() / "turns" / f"{name_of(target)}.lock"


def _note_of(target: Path) -> Path:
    return machine_folder() / "turns" / f"{name_of(target)}.json"


def name_of(target: Path) -> str:
    """What files about `target` are called."""
    return hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:32]


def _file_state(target: Path, digest: str) -> dict[str, object]:
    status = target.stat()
    return {"sha256": digest, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _is_known(target: Path, digest: str) -> bool:
    """Whether the copy was checked, and is as it was then."""
    try:
        return bool(json.loads(_note_of(target).read_bytes()) == _file_state(target, digest))
    except (OSError, ValueError):
        return False


def _is_good(target: Path, digest: str) -> bool:
    """Whether there is a copy that has the digest; it is noted then."""
    if not target.exists():
        return False
    if storage.sha256_file(target) != digest:
        log.warning("the copy %s was changed since it was checked: it is fetched anew", target)
        return False
    _note(target, digest)
    return True


def _note(target: Path, digest: str) -> None:
    storage.write_json(str(_note_of(target)), _file_state(target, digest))


def _unusable(folder: Path, error: OSError) -> storage.StorageError:
    return storage.StorageError(
        f"cannot keep copies in {folder}: {error.strerror or error}; give this process a TMPDIR on a disk "
        "of this machine"
    )


def _fetch(url: str, digest: str, target: Path, folder: Path, way_out: str) -> None:
    """Make `target`, which appears complete and checked; `folder` is for its parts, and of one process at a time."""
    target.unlink(missing_ok=True)  # a changed one, whose room the new one takes
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed: a file may have gigabytes
    try:
        for _ in range(2):
            part = storage.fetch(url, folder / target.name)
            if storage.sha256_file(part) == digest:
                part.replace(target)
                return
            part.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raise DamagedInput(f"{url} does not have the sha256 of its manifest: {way_out}")


@contextmanager
def turn(target: Path) -> Iterator[Path]:
    """A folder for the parts of `target`, for one process or thread of the machine at a time.

    The kernel frees the lock of a process that is killed. Its file stays: who deleted it would let two in, one with the
    old file and one with a new one. Neither lies beside the target, where whole folders are read.
    """
    lock = _lock_of(target)
    try:
        for folder in (lock.parent, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        file = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise _unusable(target.parent, error) from error
    try:
        yield lock.with_suffix(".part")
    finally:
        temporary.give_back(file)
