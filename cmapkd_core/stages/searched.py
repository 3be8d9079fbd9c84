"""The command that searches a run's pictures with its student: one place for the report and the end of a local run."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from cmapkd_core.commands import CONSOLE
from cmapkd_core.data.layout import INDEX
from cmapkd_core.errors import InputError
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.storage import StorageError

QUERY = "a red mug"  # where the data has no caption
LONGEST = 60  # characters of a query


def search_command(export: str, shards: str, data: str, console: Sequence[str] = (CONSOLE,)) -> str:
    """A line for a shell; "" where the data cannot be read.

    Args:
        export: URL of the exported student.
        shards: URL of the prepared data, "" of a run without.
        data: as `--data` of the run: a folder of this machine is searched itself, of other data what was prepared.
        console: the words for the console command.
    """
    if not shards:
        return ""
    try:
        prepared = Artifact.open(shards)
        query = first_caption(prepared)
    except (InputError, StorageError):
        return ""
    return shlex.join([*console, "search", export, _pictures(data) or prepared.url, query])


def _pictures(data: str) -> str:
    """The folder of this machine whose pictures the data are, as every working directory finds it; "" of other data."""
    source, _, place = data.partition(":")
    return str(Path(place).absolute()) if source == "folder" and "://" not in place and Path(place).is_dir() else ""


def first_caption(prepared: Artifact) -> str:
    """A caption of a test picture to search by, the same always and not too long; of another one where none is."""
    by_split: dict[str, str] = {}
    for rows in pq.ParquetFile(prepared.fetch(INDEX)).iter_batches(columns=["split", "captions"]):
        for split, captions in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            if captions and split not in by_split:
                by_split[split] = textwrap.shorten(captions[0], LONGEST, placeholder="").lstrip("-")  # no option
        if "test" in by_split:
            break
    return by_split.get("test") or next(filter(None, by_split.values()), QUERY)
