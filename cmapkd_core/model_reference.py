"""Models by name: `NAME:WEIGHTS`, `hf-hub:ORG/NAME`, `local-dir:FOLDER`. No torch."""

from __future__ import annotations

import re

from cmapkd_core.config import FOLDER, HUB

# NAME[:WEIGHTS] of an open_clip name or a config file (s3:// is no name).
_NAMED = re.compile(r"([\w.-]+|\S+\.json)(?::(?!//)(.+))?")


def named_model(model_ref: str) -> tuple[str, str] | None:
    """(model, weights) of a reference that names a model, weights "" where it says none; None of an artifact's URL."""
    if model_ref.startswith((HUB, FOLDER)):
        return model_ref, "own"
    match = _NAMED.fullmatch(model_ref)
    return (match[1], match[2] or "") if match else None
