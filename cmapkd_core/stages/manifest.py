"""`manifest.json` of an artifact: JSON with a digest of itself, refused where it is not as it was written."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cmapkd_core.commands import submit
from cmapkd_core.errors import DamagedInput

SEAL = "sha256"
_SINCE_SEALS = "files"  # a key that is younger than seals: a manifest with it was sealed
_SHAPE: dict[str, tuple[type, ...]] = {
    "stage": (str,),
    "fields": (dict,),
    "inputs": (dict,),
    "metrics": (dict,),
    "seconds": (int, float),
    "folder": (str,),
    "outputs": (dict,),
}
_ENTRIES: dict[str, dict[str, type]] = {"inputs": {"url": str, "digest": str}, "outputs": {"bytes": int, "sha256": str}}


class DamagedError(DamagedInput):
    """A manifest that is there and cannot be used; the message says where, why, and what mends it.

    Attributes:
        url, why, raw: of the artifact; the fault; the bytes that were found, None of what is no file.
    """

    def __init__(self, url: str, why: str, raw: bytes | None) -> None:
        super().__init__(url, why, raw)
        self.url, self.why, self.raw = url, why, raw

    def __str__(self) -> str:
        return (
            f"{self.url}/manifest.json is damaged ({self.why}): start what made it once more, the stage's command or "
            f"its run by {submit()} with the same --run; it sets the damaged one aside and makes the artifact anew"
        )


def sealed(manifest: dict[str, Any]) -> bytes:
    """The bytes of a manifest, with its digest as the last field."""
    plain = json.loads(json.dumps(manifest))  # what a reader will see: no tuples, no keys that are numbers
    plain.pop(SEAL, None)
    return json.dumps({**plain, SEAL: _digest(plain)}, indent=1).encode()


def opened(url: str, raw: bytes) -> dict[str, Any]:
    """The manifest of the artifact at `url`; one of before there were digests needs the right shape alone.

    Raises:
        DamagedError: it is torn, of another shape, or not what was written.
    """
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        what = "it is empty" if not raw.strip(b"\0 \n") else f"it is no JSON, {len(raw)} bytes: {error}"
        raise DamagedError(url, what, raw) from None
    if why := _misshapen(manifest):
        raise DamagedError(url, why, raw)
    if SEAL not in manifest and _SINCE_SEALS in manifest:
        raise DamagedError(url, f"it has lost its {SEAL}", raw)
    if SEAL in manifest and manifest[SEAL] != _digest({k: v for k, v in manifest.items() if k != SEAL}):
        raise DamagedError(url, f"it does not have the {SEAL} that it names", raw)
    return dict(manifest)


def _misshapen(manifest: Any) -> str:
    if not isinstance(manifest, dict):
        return f"it is a {type(manifest).__name__} and no object"
    for name, kinds in _SHAPE.items():
        if not isinstance(manifest.get(name), kinds):
            return f"its {name} is {'missing' if name not in manifest else 'of another kind'}"
    for name, shape in _ENTRIES.items():
        for key, entry in manifest[name].items():
            if not isinstance(entry, dict) or any(not isinstance(entry.get(n), kind) for n, kind in shape.items()):
                return f"its {name} say nothing that can be used of {key!r}"
            if ".." in f"{key}/{entry.get('place', '')}".split("/"):
                return f"its {name} name {key!r}, which leads out of it"
    return f"its folder is {manifest['folder']!r}" if ".." in manifest["folder"].split("/") else ""


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
