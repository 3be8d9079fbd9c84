"""Whether the files and folders that a stage read by path are still what they were. No torch.

A place follows from strings, so other content under the same path would answer "already complete". Each has an
identity in the manifest's `files`: of a local file its size, mtime and sha256 (a large one is read again only where
the first two differ); of an object on S3 its size and ETag; of a folder or prefix the number and bytes of its files
and a digest of their names, sizes and stamps. Asking a finished stage costs a `stat` a file, on S3 a request for a
thousand objects.
"""

from __future__ import annotations

import hashlib
from typing import Any

from cmapkd_core import storage

Paths = dict[str, str]  # what of the recipe or the command names it -> the path
Identities = dict[str, dict[str, Any]]
READ = 2**26  # bytes of a local file that is read each time: a copy may keep size and time
SHOWN = 3  # changed files of a folder that are named


def identities(paths: Paths) -> Identities:
    """What each path holds now; a path without anything is left out, which the stage says itself."""
    by_name = {name: _identity(storage.absolute(path)) for name, path in paths.items()}
    return {name: text for name, text in by_name.items() if text}


def _identity(url: str) -> dict[str, Any]:
    entries = storage.entries(url)
    if "" in entries:
        one = entries[""]
        digest = {} if "://" in url else {"sha256": storage.sha256_file(url)}
        return {"url": url, "bytes": one.bytes, "stamp": one.stamp, **digest}
    return _folder(url, entries) if entries else {}


def _folder(url: str, entries: dict[str, storage.Entry]) -> dict[str, Any]:
    lines = "".join(f"{name}\0{one.bytes}\0{one.stamp}\n" for name, one in sorted(entries.items()))
    return {
        "url": url,
        "files": len(entries),
        "bytes": sum(one.bytes for one in entries.values()),
        "newest": max(one.time for one in entries.values()),
        "listing": hashlib.sha256(lines.encode()).hexdigest(),
    }


def changed(then: Identities, paths: Paths) -> tuple[list[str], list[str]]:
    """What is no longer what it was, and what cannot be looked at any more, each in words; ([], []) where all is."""
    differ, gone = [], []
    for name in then.keys() & paths.keys():
        url = storage.absolute(paths[name])
        try:
            entries = storage.entries(url)
        except storage.StorageError as error:
            gone.append(f"{name}={url} cannot be looked at ({error})")
            continue
        if not entries:
            gone.append(f"{name}={url} is gone")
        elif difference := _difference(then[name], url, entries):
            differ.append(f"{name}={url} {difference}")
    return sorted(differ), sorted(gone)


def _difference(then: dict[str, Any], url: str, entries: dict[str, storage.Entry]) -> str:
    """In what it differs from what it was; "" where it does not."""
    if ("" in entries) != ("listing" not in then):
        return "is a file and was a folder" if "" in entries else "is a folder and was a file"
    if "" not in entries:
        return _folder_difference(then, _folder(url, entries), entries)
    one = entries[""]
    if one.bytes != then["bytes"]:
        return f"has {one.bytes} bytes and had {then['bytes']}"
    trusted = one.stamp == then["stamp"] and (one.bytes > READ or "sha256" not in then)
    if trusted or ("sha256" in then and storage.sha256_file(url) == then["sha256"]):
        return ""
    return f"has other content in its {one.bytes} bytes"


def _folder_difference(then: dict[str, Any], now: dict[str, Any], entries: dict[str, storage.Entry]) -> str:
    if now["listing"] == then["listing"]:
        return ""
    newer = [name for name, one in sorted(entries.items()) if one.time > then["newest"]]
    names = ", ".join(newer[:SHOWN]) + (f" and {len(newer) - SHOWN} more" if len(newer) > SHOWN else "")
    sizes = f"{now['files']} files of {now['bytes']} bytes, then {then['files']} of {then['bytes']}"
    return f"has changed: {names or 'none is newer, so files were removed, renamed or put back'} ({sizes})"
