"""Copies of remote files within a bound of bytes, shared by the processes of a machine; the least recently used goes.

A file is locked while it is read, and what is locked never goes. Nobody waits for room with a file in hand, so that
processes cannot wait for each other. The bytes of a file are reserved before it is fetched; what a process reserved or
fetched in part when it was killed is free for the next.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cmapkd_core import storage, temporary
from cmapkd_core.data.copies import clear_part, fetch_once, forget, machine_folder, name_of
from cmapkd_core.errors import InputError

GB = 10**9
_PAUSE = 0.05  # seconds between two looks for room
Paths = frozenset[Path]
_CHECKED: dict[Path, tuple[int, int, int]] = {}  # what copies looked like that this process has found good
NOTHING: Paths = frozenset()


class NoRoomError(Exception):
    """What may not go leaves no room for another file now."""


@dataclass(frozen=True)
class RemoteFile:
    """url: its folder. digest: sha256. bytes: its size. cache: the folder of its copy. way_out: where it is damaged."""

    url: str
    name: str
    digest: str
    bytes: int
    cache: Path
    way_out: str

    @property
    def copy(self) -> Path:
        """Where its copy lies, if there is one."""
        return self.cache / self.name


@dataclass(frozen=True)
class _Entry:
    """A copy, or the reservation for one."""

    path: Path
    bytes: int
    note: Path

    def used(self) -> int | None:
        """When it was last read, in ns; None where there is no copy."""
        with suppress(OSError):
            return self.path.stat().st_atime_ns
        return None


@dataclass(frozen=True)
class ShardCache:
    """The copies of a machine. bound: of their bytes, of all data sets together; 0: none, and nothing goes."""

    bound: int = 0

    @contextmanager
    def opened(self, file: RemoteFile, wanted: Paths = NOTHING) -> Iterator[int]:
        """A descriptor of the copy, which is fetched where there is none and stays while the block runs.

        Args:
            wanted: copies that go last.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is damaged, or larger than the bound.
        """
        descriptor = self._open(file, wanted)
        try:
            yield descriptor
        finally:
            temporary.give_back(descriptor)

    def ahead(self, file: RemoteFile, wanted: Callable[[], Paths]) -> None:
        """Fetch a copy that will be read soon.

        Args:
            wanted: asked when the fetching begins: copies that do not go for it, itself among them.

        Raises:
            NoRoomError: there is room only where one of them lies, or the copy is not wanted any more.
            FileNotFoundError, InputError: as of `opened`.
        """

        def room() -> None:
            if file.copy not in wanted() or (self.bound and not self._reserve(file, wanted, spare=True)):
                raise NoRoomError

        _fetch(file, room)

    def adopt(self, files: Iterable[RemoteFile]) -> None:
        """Count copies that were made without a bound, and keep to this one from here on."""
        with _ledger() as folder:
            known = {entry.path for entry in _entries(folder)}
            for file in files:
                if file.copy not in known and file.copy.is_file():
                    _write(folder, file)
            _make_room(_entries(folder), self.bound)

    def _open(self, file: RemoteFile, wanted: Paths) -> int:
        while True:
            if file.copy not in _CHECKED or not file.copy.exists():
                _fetch(file, lambda: self._wait(file, wanted) if self.bound else None)
            try:
                descriptor = os.open(file.copy, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # it went in this moment
                continue
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            status = os.fstat(descriptor)
            version = (status.st_ino, status.st_size, status.st_mtime_ns)
            if status.st_nlink and _CHECKED.setdefault(file.copy, version) == version:
                # Set by hand, as most disks are mounted so that reading does not.
                os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
                return descriptor
            temporary.give_back(descriptor)
            _CHECKED.pop(file.copy, None)

    def _wait(self, file: RemoteFile, wanted: Paths) -> None:
        """Reserve room; what is in the way is being read or fetched by others, and that ends."""
        if file.bytes > self.bound:
            raise InputError(too_small(self.bound, file.bytes, file.name))
        while not self._reserve(file, lambda: wanted, spare=False):
            time.sleep(_PAUSE)

    def _reserve(self, file: RemoteFile, wanted: Callable[[], Paths], spare: bool) -> bool:
        """Whether the file's bytes are within the bound now; the copies that had to go for that are gone."""
        with _ledger() as folder:
            others = [entry for entry in _entries(folder) if entry.path != file.copy]
            if not _make_room(others, self.bound - file.bytes, wanted(), spare):
                return False
            _write(folder, file)
            return True


def _make_room(entries: list[_Entry], bound: int, wanted: Paths = NOTHING, spare: bool = False) -> bool:
    """Whether entries are within a bound; the copies that had to go for that are gone.

    Args:
        wanted: copies that go last; with `spare` not at all.
    """
    uses = [(entry, entry.used()) for entry in entries]
    kept = [(entry, used) for entry, used in uses if used is not None]
    fetched = [entry for entry, used in uses if used is None and not _stale(entry)]
    free = bound - sum(entry.bytes for entry in [*(one for one, _ in kept), *fetched])
    for entry, _ in sorted(kept, key=lambda one: (one[0].path in wanted, one[1])):
        if free >= 0:
            break
        if not (spare and entry.path in wanted) and _evict(entry):
            free += entry.bytes
    return free >= 0


def _fetch(file: RemoteFile, room: Callable[[], object]) -> Path:
    return fetch_once(file.url, file.name, file.digest, file.cache, file.way_out, room)


def too_small(bound: int, needed: int, what: str) -> str:
    """The refusal of a bound, with one that will do."""
    return f"runtime.cache_gb={bound / GB:g} holds less than {what}: give at least {in_gb(needed)}"


def in_gb(count: int) -> str:
    """Bytes as GB in three digits, rounded up."""
    if not count:
        return "0"
    step = 10 ** (math.floor(math.log10(count)) - 2)
    return f"{math.ceil(count / step) * step / GB:.12f}".rstrip("0").rstrip(".")


@contextmanager
def _ledger() -> Iterator[Path]:
    """The folder with a note of each copy and reservation, for one process at a time."""
    folder = machine_folder() / "kept"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        temporary.give_back(lock)


def _entries(folder: Path) -> list[_Entry]:
    entries = []
    for note in folder.glob("*.json"):
        with suppress(OSError, ValueError):
            path, size = json.loads(note.read_bytes())
            entries.append(_Entry(Path(path), size, note))
    return entries


def _write(folder: Path, file: RemoteFile) -> None:
    storage.write_bytes(str(folder / f"{name_of(file.copy)}.json"), json.dumps([str(file.copy), file.bytes]).encode())


def _stale(entry: _Entry) -> bool:
    """Whether nobody fetches what an entry reserves bytes for; the entry is gone then."""
    if not clear_part(entry.path) or entry.used() is not None:  # it has just come
        return False
    entry.note.unlink(missing_ok=True)
    return True


def _evict(entry: _Entry) -> bool:
    """Delete a copy that nobody reads."""
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    forget(entry.path)
    entry.note.unlink(missing_ok=True)
    temporary.give_back(descriptor)
    return True
