"""What a part of a data set has beside its own shards: what its rows are joined with those of the other parts by.

A part is the data set of some rows of a source that follow each other, as `write_shards` makes it of them. Beside it

part.json        shards in the order in which the index has them
rows-SPLIT.i64   number of the row of each sample, in the order of the split's shards; from 1 on, as quarantine.jsonl
unused.jsonl     row and key of what is in no shard although its key is new: of a split that is left out, or of none
asked.i64        numbers of the questions that could be used, also of pictures that are in no shard
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cmapkd_core import storage
from cmapkd_core.data.rows import SPLITS

PART, UNUSED, ASKED = "part.json", "unused.jsonl", "asked.i64"


def rows_file(split: str) -> str:
    """Name of the file with the rows of a split's samples."""
    return f"rows-{split}.i64"


class Notes:
    """Nothing is noted of a data set that is no part."""

    def asked(self, numbers: Iterable[int]) -> None:
        """A row has questions of these numbers."""

    def unused(self, row: int, key: str) -> None:
        """A row is in no shard, though no earlier one has its key."""

    def stored(self, split: str, row: int) -> None:
        """A row is the next sample of a split."""

    def sealed(self, shard: str) -> None:
        """A shard is complete, and its lines are the next of the index."""

    def close(self) -> None:
        """Complete the files."""


class PartNotes(Notes):
    """The files of a part."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out, self._shards = out, list[str]()
        self._asked, self._rows = array("q"), {split: array("q") for split in SPLITS}
        self._unused = open(out / UNUSED, "w", encoding="utf-8")  # noqa: SIM115  closed by close()

    def asked(self, numbers: Iterable[int]) -> None:
        """As of `Notes`."""
        self._asked.extend(numbers)

    def unused(self, row: int, key: str) -> None:
        """As of `Notes`."""
        print(json.dumps([row, key]), file=self._unused)

    def stored(self, split: str, row: int) -> None:
        """As of `Notes`."""
        self._rows[split].append(row)

    def sealed(self, shard: str) -> None:
        """As of `Notes`."""
        self._shards.append(shard)

    def __enter__(self) -> PartNotes:
        return self

    def __exit__(self, *raised: object) -> None:
        self._unused.close()

    def close(self) -> None:
        """Write what was noted."""
        self._unused.close()
        for name, numbers in [(ASKED, self._asked), *((rows_file(split), rows) for split, rows in self._rows.items())]:
            (self._out / name).write_bytes(np.asarray(numbers, "<i8").tobytes())
        storage.write_json(str(self._out / PART), {"shards": self._shards})
