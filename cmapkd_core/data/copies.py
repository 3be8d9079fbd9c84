"""Local copies of remote files, each fetched and checked once and shared by the ranks and workers of a machine."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmapkd_core import storage
from cmapkd_core.errors import InputError


def fetch_once(url: str, name: str, digest: str, cache: Path) -> Path:
    """A local path of a file: where it is, or a copy in `cache` whose digest has been checked once.

    Of all processes that want the same file one fetches it and the others wait; those that want another file do not.
    A process that is killed in the middle leaves its turn and its room on the disk to the next.

    Raises:
        FileNotFoundError: there is none.
        InputError: two downloads did not have the digest, or `cache` cannot be used.
    """
    target = cache / name
    if "://" not in url:
        return storage.fetch(storage.join(url, name), target)
    if target.exists():  # complete and checked, by us or by another process
        return target
    with _turn(cache / f".{name}.lock"):
        if not target.exists():  # nobody has fetched it while we waited
            _fetch(storage.join(url, name), digest, target)
    return target


def _fetch(url: str, digest: str, target: Path) -> None:
    """Make `target`, which appears complete and checked. Only one process at a time may be here."""
    folder = target.with_name(f".{target.name}.part")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed: a file may have gigabytes
    try:
        for _ in range(2):
            part = storage.fetch(url, folder / target.name)
            if storage.sha256_file(part) == digest:
                part.replace(target)
                return
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raise InputError(f"{url} does not have the sha256 of its manifest: run the stage that wrote it again")


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """One process or thread of the machine at a time. The kernel frees the lock of a process that is killed.

    The file stays: who deleted it would let two in, one with the old file and one with a new one.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "ab")  # noqa: SIM115  closed below
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise storage.StorageError(
            f"cannot keep copies in {lock.parent}: {error.strerror or error}; give this process a TMPDIR on a disk of "
            "this machine"
        ) from error
    try:
        yield
    finally:
        # Not by closing alone: a worker that was forked meanwhile has the file open too, and would keep the lock.
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()
