"""Which commit a manifest names: the image's file, a checkout's HEAD, or nothing."""

from __future__ import annotations

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


@pytest.mark.parametrize(("changed", "ending"), [("cmapkd_core/new.py", "-dirty"), ("README.md", "")])
def test_code_that_was_changed_is_dirty_and_pages_do_not_count(checkout: Path, changed: str, ending: str) -> None:
    (checkout / changed).write_text("changed")
    assert commit_of(checkout / "cmapkd_core") == git(checkout, "rev-parse", "--short=12", "HEAD") + ending


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
