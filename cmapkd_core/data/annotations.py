"""The one reader of annotation files: JSON lists of up to gigabytes, the ids, lists and objects in them.

A file of another format is refused as a whole. A single value that is none (`texts.BadValueError`) makes one bad row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import ijson

from cmapkd_core.data.files import opened
from cmapkd_core.data.texts import BadValueError, shown
from cmapkd_core.errors import InputError

_MARKS = {b"\xef\xbb\xbf": "", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # byte order marks
_DIGITS = re.compile(r"\s*([0-9]{1,18})(?:\.0)?\s*")


def json_items(url: str, path: str) -> Iterator[Any]:
    """The items of one list in a JSON file, one at a time.

    Args:
        path: of the items as ijson names it: "item" of a list, "images.item" of the list `images` in an object.

    Raises:
        InputError: there is no such file, it is cut off or no JSON in UTF-8, or it has no such list or nothing in it.
    """
    count = 0
    with opened(url) as file:
        mark = next((mark for mark in _MARKS if file.peek(4).startswith(mark)), b"")
        if encoding := _MARKS.get(mark):
            raise InputError(f"{url} is {encoding}: save it as UTF-8")
        file.read(len(mark))
        try:
            for item in ijson.items(file, path, use_float=True):
                count += 1
                yield item
        except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
            reason = " ".join(_said(error).split())
            raise InputError(
                f"{url} is no complete JSON ({reason}): download it again; where you made it, write UTF-8, and null "
                "in place of NaN"
            ) from None
    if not count:
        where = f"no list '{path.removesuffix('.item')}'" if path != "item" else "no list"
        raise InputError(f"{url} has {where}, or nothing in it: it is another file than its name says")


def _said(error: Exception) -> str:
    """ijson quotes bytes that are no UTF-8 as bytes."""
    said = error.args[0] if error.args else ""
    return said.decode(errors="backslashreplace") if isinstance(said, bytes) else str(said)


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
    """A whole number from 0 on, also as text or with a fraction of 0, which tables with gaps make of it.

    Raises:
        BadValueError: it is null or something else.
    """
    if isinstance(value, str) and (digits := _DIGITS.fullmatch(value)):
        return int(digits[1])
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
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
