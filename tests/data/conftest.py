"""Small prepared data sets that the data tests share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import BadRow, Row
from cmapkd_core.data.shards import ShardSet, write_shards
from cmapkd_core.data.sources import open_rows
from cmapkd_core.fields import override

SCENES = DataConfig(source="scenes", size=96, samples_per_shard=16, val_share=0.15, test_share=0.15)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def scenes_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prepared data set of 96 scenes in shards of 16."""
    out = tmp_path_factory.mktemp("scenes")
    write_shards(open_rows(SCENES), out, SCENES, lambda seen: None)
    return str(out)


@pytest.fixture
def scenes(scenes_url: str, tmp_path: Path) -> ShardSet:
    return ShardSet.open(scenes_url, tmp_path / "cache")


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Encoded bytes of a plain picture."""

    def make(
        width: int = 20, height: int = 16, colour: tuple[int, ...] = (200, 30, 30), kind: str = "PNG", **options: object
    ) -> bytes:
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[len(colour)]
        file = io.BytesIO()
        Image.new(mode, (width, height), colour).save(file, kind, **options)
        return file.getvalue()

    return make


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., ShardSet]:
    """Rows (and settings of DataConfig) to an open data set."""

    def make(rows: list[Row | BadRow], **settings: float) -> ShardSet:
        out = tmp_path / "prepared"
        write_shards(rows, out, override(DataConfig(), settings), lambda seen: None)
        return ShardSet.open(str(out), tmp_path / "cache")

    return make
