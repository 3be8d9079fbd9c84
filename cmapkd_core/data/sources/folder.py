"""A folder of pictures (a path or s3://) with `captions.jsonl` or `captions.csv` beside them.

Columns: `key`, `file` (relative to the folder), `caption` or `captions` (one text, or a list of them, in a CSV as JSON
or Python write it), and optionally `class` and `split`. Several captions of a picture may also be rows with the same
key and file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from sys import intern
from typing import Any

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.files import below, picture, place
from cmapkd_core.data.rows import SPLITS, BadRow, Counted, LazyRow, Row, listed
from cmapkd_core.data.tables import csv_records, json_records
from cmapkd_core.data.texts import BadValueError, missing, optional, shown, texts
from cmapkd_core.errors import InputError

_Record = tuple[int, dict[str, Any]]  # line number and fields

CAPTIONS = ("captions.jsonl", "captions.csv")


@dataclass(slots=True)
class _Entry:
    """One picture as the captions file names it; `line` is where it first stands."""

    line: int
    key: str
    file: str
    captions: tuple[str, ...]
    class_name: str
    split: str


def folder_rows(config: DataConfig) -> Counted:
    """The rows of the folder `config.url`, in the order of its captions file.

    Raises:
        InputError: no folder, no captions file, two of them, one without the columns, or one that is no text.
        StorageError: the place cannot be reached.
    """
    url = place(config)
    entries = _merge(_parse(_captions_file(url)))
    return listed(entries, lambda entry: entry if isinstance(entry, BadRow) else _row(url, entry))


def _row(url: str, entry: _Entry) -> LazyRow:
    row = Row(entry.key, b"", entry.captions, entry.class_name, split=entry.split)
    return LazyRow(row, picture(url, entry.file))


# ---- the captions file ----------------------------------------------------------------------------


def _captions_file(url: str) -> str:
    """The captions file's URL."""
    found = [name for name in CAPTIONS if storage.exists(below(url, name))]
    if len(found) != 1:
        state = "has both captions.jsonl and captions.csv: keep one" if found else f"has no {' or '.join(CAPTIONS)}"
        raise InputError(f"the folder {url} {state}")
    return below(url, found[0])


def _parse(file: str) -> Iterator[_Record | BadRow]:
    """Line number and fields of every record, or what is wrong with the line."""
    is_csv = file.endswith(".csv")
    for line, record in csv_records(file, partial(_check_columns, file)) if is_csv else json_records(file):
        if isinstance(record, BadValueError):
            yield BadRow(f"(line {line})", str(record))
        elif is_csv and (None in record or None in record.values()):
            count = len([name for name in record if name is not None])
            yield BadRow(f"{shown(record['key'] or '(no key)')} (line {line})", f"the line has not {count} columns")
        else:
            yield line, record


def _check_columns(file: str, columns: Sequence[str]) -> None:
    if not {"key", "file"} <= set(columns) or not {"caption", "captions"} & set(columns):
        raise InputError(
            f"{file} has the columns {', '.join(columns) or '(none)'}; it needs key, file and caption or captions"
        )
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise InputError(f"{file} has the column {twice[0]} twice: rename one, or put all captions into one as a list")


def _merge(records: Iterable[_Record | BadRow]) -> list[_Entry | BadRow]:
    """Records with the same key and file become one entry in the place of the first; what is none becomes a BadRow."""
    entries: dict[str, _Entry] = {}
    found: list[_Entry | BadRow] = []
    for record in records:
        if isinstance(record, BadRow):
            found.append(record)
            continue
        line, fields = record
        try:
            entry = _entry(line, fields)
            first = entries.setdefault(entry.key, entry)
            if first is entry:
                found.append(entry)
            else:
                _extend(first, entry)
        except BadValueError as error:
            key = fields.get("key")
            found.append(BadRow(f"{'(no key)' if missing(key) else shown(key)} (line {line})", str(error)))
    return found


def _extend(first: _Entry, more: _Entry) -> None:
    if (first.file, first.class_name, first.split) != (more.file, more.class_name, more.split):
        raise BadValueError(f"duplicate key: line {first.line} has it with another file, class or split")
    first.captions += more.captions


def _entry(line: int, fields: dict[str, Any]) -> _Entry:
    """The entry of one record; raises BadValueError with the reason why it is none."""
    key, file, class_name, split = (_word(fields, name) for name in ("key", "file", "class", "split"))
    for name, value in (("key", key), ("file", file)):
        if not value:
            raise BadValueError(f"{name} is missing or empty")
    if split and split not in SPLITS:
        raise BadValueError(f"split '{shown(split)}' is none of {', '.join(SPLITS)}")
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "://" in file:
        raise BadValueError(f"file {shown(file)} leaves the folder: name it relative to the captions file")
    class_name, split = intern(" ".join(class_name.split())), intern(split)  # few, of millions of rows
    return _Entry(line, key, file, _captions(fields), class_name, split)


def _word(fields: dict[str, Any], name: str) -> str:
    """A field that may be missing, and a whole number too."""
    value = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return optional(value, name).strip()


def _captions(fields: dict[str, Any]) -> tuple[str, ...]:
    values = [value for name in ("captions", "caption") if (value := fields.get(name)) not in (None, "", [])]
    given = [value for value in values if not missing(value)] or values[:1] or [None]
    return tuple(one for value in given for one in texts(value))
