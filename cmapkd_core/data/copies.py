"""Local copies of remote files, each fetched and checked once and shared by the ranks and workers of a machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmapkd_core import storage
from cmapkd_core.errors import InputError, again

_WAY_OUT = again("STAGE")


def fetch_once(url: str, name: str, digest: str, cache: Path, way_out: str = _WAY_OUT) -> Path:
    """A local path of a file: where it is, or a copy in `cache` whose digest has been checked once.

    Of all processes that want the same file one fetches it and the others wait; those that want another file do not.
    A process that is killed in the middle leaves its turn and its room on the disk to the next.

    Args:
        way_out: what to do where the file is damaged.

    Raises:
        FileNotFoundError: there is none.
        InputError: two downloads did not have the digest, or `cache` cannot be used.
    """
    target = cache / name
    if "://" not in url:
        return storage.fetch(storage.join(url, name), target)
    if target.exists():  # complete and checked, by us or by another process
        return target
    with _turn(target) as folder:
        if not target.exists():  # nobody has fetched it while we waited
            _fetch(storage.join(url, name), digest, target, folder, way_out)
    return target


def machine_folder() -> Path:
    """Where this user's processes of a machine share copies."""
    return Path(tempfile.gettempdir()) / f"cmapkd-{os.getuid()}"


def _fetch(url: str, digest: str, target: Path, folder: Path, way_out: str) -> None:
    """Make `target`, which appears complete and checked; `folder` is for its parts, and of one process at a time."""
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed: a file may have gigabytes
    try:
        for _ in range(2):
            part = storage.fetch(url, folder / target.name)
            if storage.sha256_file(part) == digest:
                part.replace(target)
                return
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raise InputError(f"{url} does not have the sha256 of its manifest: {way_out}")


@contextmanager
def _turn(target: Path) -> Iterator[Path]:
    """A folder for the parts of `target`, for one process or thread of the machine at a time.

    The kernel frees the lock of a process that is killed. Its file stays: who deleted it would let two in, one with the
    old file and one with a new one. Neither lies beside the target, where whole folders are read.
    """
    turns = machine_folder() / "turns"
    name = hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:32]
    try:
        for folder in (turns, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        file = open(turns / f"{name}.lock", "ab")  # noqa: SIM115  closed below
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise storage.StorageError(
            f"cannot keep copies in {target.parent}: {error.strerror or error}; give this process a TMPDIR on a disk "
            "of this machine"
        ) from error
    try:
        yield turns / f"{name}.part"
    finally:
        # Not by closing alone: a worker that was forked meanwhile has the file open too, and would keep the lock.
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()
