"""What a report is made from: artifacts by name, any of which may be missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cmapkd_core.config import Recipe


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
        if not self.url:
            raise Missing(f"Missing: the report was given no {self.name} artifact, which would hold {file}.")
        if file not in self.files:
            raise Missing(f"Missing: the {self.name} artifact {self.url} holds no {file}.")
        return self.fetch(file)

    def json(self, file: str) -> Any:
        """A JSON file's value."""
        return json.loads(self.path(file).read_text(encoding="utf-8"))

    def parquet(self, file: str) -> pa.Table:
        """A parquet file's table."""
        return pq.read_table(self.path(file))

    def head(self, file: str, rows: int, columns: list[str]) -> pa.Table:
        """The first rows of a parquet file's columns, without reading the others."""
        reader = pq.ParquetFile(self.path(file))
        batches = [next(reader.iter_batches(rows, columns=columns))] if reader.metadata.num_rows else []
        return pa.Table.from_batches(batches, reader.schema_arrow.empty_table().select(columns).schema)


def no_pictures(key: str) -> bytes:
    """`Inputs.picture` where there are no shards.

    Raises:
        Missing: always.
    """
    raise Missing("Missing: the report was given no shards artifact, which would hold the pictures.")


@dataclass(frozen=True)
class Inputs:
    """A run, its recipe and its artifacts."""

    recipe: Recipe
    ablation: str
    run: str
    sources: dict[str, Source]
    picture: Callable[[str], bytes]  # key -> the encoded image; raises Missing

    def source(self, name: str) -> Source:
        """The artifact of that name; one that was not given has no file."""
        return self.sources.get(name, Source(name))

    def first(self, file: str, *names: str) -> Source:
        """The first of the named artifacts that holds `file`.

        Raises:
            Missing: none does.
        """
        for name in names:
            if file in self.source(name).files:
                return self.source(name)
        raise Missing(f"Missing: none of the artifacts {', '.join(names)} was given with {file} in it.")
