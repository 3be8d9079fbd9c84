"""How much memory may still be taken."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
# A container's control group, of version 2 and 1: its folder, its limit, what it has taken, and the entries of its
# memory.stat that say how much of that is of files, which the kernel gives away where memory is wanted.
_GROUPS = (
    ("", "memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)


def free_memory() -> int:
    """Bytes that may still be taken: of the machine, and of this container where it has a limit of its own."""
    free = psutil.virtual_memory().available
    for folder, limit, taken, of_files in _GROUPS:
        try:
            room, used = (int((CGROUP / folder / name).read_text()) for name in (limit, taken))
            entries = map(str.split, (CGROUP / folder / "memory.stat").read_text().splitlines())
            files = sum(int(value) for name, value in entries if name in of_files)
        except (OSError, ValueError):  # there is no such group, or its limit is the word max
            continue
        free = min(free, room - used + files)
    result: int = max(free, 0)
    return result
