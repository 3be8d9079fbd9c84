"""Which commit a manifest names: the image's file, a checkout's HEAD, or nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cmapkd_core.stages.commit import commit_of


def git(folder: Path, *command: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    argv = ["git", "-C", str(folder), *who, *command]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit of the package and of a page."""
    folder = tmp_path / "checkout"
    (folder / "cmapkd_core").mkdir(parents=True)
    (folder / "cmapkd_core" / "__init__.py").write_text("")
    (folder / "README.md").write_text("")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_a_checkout_gives_its_head(checkout: Path) -> None:
    assert commit_of(checkout / "cmapkd_core") == git(checkout, "rev-parse", "--short=12", "HEAD")


def test_pages_do_not_count(checkout: Path) -> None:
    (checkout / "README.md").write_text("changed")
    assert commit_of(checkout / "cmapkd_core") == git(checkout, "rev-parse", "--short=12", "HEAD")


@pytest.mark.parametrize("changed", ["cmapkd_core/new.py", "cmapkd_core/__init__.py"])
def test_code_that_was_changed_is_dirty_and_two_changes_are_told_apart(checkout: Path, changed: str) -> None:
    head = git(checkout, "rev-parse", "--short=12", "HEAD")
    found = []
    for text in (b"one = 1\n", b"one = 2\n", b"one = '\xe9'\n", b"one = 1\n"):
        (checkout / changed).write_bytes(text)
        found.append(commit_of(checkout / "cmapkd_core"))
    assert all(re.fullmatch(rf"{head}-dirty-[0-9a-f]{{8}}", one) for one in found), found
    assert len(set(found)) == 3
    assert found[0] == found[3]
    (checkout / changed).write_bytes(b"")
    back = commit_of(checkout / "cmapkd_core")
    assert back == head if changed.endswith("__init__.py") else back.startswith(f"{head}-dirty-")


def test_the_file_of_an_image_goes_before_git(checkout: Path) -> None:
    (checkout / "cmapkd_core" / "COMMIT").write_text("0a1b2c3d4e5f\n")
    assert commit_of(checkout / "cmapkd_core") == "0a1b2c3d4e5f"


def test_an_image_that_was_built_without_its_commit_has_none(checkout: Path) -> None:
    (checkout / "cmapkd_core" / "COMMIT").write_text("unknown\n")
    assert commit_of(checkout / "cmapkd_core") == ""


def test_a_package_that_is_installed_inside_another_repository_has_none(checkout: Path) -> None:
    installed = checkout / ".venv" / "cmapkd_core"
    installed.mkdir(parents=True)
    assert commit_of(installed) == ""


def test_what_git_cannot_read_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert commit_of(tmp_path / "cmapkd_core") == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(checkout / "cmapkd_core") == ""
