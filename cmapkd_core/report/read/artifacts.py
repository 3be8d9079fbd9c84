"""An artifact of a report, of which any file may be missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmapkd_core.data.index import parts_of

_ROWS = 1 << 14  # of a table in memory at a time, where some are looked for


class Missing(Exception):
    """An input that a section needs is not there; the message is the sentence that the reader gets."""


@dataclass(frozen=True)
class Source:
    """One input artifact of the report."""

    name: str  # the stage's argument, such as "student_eval"
    url: str = ""  # "": not given
    files: frozenset[str] = frozenset()
    fetch: Callable[[str], Path] = Path

    def path(self, file: str) -> Path:
        """A readable local copy of one of the artifact's files.

        Raises:
            Missing: the artifact was not given, or it has no such file.
        """
        if reason := self.lack(file):
            raise Missing(reason)
        return self.fetch(file)

    def lack(self, file: str) -> str:
        """Why there is no such file: the sentence that the reader gets; "" where there is one."""
        if not self.url:
            return f"Missing: the report was given no {self.name} artifact, which would hold {file}."
        return "" if file in self.files else f"Missing: the {self.name} artifact {self.url} holds no {file}."

    def json(self, file: str) -> Any:
        """A JSON file's value."""
        return json.loads(self.path(file).read_text(encoding="utf-8"))

    def parquet(self, file: str) -> pa.Table:
        """A parquet file's table."""
        return pq.read_table(self.path(file))

    def head(self, file: str, rows: int, columns: list[str] | None = None) -> pa.Table:
        """The first rows of a parquet file's columns, without reading others; None: of all columns."""
        with pq.ParquetFile(self.path(file)) as reader:
            empty = reader.schema_arrow.empty_table()
            table = empty.select(columns) if columns else empty
            for batch in reader.iter_batches(rows, columns=columns):
                if table.num_rows >= rows:
                    break
                table = pa.concat_tables([table, pa.Table.from_batches([batch])])
        return table.slice(0, rows)

    def rows(self, file: str, columns: list[str], which: pc.Expression) -> pa.Table:
        """The rows of a parquet file that an expression of these columns chooses, without holding the others."""
        path = self.path(file)
        parts = [part.filter(which) for part in parts_of(path, _ROWS, columns)]
        return pa.concat_tables(parts) if parts else pq.read_table(path, columns=columns)


@dataclass(frozen=True)
class Commands:
    """Words of commands for the shell; () and "" where they are not known.

    start: of such a run or suite, without its name. suite: of a suite over its recipe, without that suite's name.
    export: the whole command that exports the student.
    """

    start: tuple[str, ...] = ()
    suite: tuple[str, ...] = ()
    export: str = ""


def no_pictures(key: str) -> bytes:
    """`RunInputs.picture` where there are no shards.

    Raises:
        Missing: always.
    """
    raise Missing("Missing: the report was given no shards artifact, which would hold the pictures.")
