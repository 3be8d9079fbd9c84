"""Copies of remote files that several processes of a machine want at once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cmapkd_core import storage
from cmapkd_core.data.copies import fetch_once
from cmapkd_core.errors import InputError

REPOSITORY = Path(__file__).parents[2]
DATA = b"weights" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
RANKS = 8

# One rank: it asks for a file, once it is told to, of a source that is slow and notes each download as it begins.
RANK = """
import sys, time
from pathlib import Path
from cmapkd_core import storage
from cmapkd_core.data.copies import fetch_once

cache, log, name, seconds, digest = sys.argv[1:]

def slowly(url, target):
    with open(log, "a") as file:
        file.write(f"{url}\\n")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"weights" * 500)
    time.sleep(float(seconds))
    target.write_bytes(b"weights" * 1000)
    return target

storage.fetch = slowly
print("ready", flush=True)
sys.stdin.readline()
print(fetch_once("s3://bucket/run", name, digest, Path(cache)), flush=True)
"""


class Machine:
    """Processes that share a cache, and the downloads that they began."""

    def __init__(self, folder: Path) -> None:
        self.cache, self._log, self.temporary = folder / "cache", folder / "log", folder / "tmp"
        self.temporary.mkdir()
        self.started: list[subprocess.Popen[str]] = []

    def rank(self, name: str, seconds: float) -> subprocess.Popen[str]:
        """A process that is ready to ask for a file whose download takes `seconds`."""
        command = [sys.executable, "-c", RANK, str(self.cache), str(self._log), name, str(seconds), DIGEST]
        env = os.environ | {"TMPDIR": str(self.temporary)}
        pipe = subprocess.PIPE
        rank = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY, env=env)
        self.started.append(rank)
        return rank

    def downloads(self) -> list[str]:
        return self._log.read_text().split() if self._log.exists() else []

    def wait_for_downloads(self, count: int) -> None:
        end = time.monotonic() + 30
        while len(self.downloads()) < count:
            assert time.monotonic() < end, f"{self.downloads()} began"
            time.sleep(0.01)


def go(*ranks: subprocess.Popen[str]) -> None:
    """Let them ask in the same moment."""
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "ready\n"
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()


def said(rank: subprocess.Popen[str]) -> str:
    """What a rank got, which has to come soon."""
    out, _ = rank.communicate(timeout=30)
    assert rank.returncode == 0
    return out.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for process in machine.started:
        process.kill()
        process.communicate()


def test_ranks_that_start_together_download_a_file_once(machine: Machine) -> None:
    ranks = [machine.rank("a.bin", 0.5) for _ in range(RANKS)]
    go(*ranks)
    assert {said(rank) for rank in ranks} == {str(machine.cache / "a.bin")}
    assert machine.downloads() == ["s3://bucket/run/a.bin"]
    assert (machine.cache / "a.bin").read_bytes() == DATA


def test_who_wants_another_file_does_not_wait(machine: Machine) -> None:
    slow, quick = machine.rank("slow.bin", 600), machine.rank("quick.bin", 0)
    go(slow)
    machine.wait_for_downloads(1)
    go(quick)
    assert said(quick) == str(machine.cache / "quick.bin")
    assert slow.poll() is None


def test_a_killed_process_leaves_its_turn_and_no_part_of_a_file(machine: Machine) -> None:
    first, second = machine.rank("a.bin", 600), machine.rank("a.bin", 0)
    go(first)
    machine.wait_for_downloads(1)
    go(second)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.3)
    first.kill()
    assert said(second) == str(machine.cache / "a.bin")
    assert len(machine.downloads()) == 2
    assert list(machine.cache.rglob("*")) == [machine.cache / "a.bin"]
    assert not list(machine.temporary.rglob("*.part"))


def test_a_worker_forked_in_the_middle_does_not_keep_the_turn(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(tempfile, "tempdir", str(machine.temporary))

    def forks(url: str, target: Path) -> Path:
        """A thread of the rank starts a loader worker, which lives on; then the download fails."""
        if not os.fork():
            os.close(write)
            os.read(read, 1)  # until this test ends
            os._exit(0)
        raise FileNotFoundError(url)

    monkeypatch.setattr(storage, "fetch", forks)
    with pytest.raises(FileNotFoundError):
        fetch_once("s3://bucket/run", "a.bin", DIGEST, machine.cache)
    try:
        other = machine.rank("a.bin", 0)
        go(other)
        assert said(other) == str(machine.cache / "a.bin")
    finally:
        os.close(write)
        os.close(read)
        os.wait()


def served(content: list[bytes]) -> Callable[[str, Path], Path]:
    """A source whose next downloads have these contents."""

    def fetch(url: str, target: Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.pop(0))
        return target

    return fetch


def test_a_wrong_download_is_made_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "fetch", served([b"torn", DATA, b"torn", b"torn"]))
    assert fetch_once("s3://bucket/run", "a.bin", DIGEST, tmp_path).read_bytes() == DATA
    with pytest.raises(InputError, match=r"s3://bucket/run/b\.bin does not have the sha256 of its manifest"):
        fetch_once("s3://bucket/run", "b.bin", DIGEST, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]  # a folder of copies is read whole


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(InputError, match=rf"cannot keep copies in {tmp_path}/cache: .* TMPDIR"):
        fetch_once("s3://bucket/run", "a.bin", DIGEST, tmp_path / "cache")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's /tmp of its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.mark.parametrize("change", ["content", "note", "no note", "another digest"])
def test_a_copy_that_was_changed_is_fetched_anew(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    other = b"other" * 1000
    served_now = [DATA, other if change == "another digest" else DATA]
    monkeypatch.setattr(storage, "fetch", served(served_now))
    copy = fetch_once("s3://bucket/run", "a.bin", DIGEST, tmp_path / "cache")
    (note,) = temporary.rglob("*.json")
    digest = DIGEST
    if change == "content":
        copy.write_bytes(DATA[:-1] + b"!")
    elif change == "another digest":
        digest = hashlib.sha256(other).hexdigest()
    elif change == "note":
        note.write_bytes(b"{")
    else:
        note.unlink()
    for _ in range(2):
        found = fetch_once("s3://bucket/run", "a.bin", digest, tmp_path / "cache").read_bytes()
        assert hashlib.sha256(found).hexdigest() == digest
    fetched = change in ("content", "another digest")
    assert len(served_now) == (0 if fetched else 1)
    assert ("was changed since it was checked: it is fetched anew" in caplog.text) == fetched


def test_the_machines_folder_is_of_its_user_alone(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "fetch", served([DATA] * 9))
    folder = temporary / f"cmapkd-{os.getuid()}"
    for _ in range(2):
        fetch_once("s3://bucket/run", "a.bin", DIGEST, folder / "x")
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)  # as it was made before: nobody else could write there
    folder.chmod(0o777)
    refused(folder, "may be written by other users")
    folder.rename(temporary / "aside")
    folder.symlink_to(temporary / "aside")
    refused(folder, "is a link or a file")
    folder.unlink()
    fetch_once("s3://bucket/run", "a.bin", DIGEST, folder / "x")
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    folder.rename(temporary / f"cmapkd-{os.getuid()}")
    refused(temporary / f"cmapkd-{os.getuid()}", rf"is of user {os.getuid() - 1}")
    (mine := tmp_path / "mine").mkdir()
    monkeypatch.undo()
    monkeypatch.setattr(storage, "fetch", served([DATA]))
    monkeypatch.setattr(tempfile, "tempdir", str(mine))  # the way out
    fetch_once("s3://bucket/run", "a.bin", DIGEST, mine / "cache")


def refused(folder: Path, whose: str) -> None:
    with pytest.raises(
        InputError, match=rf"{folder} {whose}, so .*: have it deleted, or set TMPDIR to a folder of your own"
    ):
        fetch_once("s3://bucket/run", "a.bin", DIGEST, folder / "x")
