"""Where rows come from: one file and one line of SOURCES each, and the name in `config.SOURCES`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from itertools import islice

from cmapkd_core.config import DataConfig
from cmapkd_core.data.order import split_of
from cmapkd_core.data.rows import BadRow, Counted, Item, LazyRow
from cmapkd_core.data.sources.cc3m import cc3m_rows
from cmapkd_core.data.sources.coco import coco_rows
from cmapkd_core.data.sources.easy_vqa import easy_vqa_rows
from cmapkd_core.data.sources.emoji import emoji_rows
from cmapkd_core.data.sources.flickr30k import flickr30k_rows
from cmapkd_core.data.sources.folder import folder_rows
from cmapkd_core.data.sources.imagenet import imagenet_rows
from cmapkd_core.data.sources.img2dataset import img2dataset_rows
from cmapkd_core.data.sources.scenes import scene_rows
from cmapkd_core.data.sources.scenes_vqa import scene_vqa_rows
from cmapkd_core.data.sources.stamps import stamp_rows
from cmapkd_core.data.sources.visual_genome import visual_genome_rows
from cmapkd_core.data.sources.vqav2 import vqav2_rows
from cmapkd_core.fields import choose

# A source that knows the number of its rows gives something with a length, such as rows.Counted.
SOURCES: dict[str, Callable[[DataConfig], Iterable[Item]]] = {
    "cc3m": cc3m_rows,
    "coco": coco_rows,
    "easy_vqa": easy_vqa_rows,
    "emoji": emoji_rows,
    "flickr30k": flickr30k_rows,
    "folder": folder_rows,
    "imagenet": imagenet_rows,
    "img2dataset": img2dataset_rows,
    "scenes": scene_rows,
    "scenes_vqa": scene_vqa_rows,
    "stamps": stamp_rows,
    "visual_genome": visual_genome_rows,
    "vqav2": vqav2_rows,
}

# Drawings on plain ground, which look alike without being copies: the gate leaves out its perceptual check.
DRAWINGS = frozenset({"easy_vqa", "emoji", "scenes", "scenes_vqa", "stamps"})


def open_rows(config: DataConfig) -> Counted:
    """The rows of the source that `config` names, the first `config.size` of them where that is not 0.

    Rows that are known to be of no split in `config.splits` are left out; the length is 0 where it is not known.

    Raises:
        InputError: unknown source, or what the source says of its input.
    """
    rows = choose("data source", config.source, SOURCES)(config)
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
