"""The one reader of annotation files: JSON lists of up to gigabytes, the ids, lists and objects in them.

A file of another format is refused as a whole. A single value that is none (`texts.BadValueError`) makes one bad row.
"""

from __future__ import annotations

import codecs
import mmap
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from io import BufferedReader
from typing import Any

import ijson

from cmapkd_core.data.files import opened
from cmapkd_core.data.shallow import Shallow
from cmapkd_core.data.texts import BadValueError, encoding_of, shown
from cmapkd_core.errors import InputError

_LARGEST = 2**63 - 1  # what a table's column holds
_DIGITS = re.compile(r"\s*([0-9]{1,18})(?:\.0)?\s*")
_CHUNK = 2**20  # bytes
_PAIR = re.compile(rb"\\u[dD](?:[89abAB]..\\u[dD][c-fC-F]..|[89a-fA-F]..)", re.DOTALL)  # or half of one
_REPLACED = rb"\ufffd"


def json_items(url: str, path: str) -> Iterator[Any]:
    """The items of one list in a JSON file, one at a time.

    Half of a surrogate pair, of which ijson makes "?", is U+FFFD in them, which `texts` refuses. What is nested deeper
    than any annotation is 0 (`shallow.py`), which is no text and no list either.

    Args:
        path: of the items as ijson names it: "item" of a list, "images.item" of the list `images` in an object.

    Raises:
        InputError: there is no such file, it is cut off or no JSON in UTF-8, or it has no such list or nothing in it.
    """
    count = 0
    with opened(url) as file:
        start = file.peek(4)[:4]
        if (encoding := encoding_of(start)) != "UTF-8":
            raise InputError(f"{url} is {encoding}: save it as UTF-8")
        halves = _halves(file)
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        try:
            source = Shallow(_Marked(file, halves) if halves else file)
            for item in ijson.items(source, path, use_float=True):
                count += 1
                yield item
        except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
            reason = _not_utf8(file) or " ".join(str(error).split())
            raise InputError(
                f"{url} is no complete JSON in UTF-8 ({reason}): download it again; where you made it, write UTF-8, "
                "and null in place of NaN"
            ) from None
    if not count:
        where = f"no list '{path.removesuffix('.item')}'" if path != "item" else "no list"
        raise InputError(f"{url} has {where}, or nothing in it: it is another file than its name says")


def _halves(file: BufferedReader) -> list[int]:
    """Where the escapes of halves of surrogate pairs begin."""
    if not os.fstat(file.fileno()).st_size:
        return []
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        starts = (match.start() for match in _PAIR.finditer(data) if len(match[0]) == len(_REPLACED))
        return [at for at in starts if _backslashes(data, at) % 2 == 0]  # else it is a backslash and words


def _backslashes(data: mmap.mmap, end: int) -> int:
    """How many stand before `end`."""
    start = end
    while start and data[start - 1] == ord("\\"):
        start -= 1
    return end - start


class _Marked:
    """A file with U+FFFD in place of halves, for `texts` to find."""

    def __init__(self, file: BufferedReader, halves: list[int]) -> None:
        self._file, self._halves = file, halves

    def read(self, size: int = -1) -> bytes:
        place = self._file.tell()
        data = bytearray(self._file.read(size))
        first, last = place - len(_REPLACED), place + len(data)
        for half in self._halves[bisect_right(self._halves, first) : bisect_left(self._halves, last)]:
            at = half - place  # before the first byte where the escape is cut
            data[max(at, 0) : at + len(_REPLACED)] = _REPLACED[max(-at, 0) : len(data) - at]
        return bytes(data)


def _not_utf8(file: BufferedReader) -> str:
    """Where a file is not UTF-8; "" where it is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    file.seek(0)
    while True:
        place, chunk = file.tell(), file.read(_CHUNK)
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:  # what it decoded begins with the rest of the chunk before
            return f"{error.reason} at byte {place - (len(error.object) - len(chunk)) + error.start}"
        if not chunk:
            return ""


def required(item: Any, names: Sequence[str], url: str) -> list[Any]:
    """Values of the fields `names` of an object in the file `url`; null where the file says so.

    Raises:
        InputError: a field is missing, so the file is of another format.
    """
    missing = [name for name in names if not isinstance(item, dict) or name not in item]
    if missing:
        raise InputError(f"{url}: an entry has no field {', '.join(missing)}: {shown(item)}")
    return [item[name] for name in names]


def number(value: Any, name: str) -> int:
    """A whole number of 0..2^63-1, also as text or with a fraction of 0, which tables with gaps make of it.

    Raises:
        BadValueError: it is null or something else.
    """
    if isinstance(value, str) and (digits := _DIGITS.fullmatch(value)):
        return int(digits[1])
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
        return value
    raise BadValueError(f"{name} is no whole number: {shown(value)}")


def a_list(value: Any, name: str) -> list[Any]:
    """A list.

    Raises:
        BadValueError: it is null or something else.
    """
    if not isinstance(value, list):
        raise BadValueError(f"{name} are no list: {shown(value)}")
    return value


def value_of(item: Any, name: str, what: str) -> Any:
    """The field `name` of an object inside an entry; null where it has none.

    Raises:
        BadValueError: `what` is no object.
    """
    if not isinstance(item, dict):
        raise BadValueError(f"{what} is no object: {shown(item)}")
    return item.get(name)
