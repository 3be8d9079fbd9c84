"""Where rows come from: one file and one row of catalog.SOURCES each."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from itertools import islice

from cmapkd_core.catalog import SOURCES, load
from cmapkd_core.config import DataConfig
from cmapkd_core.data.order import split_of
from cmapkd_core.data.rows import BadRow, Counted, Item, LazyRow, Partition


def open_rows(config: DataConfig, part: Partition | None = None) -> Counted:
    """The rows of the source that `config` names, the first `config.size` of them where that is not 0.

    Rows that are known to be of no split in `config.splits` are left out; the length is 0 where it is not known.

    Args:
        part: only its rows. Of some sources nobody knows how many rows lie before it, so that all partitions together
            may have more than `config.size`; who joins them (`joined_parts`) counts.

    Raises:
        InputError: unknown source, or what the source says of its input.
    """
    make = load("data source", config.source, SOURCES)
    rows: Iterable[Item] = make(config)
    count = len(rows) if isinstance(rows, Sized) and not config.splits else 0
    if part is not None:
        most = 0 if config.splits else config.size
        total = len(rows) if isinstance(rows, Sized) else sum(1 for _ in make(config))
        rows, count = _partition(rows, part, total, most), count // part.of
    if config.splits:
        rows = (row for row in rows if _wanted(row, config))
    if config.size:
        rows, count = islice(rows, config.size), min(count, config.size)
    return Counted(rows, count)


def _partition(rows: Iterable[Item], part: Partition, total: int, most: int) -> Iterable[Item]:
    """The rows of a partition of `total`, of which the first `most` are wanted; 0: all of them.

    The last one has all that follows, since `total` may be a little less than there are.
    """
    if isinstance(rows, Counted) and rows.slices is not None:
        return rows.slices(part, most)
    bounded = 0 < most <= total
    first, last = part.bounds(most if bounded else total)
    return islice(rows, first, None if part.is_last and not bounded else last)


def _wanted(item: Item, config: DataConfig) -> bool:
    """False where the row's split is known before its picture is read, and not asked for."""
    if isinstance(item, BadRow):
        return not item.split or item.split in config.splits
    row = item.row if isinstance(item, LazyRow) else item
    split = row.split or (split_of(row.group, config.val_share, config.test_share) if row.group else "")
    return not split or split in config.splits
