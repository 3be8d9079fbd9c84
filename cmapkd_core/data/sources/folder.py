"""A folder of pictures (a path or s3://) with `captions.jsonl` beside them, or a file of another of the names below.

Fields: `file` (relative to the folder), `caption` or `captions` (one text, or a list of them, in a table as JSON or
Python write it), and optionally `key`, `class` and `split`; other tools' names of the first two are known (`columns`).
Where no row has a key the file's name is the key. Several captions of a picture may also be rows with the same key and
file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import PurePosixPath
from sys import intern
from typing import Any

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.columns import RIGHT, fields_of, renamed
from cmapkd_core.data.files import below, picture, place
from cmapkd_core.data.rows import SPLITS, BadRow, Counted, LazyRow, Row, listed
from cmapkd_core.data.tables import Record, csv_records, json_records
from cmapkd_core.data.texts import BadValueError, missing, optional, shown, texts
from cmapkd_core.errors import InputError

_Record = tuple[int, dict[str, Any]]  # line number and fields

CAPTIONS = ("captions.jsonl", "captions.csv", "captions.tsv")
OTHERS = ("metadata.jsonl", "metadata.csv")  # Hugging Face's names, where there is none of CAPTIONS
_TABLES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
_KEY = "(none)"  # in place of a field's name
_PEEK = 20  # records by which the fields of JSON lines are known
_SHOWN = 6  # names of files in a message


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
    for names in (CAPTIONS, OTHERS):
        existing = [name for name in names if storage.exists(below(url, name))]
        if len(existing) > 1:
            raise InputError(f"the folder {url} has {' and '.join(existing)}: keep one")
        if existing:
            return below(url, existing[0])
    raise InputError(
        f"the folder {url} has no {CAPTIONS[0]} and none of {', '.join((*CAPTIONS[1:], *OTHERS))}; {_there(url)} "
        f"{CAPTIONS[0]} has one line for each picture, such as {RIGHT}"
    )


def _there(url: str) -> str:
    """What the folder has in place of a captions file."""
    names = storage.a_few(url, 1000)
    if not names:
        return "there is no file in it."
    listed = ", ".join(map(shown, names[:_SHOWN])) + (", .." if len(names) > _SHOWN else "")
    tables = [name for name in names if name.endswith(_TABLES)]
    named = f" Where {shown(tables[0])} has the captions, move it there under one of these names." if tables else ""
    return f"it has {listed}.{named}"


def _parse(file: str) -> Iterator[_Record | BadRow]:
    """Line number and fields by our names of every record, or what is wrong with the line."""
    is_table = file.endswith((".csv", ".tsv"))
    names: dict[str, str] = {}

    def check(columns: Sequence[str]) -> None:
        names.update(_names(columns, file))

    records = csv_records(file, check) if is_table else _checked(json_records(file), check)
    for line, record in records:
        if isinstance(record, BadValueError):
            yield BadRow(f"(line {line})", str(record))
        elif is_table and (None in record or None in record.values()):
            count = len([name for name in record if name is not None])
            key = renamed(record, names).get("key")
            yield BadRow(f"{shown(key or '(no key)')} (line {line})", f"the line has not {count} columns")
        else:
            fields = renamed(record, names)
            yield line, fields if _KEY not in names else fields | {"key": fields.get("file")}


def _names(columns: Sequence[str], file: str) -> dict[str, str]:
    """As of `columns.fields_of`; _KEY is among them where no record has a key."""
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise InputError(f"{file} has the column {twice[0]} twice: rename one, or put all captions into one as a list")
    return fields_of(columns, file) | ({} if "key" in columns else {_KEY: "key"})


def _checked(records: Iterator[Record], check: Callable[[Sequence[str]], None]) -> Iterator[Record]:
    """JSON lines, whose names are those of the first _PEEK records; `check` is called with them."""
    first = list(islice(records, _PEEK))
    names = {name: None for _, record in first if isinstance(record, dict) for name in record}
    if names:  # else each of them is a bad row
        check(list(names))
    return chain(first, records)


def _merge(records: Iterable[_Record | BadRow]) -> list[_Entry | BadRow]:
    """Records with the same key and file become one entry in the place of the first; what is none becomes a BadRow."""
    entries: dict[str, _Entry] = {}
    merged: list[_Entry | BadRow] = []
    for record in records:
        if isinstance(record, BadRow):
            merged.append(record)
            continue
        line, fields = record
        try:
            entry = _entry(line, fields)
            first = entries.setdefault(entry.key, entry)
            if first is entry:
                merged.append(entry)
            else:
                _extend(first, entry)
        except BadValueError as error:
            key = fields.get("key")
            merged.append(BadRow(f"{'(no key)' if missing(key) else shown(key)} (line {line})", str(error)))
    return merged


def _extend(first: _Entry, more: _Entry) -> None:
    if (first.file, first.class_name, first.split) != (more.file, more.class_name, more.split):
        raise BadValueError(f"duplicate key: line {first.line} has it with another file, class or split")
    first.captions += more.captions


def _entry(line: int, fields: dict[str, Any]) -> _Entry:
    """The entry of one record; raises BadValueError with the reason why it is none."""
    file, key, class_name, split = (_word(fields, name) for name in ("file", "key", "class", "split"))
    for name, value in (("file", file), ("key", key)):
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
