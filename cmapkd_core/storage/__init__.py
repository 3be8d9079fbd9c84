"""The same verbs for a local folder and for `s3://bucket/prefix`: the only place that knows the difference.

Reads and writes are of whole objects, and a write appears completely or not at all. `create` is the one
commit point: of any number of writers exactly one gets True. Missing objects raise FileNotFoundError(url),
everything else that goes wrong with a place raises StorageError, whose message names the URL, the cause and
the way out. For S3 the endpoint, region and credentials come by the usual AWS means (AWS_ENDPOINT_URL,
AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the pod's role), or by variables of our own
that go before those (own.py); s3.py says what else it reads of the environment.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

from cmapkd_core.errors import DamagedInput, InputError
from cmapkd_core.logins import refuse_login, refuse_password, without_login
from cmapkd_core.storage import disk
from cmapkd_core.storage.entry import Entry
from cmapkd_core.storage.failures import WITHOUT, StorageError

__all__ = [
    "Entry",
    "StorageError",
    "absolute",
    "check_writable",
    "create",
    "delete",
    "delete_tree",
    "entries",
    "exists",
    "fetch",
    "folders",
    "join",
    "list_files",
    "misfit",
    "opened",
    "put",
    "read_bytes",
    "read_json",
    "read_object",
    "rename_misfit",
    "sha256",
    "sha256_file",
    "size",
    "sweep",
    "write_bytes",
    "write_json",
]

S3_SCHEME = "s3://"
Shape = dict[str, type]  # names of a JSON object -> what their values are
NO_MORE: Shape = {}


class _Store(Protocol):
    """What disk.py and s3.py both are."""

    def read_bytes(self, url: str) -> bytes: ...
    def read_part(self, url: str, first: int, size: int) -> bytes: ...
    def opened(self, url: str) -> BufferedReader: ...
    def write_bytes(self, url: str, data: bytes) -> None: ...
    def create(self, url: str, data: bytes) -> bool: ...
    def exists(self, url: str) -> bool: ...
    def size(self, url: str) -> int: ...
    def delete(self, url: str) -> None: ...
    def delete_tree(self, url: str) -> None: ...
    def sweep(self, url: str) -> int: ...
    def list_files(self, url: str) -> list[str]: ...
    def a_few(self, url: str, most: int) -> list[str]: ...
    def folders(self, url: str) -> list[str]: ...
    def entries(self, url: str) -> dict[str, Entry]: ...
    def fetch(self, url: str, target: Path) -> Path: ...
    def put(self, local: Path, url: str) -> None: ...
    def sha256(self, url: str) -> str: ...
    def briefly(self) -> AbstractContextManager[None]: ...


def _store(url: str) -> _Store:
    # A path and a key have no query: `photo.jpg?key=1` is a file's name.
    refuse = refuse_password if url.startswith(S3_SCHEME) or "://" not in url else refuse_login
    refuse(f"the place {without_login(url)}", url)
    if url.startswith(S3_SCHEME):
        from cmapkd_core.storage import s3  # boto3 is imported when the first s3:// URL is touched

        return s3
    if "://" in url:
        raise InputError(f"{url}: only a folder or s3://bucket/prefix can be read and written; write it as one of them")
    if not url:
        raise InputError("an empty string is no place: give a folder or s3://bucket/prefix")
    return disk


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it, by single slashes; empty parts are left out.

    Raises:
        InputError: a part with `..`, which would lead out of `url`.
    """
    for part in parts:
        if ".." in part.split("/"):
            raise InputError(f"'{part}' leads out of {url}: name a place below it")
    base = url.rstrip("/") if url.rstrip("/") not in ("", "s3:") else url
    tail = "/".join(part.strip("/") for part in parts if part.strip("/"))
    return f"{base}{'' if base.endswith('/') else '/'}{tail}" if tail else base


def absolute(url: str) -> str:
    """A local path as it holds in every working directory; s3:// and "" as they are."""
    return os.path.abspath(url) if url and "://" not in url else url


def read_bytes(url: str) -> bytes:
    """The whole object. Raises FileNotFoundError(url) where there is none."""
    return _store(url).read_bytes(url)


def read_part(url: str, first: int, size: int) -> bytes:
    """`size` bytes of the object from byte `first` on, at least one; fewer where it ends before.

    Raises:
        FileNotFoundError: there is none.
    """
    return _store(url).read_part(url, first, size)


def opened(url: str) -> BufferedReader:
    """The object as a binary file to read from as far as one likes; of one on S3 a copy that goes when it is closed.

    Raises:
        FileNotFoundError: there is none.
        StorageError: this user may not read it.
    """
    return _store(url).opened(url)


def write_bytes(url: str, data: bytes) -> None:
    """Write or replace the whole object; a reader sees the old bytes or the new ones."""
    _store(url).write_bytes(url, data)


def read_json(url: str) -> Any:
    """The object parsed as JSON.

    Raises:
        StorageError: it cannot be read, or is no JSON.
    """
    raw = read_bytes(url)  # not below: what a place raises is a ValueError too
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{url} is no JSON ({error}): delete it and run the stage that wrote it again") from error


def read_object(url: str, shape: Shape, more: Shape = NO_MORE) -> dict[str, Any]:
    """The object parsed as a JSON object of a known shape.

    Args:
        shape: what it has, by the kind of each value.
        more: what it may have beside them; other names are left to the caller.

    Raises:
        FileNotFoundError: there is none.
        DamagedInput: it is no such thing; says where and why, the caller knows the way out.
        StorageError: it cannot be read.
    """
    try:
        raw = read_bytes(url)
    except (FileNotFoundError, StorageError):
        if why := misfit(url):
            raise DamagedInput(f"{url} is damaged ({why})") from None
        raise
    if why := _misshapen(parsed := _parsed(raw), shape, more):
        raise DamagedInput(f"{url} is damaged ({'it is empty' if not raw.strip() else why})")
    return dict(parsed)


def _parsed(raw: bytes) -> Any:
    """The value, or None of what is no JSON."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _misshapen(parsed: Any, shape: Shape, more: Shape) -> str:
    if not isinstance(parsed, dict):
        return "it is no JSON object"
    for name, kind in (shape | more).items():
        if name in parsed and not isinstance(parsed[name], kind):
            return f"its {name} is of another kind"
        if name in shape and name not in parsed:
            return f"its {name} is missing"
    return ""


def write_json(url: str, value: Any) -> None:
    """Write or replace the object with `value` as indented JSON."""
    write_bytes(url, (json.dumps(value, indent=1) + "\n").encode())


def create(url: str, data: bytes) -> bool:
    """Write the object only if there is none: True when these bytes are ours, False when it existed already.

    S3: one PUT with `If-None-Match: *`. A path: a temporary file and os.link.
    """
    return _store(url).create(url, data)


def exists(url: str) -> bool:
    """Whether there is an object (not a folder) of exactly this name."""
    return _store(url).exists(url)


def misfit(url: str) -> str:
    """What lies in an object's place and is none, such as a folder or a link to itself; "" of an object or nothing.

    On S3 there can be none.
    """
    return "" if "://" in url else disk.misfit(url)


def rename_misfit(url: str, target: str) -> None:
    """Make room for an object where a misfit lies; it is kept as `target`."""
    disk.rename(url, target)


def size(url: str) -> int:
    """Bytes of the object. Raises FileNotFoundError(url) where there is none."""
    return _store(url).size(url)


def delete(url: str) -> None:
    """Delete one object; none is no error."""
    _store(url).delete(url)


def delete_tree(url: str) -> None:
    """Delete everything below `url`; nothing there is no error.

    On S3 the objects go one by one: delete the object that marks the tree as complete first.

    Raises:
        InputError: `url` is a whole bucket or the root of the file system.
    """
    _store(url).delete_tree(url)


def sweep(url: str) -> int:
    """Delete what killed writers left below `url` beside their objects; the bytes that are free by that.

    What a living process writes stays. A server keeps nothing that can be seen of a write that did not end.
    """
    return _store(url).sweep(url)


def list_files(url: str) -> list[str]:
    """Names of all objects below `url`, relative to it, sorted; [] where there is nothing."""
    return _store(url).list_files(url)


def a_few(url: str, most: int) -> list[str]:
    """Names of at most so many files below a folder, whichever come first: for a message, however many there are."""
    return _store(url).a_few(url, most)


def folders(url: str) -> list[str]:
    """Names of the folders directly below `url`, sorted; on S3 those that have an object. [] where there is nothing."""
    return _store(url).folders(url)


def entries(url: str) -> dict[str, Entry]:
    """What a listing says of each object below `url`, by its name relative to it; of an object itself under "".

    Nothing is read: a `stat` a file, on S3 one request for a thousand objects. {} where there is nothing.
    """
    return _store(url).entries(url)


def fetch(url: str, target: Path) -> Path:
    """A readable local path of the object: the file itself for a path, a copy at `target` for s3://.

    `target` appears complete or not at all, its parents are made. Raises FileNotFoundError(url).
    """
    return _store(url).fetch(url, target)


def put(local: Path, url: str) -> None:
    """Upload or copy one file, in parts where it is large. Raises FileNotFoundError for a missing `local`."""
    if not local.is_file():
        raise FileNotFoundError(str(local))
    _store(url).put(local, url)


def sha256(url: str) -> str:
    """Hex digest of the object, read in blocks and kept nowhere. Raises FileNotFoundError(url) where there is none."""
    return _store(url).sha256(url)


def sha256_file(path: str | Path) -> str:
    """Hex digest of a local file, read in blocks; raises what `sha256` does."""
    return disk.sha256(str(path))


def check_writable(root: str) -> None:
    """Create, read and delete a probe below `root`, and answer within a minute.

    Raises:
        StorageError: `root` cannot be used, does not refuse a second exclusive creation, or gives back other bytes.
    """
    url, data = join(root, f".probe-{uuid.uuid4().hex}"), b"written by check_writable, safe to delete"
    with _store(root).briefly():
        written = create(url, data)
        try:
            exclusive = written and not create(url, data)
            kept = read_bytes(url)
        finally:
            delete(url)
    if kept != data:
        raise StorageError(
            f"{root} gives back other bytes than were written ({len(data)} went, {len(kept)} came): {WITHOUT}"
        )
    if not exclusive:
        raise StorageError(
            f"{root} does not keep to exclusive creation (If-None-Match), so two runs could both commit one artifact: "
            "use a server that does"
        )
