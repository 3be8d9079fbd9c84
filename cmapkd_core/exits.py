"""How a command ends: one table of exit codes, and which of them an error has.

A stage ends with them, `submit.py --local` with its stage's; docs/reference/exit-codes.md shows the table. Whether a
retry of the same attempt is worth its while follows from it too (stages/refused.py).
"""

from __future__ import annotations

import errno
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cmapkd_core.errors import InputError, OutsideError

EXIT_FILE = "CMAPKD_EXIT_FILE"  # variable: a file for the exit code of the first rank that fails; torchrun ends with 1


@dataclass(frozen=True)
class End:
    """A way to end. code: the process's. meaning: for people. lasts: the same input finds the same error again."""

    code: int
    meaning: str
    lasts: bool = False


ENDS = {
    "done": End(0, "done"),
    "other": End(1, "another error: a fault of the program, shown with its traceback, or a rank that was lost"),
    "input": End(2, "bad input: a name, a value, a file or a folder that was given", lasts=True),
    "diverged": End(3, "training diverged; the last good checkpoint is in place"),
    "damaged": End(4, "what is stored is damaged or gone: not what was written", lasts=True),
    "full": End(5, "the disk is full, or a quota"),
    "denied": End(6, "access denied: this user, or this login, may not read or write there"),
    "login": End(7, "the login for S3 is missing, wrong or has expired"),
    "server": End(8, "a server is lost: it does not answer, breaks off, fails or is not what it should be"),
    # as sysexits.h has it: a failure that the next try may not have
    "hung": End(75, "a rank of a training hung for runtime.hang_minutes; the same command goes on from its checkpoint"),
    "interrupted": End(130, "stopped by Ctrl-C"),
    "stopped": End(143, "stopped by SIGTERM, of a cluster or of a scheduler; saved"),
}
EXPLAINED = frozenset(end.code for name, end in ENDS.items() if name not in ("done", "other", "interrupted"))
_GENERAL = ("", "input", "server")  # what a class says where nothing behind the error says more
_ERRNO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "full"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "denied"),
    **dict.fromkeys((errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT), "server"),
}
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")  # libraries that keep no errno
_MIB = 1 << 20
_LOST = (ConnectionError, TimeoutError, socket.gaierror)


def end_of(error: BaseException) -> End:
    """The end of an error: what it says of itself, else what lies behind it, such as a full disk."""
    chain = list(_behind(error))
    for one in chain:
        if name := _particular(one):
            return ENDS[name]
    lost = any(isinstance(one, _LOST) or _declared_end(one) == "server" for one in chain)
    if lost and not (isinstance(error, InputError) and not isinstance(error, OutsideError)):
        return ENDS["server"]
    return ENDS[next((name for one in chain if (name := _declared_end(one))), "other")]


def room(error: BaseException) -> str:
    """Where a full disk is that nobody named: what the folder of scratch files has; "" of another error."""
    if end_of(error) != ENDS["full"] or isinstance(error, OutsideError):  # a storage's own error names its place
        return ""
    place = tempfile.gettempdir()
    usage = shutil.disk_usage(place)
    free, total = (f"{size / _MIB:.0f} MiB" for size in (usage.free, usage.total))
    return (
        f" (scratch files lie in {place}, where {free} of {total} are free: free some there, or set TMPDIR to a folder"
        " with more room; in a cluster pods.*.scratch of the site file)"
    )


def lasts(error: BaseException) -> bool:
    """Whether a retry finds the same: its end says so, and it is of nothing outside, which may answer otherwise."""
    return end_of(error).lasts and not isinstance(error, OutsideError)


def left(place: Path, code: int) -> int:
    """The code of the rank that failed first, in place of its launcher's."""
    try:
        return int(place.read_text()) if code == ENDS["other"].code else code
    except (OSError, ValueError):
        return code


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _declared_end(error: BaseException) -> str:
    """The name in ENDS that the error's class gives; "" of one that has none, or an `end` of its own meaning.

    That of a UnicodeDecodeError is a place in its bytes.
    """
    name = getattr(error, "end", "")
    return name if isinstance(name, str) and name in ENDS else ""


def _particular(error: BaseException) -> str:
    name = _declared_end(error)
    if name not in _GENERAL:
        return name
    if isinstance(error, OSError) and (name := _ERRNO.get(error.errno or 0, "")):
        return name
    return "full" if any(words in str(error) for words in _FULL) else ""
