"""What a listing says of an object, without reading it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """bytes: its size. stamp: S3's ETag or a file's mtime in ns: another content has another. time: seconds of Unix."""

    bytes: int
    stamp: str
    time: float
