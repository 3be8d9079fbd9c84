"""Local copies of remote files, each checked once and shared by the ranks and workers of a machine."""

from __future__ import annotations

import os
from pathlib import Path

from cmapkd_core import storage
from cmapkd_core.errors import InputError


def fetch_once(url: str, name: str, digest: str, cache: Path) -> Path:
    """A local path of a file: where it is, or a copy in `cache` whose digest has been checked once.

    Raises:
        FileNotFoundError: there is none.
        InputError: two downloads did not have the digest.
    """
    if "://" not in url:
        return storage.fetch(storage.join(url, name), cache / name)
    target, part = cache / name, cache / f"{name}.{os.getpid()}.part"
    for _ in range(2):
        if target.exists():  # complete and checked, by us or by another process
            return target
        storage.fetch(storage.join(url, name), part)
        if storage.sha256_file(part) == digest:
            part.replace(target)
            return target
        part.unlink()
    raise InputError(f"{url}/{name} does not have the sha256 of its manifest: run the stage that wrote it again")
