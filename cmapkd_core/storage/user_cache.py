"""The user's folder for what can be made again, kept between commands."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """`cmapkd/NAME` below XDG_CACHE_HOME, or below ~/.cache where that names no whole path; it may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "cmapkd" / name
