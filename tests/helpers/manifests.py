"""Manifests of artifacts that no stage has made."""

from __future__ import annotations

from typing import Any

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
