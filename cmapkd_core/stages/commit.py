"""Which commit of our code runs, for the manifests: a version stands for many commits.

An image holds no history, so its build writes the commit into a file beside the package (docker/Dockerfile). A file and
no environment variable: it belongs to the code that it names, and no pod's settings can contradict it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

import cmapkd_core

PACKAGE = Path(cmapkd_core.__file__).parent
CODE = ("cmapkd_core", "cmapkd")  # what the image holds; changes elsewhere make the code no other one

UNKNOWN = "unknown"  # what a build writes that was not given it


@cache
def commit() -> str:
    """Twelve digits, with `-dirty-` and a digest where the code differs from that commit; "" where nothing says it."""
    return commit_of(PACKAGE)


def commit_of(package: Path) -> str:
    """The commit of the code at `package`: what the file COMMIT in it says, else git where it lies in a checkout."""
    file = package / "COMMIT"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip().replace(UNKNOWN, "")
    if not (package.parent / ".git").exists():  # installed: a repository further up is somebody else's
        return ""
    try:
        return _git(package.parent, "rev-parse", "--short=12", "HEAD").decode().strip() + _difference(package.parent)
    except (OSError, subprocess.CalledProcessError):  # no git, or one that does not trust the folder's owner
        return ""


def _difference(checkout: Path) -> str:
    """Nothing where the code is that of HEAD, else `-dirty-` and a digest of what differs: two states are not one."""
    if not _git(checkout, "status", "--porcelain", "--", *CODE):
        return ""
    digest = hashlib.sha256(_git(checkout, "diff", "--no-ext-diff", "--binary", "HEAD", "--", *CODE))
    for name in _git(checkout, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE).split(b"\0")[:-1]:
        digest.update(b"\0" + name + b"\0" + (checkout / os.fsdecode(name)).read_bytes())
    return f"-dirty-{digest.hexdigest()[:8]}"


def _git(folder: Path, *command: str) -> bytes:
    """Without locks: nobody's `git commit` has to wait for a stage that looks."""
    argv = ["git", "--no-optional-locks", "-C", str(folder), *command]
    return subprocess.run(argv, capture_output=True, check=True).stdout
