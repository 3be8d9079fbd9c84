"""Which commit of our code runs, for the manifests: a version stands for many commits.

An image holds no history, so its build writes the commit into a file beside the package (docker/Dockerfile). A file and
no environment variable: it belongs to the code that it names, and no pod's settings can contradict it.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import cmapkd_core

PACKAGE = Path(cmapkd_core.__file__).parent
CODE = ("cmapkd_core", "components", "pipelines")  # what the image holds; changes elsewhere make the code no other one

UNKNOWN = "unknown"  # what a build writes that was not told


@cache
def commit() -> str:
    """Twelve digits, with `-dirty` where the code differs from that commit; "" where nothing says it."""
    return commit_of(PACKAGE)


def commit_of(package: Path) -> str:
    """The commit of the code at `package`: what the file COMMIT in it says, else git where it lies in a checkout."""
    file = package / "COMMIT"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip().replace(UNKNOWN, "")
    if not (package.parent / ".git").exists():  # installed: a repository further up is somebody else's
        return ""
    try:
        head = _git(package.parent, "rev-parse", "--short=12", "HEAD")
        return head + ("-dirty" if _git(package.parent, "status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or one that does not trust the folder's owner
        return ""


def _git(folder: Path, *command: str) -> str:
    """Without locks: nobody's `git commit` has to wait for a stage that looks."""
    argv = ["git", "--no-optional-locks", "-C", str(folder), *command]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
