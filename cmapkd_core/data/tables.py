"""Files of one record a line, read a line at a time: JSON lines, CSV and TSV of any size.

A line or field that cannot be read is one bad record. Only where nobody knows which lines a fault has swallowed, and
where a file is in another encoding, the file is refused as a whole.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader, RawIOBase, StringIO
from itertools import chain
from typing import Any

from cmapkd_core.data.annotations import json_items
from cmapkd_core.data.files import opened
from cmapkd_core.data.texts import BadValueError, decoded, encoding_of, json_object
from cmapkd_core.errors import InputError

log = logging.getLogger(__name__)

LONGEST_LINE = 2**25  # bytes; of a longer one no more than this is held at a time
_HEAD = 2**13  # bytes, in which the first line of a table ends
_OF_OBJECTS = re.compile(r"\s*\[\s*(\{|\Z)")
Record = tuple[int, dict[str, Any] | BadValueError]  # number of the (last) line, and fields or what is wrong with it


def byte_lines(file: BufferedReader) -> Iterator[bytes | BadValueError]:
    """The lines of a file with their ends; too long ones are passed over in pieces."""
    while line := file.readline(LONGEST_LINE):
        size, piece = len(line), line
        while len(piece) == LONGEST_LINE and not piece.endswith(b"\n"):
            piece = file.readline(LONGEST_LINE)
            size += len(piece)
        yield line if size == len(line) else BadValueError(f"the line has {size} bytes, more than {LONGEST_LINE}")


class _Newlines(RawIOBase):
    """A file whose lines end with a carriage return alone, each of which is read as a line feed."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(data)] = data
        return len(data)

    def tell(self) -> int:
        return self._file.tell()


def _ends_in_returns(head: str | bytes) -> bool:
    """Whether the beginning of a table has lines as Excel's "CSV (Macintosh)" ends them."""
    one, other = ("\r", "\n") if isinstance(head, str) else (b"\r", b"\n")
    return one in head[:-1] and other not in head  # type: ignore[operator]


def lines(url: str, returns: bool = False) -> Iterator[str | BadValueError]:
    """The lines of a text with their ends, in an encoding as of `texts.decoded`; U+2028 and the like end none.

    UTF-16 and UTF-32 are read whole: editors write them, and no tool that makes gigabytes.

    Args:
        returns: a file without line feeds may have carriage returns in their place.

    Raises:
        InputError: there is no such file, or it is in another encoding.
    """
    with opened(url) as file:
        yield from _lines(file, url, returns)


def _lines(file: BufferedReader, url: str, returns: bool = False) -> Iterator[str | BadValueError]:
    if encoding_of(file.peek(4)[:4]) != "UTF-8":
        text = _decoded(file.read(), url)
        yield from StringIO(text.replace("\r", "\n") if returns and _ends_in_returns(text) else text, newline="\n")
        return
    if returns and _ends_in_returns(file.peek(_HEAD)):
        file = BufferedReader(_Newlines(file))
    place = 0
    for number, line in enumerate(byte_lines(file), start=1):
        if isinstance(line, BadValueError):
            yield line
            place = file.tell()
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            where = f"at byte {place + error.start}, line {number}"
            raise InputError(f"{url} is not UTF-8 ({error.reason} {where}): save it as UTF-8") from None
        yield text.removeprefix("\ufeff") if number == 1 else text
        place += len(line)


def _decoded(data: bytes, url: str) -> str:
    try:
        return decoded(data, url)
    except BadValueError as error:
        raise InputError(f"{error}: save it as UTF-8") from None


def json_records(url: str) -> Iterator[Record]:
    """The objects of a file of JSON lines; empty lines are none. Of a file that is one JSON list its entries.

    Raises:
        InputError: as of `lines`; of a list as of `json_items`.
    """
    with opened(url) as file:
        if not _is_a_list(file):
            yield from _objects(_lines(file, url))
            return
    log.warning("%s is one JSON list: its entries are counted as lines", url)
    for number, entry in enumerate(json_items(url, "item"), start=1):
        yield number, entry if isinstance(entry, dict) else BadValueError("no JSON object")


def _is_a_list(file: BufferedReader) -> bool:
    """Whether a file begins as one list of objects does: no line of JSON lines is `[` alone, or holds objects so."""
    head = file.peek(_HEAD)[:_HEAD]
    return bool(_OF_OBJECTS.match(head.decode(encoding_of(head), "ignore").removeprefix("\ufeff")))


def _objects(read: Iterator[str | BadValueError]) -> Iterator[Record]:
    for number, line in enumerate(read, start=1):
        if isinstance(line, BadValueError):
            yield number, line
        elif line.strip():
            try:
                yield number, json_object(line.rstrip("\r\n"))
            except BadValueError as error:
                yield number, error


def csv_records(url: str, check: Callable[[Sequence[str]], None]) -> Iterator[Record]:
    """The records of a CSV by the names in its first line; one of another length has None as a name or a value.

    What separates the names there, commas, tabs or semicolons, separates the values too.

    Args:
        check: called with the columns; refuses a file that lacks one.

    Raises:
        InputError: as of `lines`; a quote that is closed on another line or never, with the line where its record
            begins.
    """
    csv.field_size_limit(LONGEST_LINE)  # Python's own, 128 KiB, would end the file there
    long: list[BadValueError] = []
    read = _kept(lines(url, returns=True), long)
    first_line = next(read, "")
    table = csv.reader(chain([first_line], read), strict=True, delimiter=_separator(first_line))
    try:
        columns = next(table, [])
    except csv.Error as error:
        raise InputError(f"{url}, line 1: {error}: mend the quoting") from None
    check(columns)
    while True:
        first, values = table.line_num + 1, None
        try:
            values = next(table, None)
        except csv.Error as error:
            if table.line_num > first:
                raise InputError(f"{url}, line {first}: {error}: mend the quoting of the record there") from None
            long.append(BadValueError(f"{error}: mend the quoting"))
        yield from ((table.line_num, reason) for reason in long)
        if values:
            yield table.line_num, _named(columns, values)
        elif values is None and not long:
            return
        long.clear()


def _separator(first_line: str) -> str:
    return max(",\t;", key=first_line.count)  # of several the first


def _named(columns: Sequence[str], values: list[str]) -> dict[Any, Any]:
    """As of csv.DictReader, which cannot say where a record begins: it passes over empty lines itself."""
    named: dict[Any, Any] = dict(zip(columns, values, strict=False))
    named |= dict.fromkeys(columns[len(values) :])
    return named | ({None: values[len(columns) :]} if len(values) > len(columns) else {})


def _kept(read: Iterator[str | BadValueError], long: list[BadValueError]) -> Iterator[str]:
    """The lines, empty ones in place of those that are too long, which go to `long`."""
    for line in read:
        if isinstance(line, BadValueError):
            long.append(line)
        yield "\n" if isinstance(line, BadValueError) else line
