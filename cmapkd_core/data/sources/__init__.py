"""Where rows come from: one file and one row of catalog.SOURCES each."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from itertools import islice

from cmapkd_core.catalog import SOURCES, load
from cmapkd_core.config import DataConfig
from cmapkd_core.data.order import split_of
from cmapkd_core.data.rows import BadRow, Counted, Item, LazyRow


def open_rows(config: DataConfig) -> Counted:
    """The rows of the source that `config` names, the first `config.size` of them where that is not 0.

    Rows that are known to be of no split in `config.splits` are left out; the length is 0 where it is not known.

    Raises:
        InputError: unknown source, or what the source says of its input.
    """
    rows: Iterable[Item] = load("data source", config.source, SOURCES)(config)
    count = len(rows) if isinstance(rows, Sized) and not config.splits else 0
    if config.splits:
        rows = (row for row in rows if _wanted(row, config))
    if config.size:
        rows, count = islice(rows, config.size), min(count, config.size)
    return Counted(rows, count)


def _wanted(item: Item, config: DataConfig) -> bool:
    """False where the row's split is known before its picture is read, and not asked for."""
    if isinstance(item, BadRow):
        return not item.split or item.split in config.splits
    row = item.row if isinstance(item, LazyRow) else item
    split = row.split or (split_of(row.group, config.val_share, config.test_share) if row.group else "")
    return not split or split in config.splits
