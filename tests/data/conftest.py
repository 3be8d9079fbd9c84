"""Small prepared data sets that the data tests share."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import BadRow, LazyRow, Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.writer import write_shards
from cmapkd_core.fields import override
from cmapkd_core.storage import disk

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


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the files of a data set are put: a folder, or a prefix on S3."""
    return str(tmp_path / "published") if request.param == "local" else request.getfixturevalue("s3_root")


@pytest.fixture
def publish(place: str) -> Callable[[dict[str, Any]], str]:
    """Files by name to `place`, what is no bytes as JSON; gives the URL."""

    def put(files: dict[str, Any]) -> str:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            storage.write_bytes(storage.join(place, name), data)
        return place

    return put


@pytest.fixture
def fail_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`fail_once(verb, name)`: a folder's disk fails at the first reading of what is called so."""

    def arrange(verb: str, name: str) -> None:
        whole, left = getattr(disk, verb), [OSError(errno.EIO, "Input/output error")]

        def failing(url: str, *rest: Any) -> Any:
            if url.endswith(name) and left:
                raise storage.StorageError(f"cannot read {url}: {disk.in_words(left.pop())}")
            return whole(url, *rest)

        monkeypatch.setattr(disk, verb, failing)

    return arrange


@pytest.fixture
def read_source() -> Callable[..., list[Row | BadRow]]:
    """`read_source(source, url, field=..)`: its rows with their pictures."""

    def read(source: str, url: str, **settings: Any) -> list[Row | BadRow]:
        rows = open_rows(override(DataConfig(source=source, url=url), settings))
        return [row.load() if isinstance(row, LazyRow) else row for row in rows]

    return read
