"""Artifacts that no stage has made as they are."""

from __future__ import annotations

import hashlib
from typing import Any

from cmapkd_core import storage
from cmapkd_core.stages.artifact import MANIFEST, Artifact
from cmapkd_core.stages.manifest import sealed


def manifest(**fields: Any) -> bytes:
    """The bytes of a complete one, with these fields."""
    usual = {
        "stage": "thing",
        "fields": {},
        "inputs": {},
        "metrics": {},
        "seconds": 0.0,
        "folder": "out",
        "outputs": {},
    }
    return sealed({**usual, **fields})


# What a crash of a machine or somebody's editor leaves of a small JSON object.
TORN: dict[str, bytes] = {
    "empty": b"",
    "zeros": b"\0" * 40,
    "torn": b'{"owner": "',
    "latin": b'{"run": "caf\xe9"}',
    "deep": b"[" * 100_000,
    "nothing in it": b"{}",
    "list": b"[1]",
    "null": b"null",
    "another": b'{"owner": 1, "run": [], "text": {}, "check": 0}',
}


def rewrite(url: str, name: str, data: bytes) -> None:
    """Another content for a file of the artifact at `url`, which its manifest then tells of as if it were made so."""
    artifact = Artifact.open(url)
    storage.write_bytes(artifact.file_url(name), data)
    entry = {
        **artifact.manifest["outputs"].get(name, {}),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    told = {**artifact.manifest, "outputs": {**artifact.manifest["outputs"], name: entry}}
    storage.write_bytes(storage.join(url, MANIFEST), sealed(told))
