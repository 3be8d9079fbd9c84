"""A folder of pictures (a path or s3://) with `captions.jsonl` or `captions.csv` beside them.

Columns: `key`, `file` (relative to the folder), `caption` or `captions` (one text, or a JSON list), and
optionally `class` and `split`. Several captions of a picture may also be rows with the same key and file.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.files import picture, place
from cmapkd_core.data.rows import SPLITS, BadRow, Counted, LazyRow, Row
from cmapkd_core.errors import InputError

_Record = tuple[int, dict[str, Any]]  # line number and fields

CAPTIONS = ("captions.jsonl", "captions.csv")


@dataclass
class _Entry:
    """One picture as the captions file names it; `line` is where it first stands."""

    line: int
    key: str
    file: str
    captions: list[str] = field(default_factory=list)
    class_name: str = ""
    split: str = ""


def folder_rows(config: DataConfig) -> Counted:
    """The rows of the folder `config.url`, in the order of its captions file.

    Raises:
        InputError: no folder, no captions file, two of them, one without the columns, or one that is no text.
        StorageError: the place cannot be reached.
    """
    url = place(config, "pictures and captions.jsonl")
    entries, bad = _merge(_parse(*_captions_file(url)))
    return Counted(chain(bad, (_row(url, entry) for entry in entries)), len(bad) + len(entries))


def _row(url: str, entry: _Entry) -> LazyRow:
    row = Row(entry.key, b"", tuple(entry.captions), entry.class_name, split=entry.split)
    return LazyRow(row, picture(url, entry.file))


# ---- the captions file ----------------------------------------------------------------------------


def _captions_file(url: str) -> tuple[str, str]:
    """The captions file's URL and its text."""
    found = [name for name in CAPTIONS if storage.exists(storage.join(url, name))]
    if len(found) != 1:
        state = "has both captions.jsonl and captions.csv: keep one" if found else f"has no {' or '.join(CAPTIONS)}"
        raise InputError(f"the folder {url} {state}")
    file = storage.join(url, found[0])
    try:
        return file, storage.read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None


def _parse(file: str, text: str) -> Iterator[_Record | BadRow]:
    """Line number and fields of every record, or what is wrong with the line."""
    if file.endswith(".csv"):
        yield from _parse_csv(file, text)
        return
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except ValueError as error:
            yield BadRow(f"(line {line})", f"no JSON: {error}")
            continue
        yield (line, record) if isinstance(record, dict) else BadRow(f"(line {line})", "no JSON object")


def _parse_csv(file: str, text: str) -> Iterator[_Record | BadRow]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        if not {"key", "file"} <= set(columns) or not {"caption", "captions"} & set(columns):
            raise InputError(
                f"{file} has the columns {', '.join(columns) or '(none)'}; it needs key, file and caption or captions"
            )
        for record in reader:
            if None in record or None in record.values():
                yield BadRow(f"{record['key']} (line {reader.line_num})", f"the line has not {len(columns)} columns")
            else:
                yield reader.line_num, record
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: {error}: mend the quoting") from None


def _merge(records: Iterable[_Record | BadRow]) -> tuple[list[_Entry], list[BadRow]]:
    """Records with the same key and file become one entry; what is no entry becomes a BadRow."""
    entries: dict[str, _Entry] = {}
    bad: list[BadRow] = []
    for record in records:
        if isinstance(record, BadRow):
            bad.append(record)
            continue
        line, fields = record
        try:
            entry = _entry(line, fields)
            first = entries.setdefault(entry.key, entry)
            if first is not entry:
                _extend(first, entry)
        except InputError as error:
            bad.append(BadRow(f"{fields.get('key') or '(no key)'} (line {line})", str(error)))
    return list(entries.values()), bad


def _extend(first: _Entry, more: _Entry) -> None:
    if (first.file, first.class_name, first.split) != (more.file, more.class_name, more.split):
        raise InputError(f"duplicate key: line {first.line} has it with another file, class or split")
    first.captions.extend(more.captions)


def _entry(line: int, fields: dict[str, Any]) -> _Entry:
    """The entry of one record; raises InputError with the reason why it is none."""
    values: dict[str, str] = {}
    for name in ("key", "file", "class", "split"):
        value = fields.get(name, "")
        if value is not None and not isinstance(value, str | int):
            raise InputError(f"{name} is no text: {value!r}")
        values[name] = "" if value is None else str(value).strip()
    for name in ("key", "file"):
        if not values[name]:
            raise InputError(f"{name} is missing or empty")
    if values["split"] and values["split"] not in SPLITS:
        raise InputError(f"split '{values['split']}' is none of {', '.join(SPLITS)}")
    path = PurePosixPath(values["file"])
    if path.is_absolute() or ".." in path.parts or "://" in values["file"]:
        raise InputError(f"file {values['file']} leaves the folder: name it relative to the captions file")
    return _Entry(line, values["key"], values["file"], _captions(fields), values["class"], values["split"])


def _captions(fields: dict[str, Any]) -> list[str]:
    value = fields.get("captions") or fields.get("caption")
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):  # a caption may begin with a bracket
            value = json.loads(value)
    texts = [value] if isinstance(value, str) else value
    if not texts:
        raise InputError("caption is missing or empty")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"captions are no text and no list of texts: {value!r}")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise InputError(f"caption {number} of {len(texts)} is empty")
    return texts
