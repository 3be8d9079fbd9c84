"""Where rows come from: one file and one line of SOURCES each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import BadRow, Row
from cmapkd_core.data.sources.emoji import emoji_rows
from cmapkd_core.data.sources.folder import folder_rows
from cmapkd_core.data.sources.scenes import scene_rows
from cmapkd_core.fields import choose

SOURCES: dict[str, Callable[[DataConfig], Iterator[Row | BadRow]]] = {
    "emoji": emoji_rows,
    "folder": folder_rows,
    "scenes": scene_rows,
}


def open_rows(config: DataConfig) -> Iterator[Row | BadRow]:
    """The rows of the source that `config` names, at most `config.size` of them where that is not 0.

    Raises:
        InputError: unknown source, or what the source says of its input.
    """
    rows = choose("data source", config.source, SOURCES)(config)
    return islice(rows, config.size) if config.size else rows
