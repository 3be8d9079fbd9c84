"""Temporary folders: gone with who made them, and after a kill -9 with the next start; others' stay."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from forked import Forked

from cmapkd_core import storage, temporary
from cmapkd_core.data import copies
from cmapkd_core.errors import OutsideError

STAGE = "cmapkd_core.stages.prepare"


@pytest.fixture(autouse=True)
def disk(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What TMPDIR is here and in processes that are started.

    Its path is short, without the test's name: multiprocessing's sockets lie below it, and theirs end at 107 bytes.
    """
    disk = tmp_path_factory.mktemp("disk")
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    return disk


def argv(tmp_path: Path) -> list[str]:
    return ["--recipe", "tiny", "--root", str(tmp_path / "root"), "--overrides", "data.samples_per_shard=4"]


def killed(tmp_path: Path, disk: Path) -> Path:
    """A stage that was killed in the middle of its work; the folder that it has left."""
    script = str(Path(__file__).with_name("killing.py"))
    with contextlib.closing(Forked(script, argv(tmp_path), {"OMP_NUM_THREADS": "1"})) as process:
        said, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
    (left,) = disk.glob(f"{temporary.PREFIX}*")
    assert list(left.glob("out/*.tar*"))
    return left


def test_what_a_killed_stage_left_is_cleared_by_the_next_start_and_told(tmp_path: Path, disk: Path) -> None:
    left = killed(tmp_path, disk)
    with temporary.folder() as living:
        (living / "file").write_text("of a process that lives")
        with contextlib.closing(Forked(STAGE, argv(tmp_path), {"OMP_NUM_THREADS": "1"})) as process:
            said, _ = process.communicate()
            assert process.returncode == 0, said
        assert (living / "file").exists()
    lines = [line for line in said.splitlines() if "cleared" in line]
    assert len(lines) == 1, said
    assert lines[0].startswith("prepare: cleared 1 temporary folder (")
    assert lines[0].endswith(f" MB) of processes that were killed from {disk}")
    assert not left.exists()
    assert list(disk.glob(f"{temporary.PREFIX}*")) == []
    url = next((tmp_path / "root" / "prepare").iterdir())
    assert not [path for path in url.rglob("*") if path.name.endswith(".partial")]


def test_a_folder_is_gone_with_its_block_and_counted_where_it_is_not(disk: Path) -> None:
    with temporary.folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    (disk / f"{temporary.PREFIX}a").mkdir()
    (disk / f"{temporary.PREFIX}a" / "file").write_bytes(bytes(2_000_000))
    told = "cleared 1 temporary folder (2.0 MB) of processes that were killed from " + str(disk)
    assert str(temporary.clear()) == told
    assert temporary.clear().folders == 0


def test_other_users_folders_and_links_stay(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, elsewhere = disk / f"{temporary.PREFIX}theirs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (disk / f"{temporary.PREFIX}link").symlink_to(elsewhere)
    (disk / "cmapkd-of-another-kind").mkdir()
    assert temporary.clear().folders == 0
    theirs.mkdir()
    user = os.getuid()
    monkeypatch.setattr(temporary.os, "getuid", lambda: user + 1)
    assert temporary.clear().folders == 0
    assert theirs.is_dir()
    assert elsewhere.is_dir()


def test_where_no_folder_can_be_made_the_place_is_named(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk / "none"))
    with pytest.raises(
        OutsideError, match=rf"temporary folder in {disk}/none: No such file .*; give this process a TMP"
    ):
        temporary.folder().__enter__()
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with temporary.folder() as folder:
        assert folder.is_dir()


def test_parts_of_fetches_that_were_killed_are_cleared_and_those_under_way_are_not() -> None:
    machine = copies.machine_folder()
    for name in ("killed", "living"):
        (machine / "turns" / f"{name}.part").mkdir(parents=True)
        (machine / "turns" / f"{name}.part" / "file").write_bytes(bytes(1000))
        (machine / "turns" / f"{name}.lock").touch()
    with (machine / "turns" / "living.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert copies.clear().folders == 1
    assert [path.name for path in (machine / "turns").glob("*.part")] == ["living.part"]


def test_what_killed_writers_left_beside_objects_is_cleared_and_a_writer_that_lives_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "root"
    storage.write_bytes(str(root / "kept"), b"kept")
    (root / ".object.0.partial").write_bytes(b"left")
    (root / ".work.0.partial").mkdir()
    (root / ".work.0.partial" / "file").write_bytes(b"left too")
    with storage.disk.partial(root / "living") as file:
        file.write(b"living")
        assert storage.sweep(str(root)) == 12
        file.flush()
        os.replace(file.name, root / "living")
    assert storage.list_files(str(root)) == ["kept", "living"]
    assert sorted(path.name for path in root.iterdir()) == ["kept", "living"]


def test_a_write_into_a_folder_that_others_delete_arrives(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with contextlib.closing(Forked(str(Path(__file__).with_name("deleting.py")), [str(folder)], {})) as process:
        while not (folder / "go").exists():
            time.sleep(0.001)
        (folder / "go").unlink()
        for number in range(100):
            storage.write_bytes(str(folder / "below" / str(number)), b"data")
            storage.create(str(folder / "below" / "one"), b"data")
            storage.list_files(str(folder))
        process.kill()
        process.communicate()
    storage.write_bytes(str(folder / "below" / "last"), b"data")
    assert storage.read_bytes(str(folder / "below" / "last")) == b"data"
