"""Files of one record a line, read a line at a time: JSON lines, CSV and TSV of any size.

A line or field that cannot be read is one bad record. Only where nobody knows which lines a fault has swallowed, and
where a file is in another encoding, the file is refused as a whole.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from typing import Any

from cmapkd_core.data.files import opened
from cmapkd_core.data.texts import BadValueError, decoded, encoding_of, json_object
from cmapkd_core.errors import InputError

LONGEST_LINE = 2**25  # bytes; of a longer one no more than this is held at a time
Record = tuple[int, dict[str, Any] | BadValueError]  # number of the (last) line, and fields or what is wrong with it


def byte_lines(file: BufferedReader) -> Iterator[bytes | BadValueError]:
    """The lines of a file with their ends; too long ones are passed over in pieces."""
    while line := file.readline(LONGEST_LINE):
        size, piece = len(line), line
        while len(piece) == LONGEST_LINE and not piece.endswith(b"\n"):
            piece = file.readline(LONGEST_LINE)
            size += len(piece)
        yield line if size == len(line) else BadValueError(f"the line has {size} bytes, more than {LONGEST_LINE}")


def lines(url: str) -> Iterator[str | BadValueError]:
    """The lines of a text with their ends, in an encoding as of `texts.decoded`.

    UTF-16 and UTF-32 are read whole: editors write them, and no tool that makes gigabytes.

    Raises:
        InputError: there is no such file, or it is in another encoding.
    """
    with opened(url) as file:
        if encoding_of(file.peek(4)[:4]) != "UTF-8":
            yield from _decoded(file.read(), url).splitlines(keepends=True)
            return
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
    """The objects of a file of JSON lines; empty lines are none.

    Raises:
        InputError: as of `lines`.
    """
    for number, line in enumerate(lines(url), start=1):
        if isinstance(line, BadValueError):
            yield number, line
        elif line.strip():
            try:
                yield number, json_object(line.rstrip("\r\n"))
            except BadValueError as error:
                yield number, error


def csv_records(url: str, check: Callable[[Sequence[str]], None]) -> Iterator[Record]:
    """The records of a CSV by the names in its first line; one of another length has None as a name or a value.

    Args:
        check: called with the columns; refuses a file that lacks one.

    Raises:
        InputError: as of `lines`; a quote that is closed on another line or never.
    """
    csv.field_size_limit(LONGEST_LINE)  # Python's own, 128 KiB, would end the file there
    long: list[BadValueError] = []
    table = csv.DictReader(_kept(lines(url), long), strict=True)
    try:
        check(table.fieldnames or [])
    except csv.Error as error:
        raise InputError(f"{url}, line {table.reader.line_num}: {error}: mend the quoting") from None
    while True:
        before, record = table.reader.line_num, None
        try:
            record = next(table, None)
        except csv.Error as error:
            if table.reader.line_num > before + 1:
                raise InputError(f"{url}, line {table.reader.line_num}: {error}: mend the quoting") from None
            long.append(BadValueError(f"{error}: mend the quoting"))
        yield from ((table.reader.line_num, reason) for reason in long)
        if record is not None:
            yield table.reader.line_num, record
        elif not long:
            return
        long.clear()


def _kept(read: Iterator[str | BadValueError], long: list[BadValueError]) -> Iterator[str]:
    """The lines, empty ones in place of those that are too long, which go to `long`."""
    for line in read:
        if isinstance(line, BadValueError):
            long.append(line)
        yield "\n" if isinstance(line, BadValueError) else line
