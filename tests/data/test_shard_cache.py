"""Data sets on S3 that are larger than the disk: copies come a block ahead and go within a bound."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data import ahead, order, shard_cache
from cmapkd_core.data.augment import View
from cmapkd_core.data.copies import machine_folder
from cmapkd_core.data.fixed_crops import TeacherCache, write_part
from cmapkd_core.data.loader import Batch, Side, TrainLoader
from cmapkd_core.data.shard_cache import GB, NoRoomError, RemoteFile, ShardCache
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.stored_parts import StoredParts
from cmapkd_core.data.writer import write_shards
from cmapkd_core.errors import InputError

DATA = DataConfig(source="scenes", size=80, samples_per_shard=4, val_share=0.1, test_share=0.1)
S3 = "s3://bucket/set"
MADE_FROM = {"shards": "abc"}
fork = multiprocessing.get_context("fork")


class Server:
    """A folder that is read as S3: its downloads are noted, and the most bytes that were on the disk meanwhile."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder, self._log, self.seconds = folder, temporary / "log", 0.0

    def fetch(self, url: str, target: Path) -> Path:
        if "://" not in url:
            return Path(url)
        name = url.removeprefix(f"{S3}/")
        with self._log.open("a") as file:
            file.write(f"{name} {os.getpid()}\n")
        data = (self.folder / name).read_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data[: len(data) // 2])
        time.sleep(self.seconds)
        target.write_bytes(data)
        self._note()
        return target

    def _note(self) -> None:
        """Bytes of shards and parts, whole or being fetched."""
        sizes = {}
        with shard_cache._ledger():  # else one that goes meanwhile would count, and what comes for it too
            for place, _, names in os.walk(machine_folder()):  # passes over folders that go meanwhile
                for name in (name for name in names if name.endswith((".tar", ".safetensors"))):
                    with suppress(FileNotFoundError):
                        found = os.stat(f"{place}/{name}")
                        sizes[found.st_ino] = found.st_size  # of one that moves to its place just now, once
        with self._log.with_name("sizes").open("a") as file:
            file.write(f"{sum(sizes.values())}\n")

    @property
    def downloads(self) -> list[str]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line.split()[0] for line in lines if not line.startswith("index")]

    @property
    def most(self) -> int:
        return max(map(int, self._log.with_name("sizes").read_text().split()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small-shards")
    write_shards(open_rows(DATA), out, DATA, lambda seen: None)
    return out


@pytest.fixture
def server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """`folder` at S3, read in blocks of two shards by a machine that has no copies yet."""
    short = Path(tempfile.mkdtemp(prefix="c"))  # workers have a socket there, whose path must be short
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    monkeypatch.setattr(order, "BLOCK_SHARDS", 2)
    monkeypatch.setattr(ahead, "_PAUSE", 0.02)
    made = Server(folder, tmp_path)
    monkeypatch.setattr(storage, "fetch", made.fetch)
    read = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda url: read(url.replace(S3, str(folder))))
    yield made
    for thread in threading.enumerate():  # else the next test would see their last downloads
        if thread.name == "ahead":
            thread.join(10)
    shutil.rmtree(short)


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(text)] for text in texts])


def loader(shards: ShardSet, **changes: object) -> TrainLoader:
    view = View(8, (0.5,) * 3, (0.5,) * 3)
    settings: dict[str, object] = {"batch": 4, "rank": 0, "world": 1, "seed": 3, "fraction": 1.0, "workers": 0}
    settings |= {"crop_scale": (0.5, 1.0), "max_pixels": 10**6, "quarantine_bound": 0.0}
    return TrainLoader(shards, {"student": Side(view, tokenize)}, **{**settings, **changes})  # type: ignore[arg-type]


def opened(bound: int = 0) -> ShardSet:
    return ShardSet.open(S3, machine_folder() / "set", bound=bound)


def largest(shards: ShardSet, count: int) -> int:
    """Bytes of the `count` largest training shards."""
    return sum(sorted(file.bytes for file in train_files(shards))[-count:])


def train_files(shards: ShardSet) -> list[RemoteFile]:
    return [shards.remote[entry["file"]] for entry in shards.manifest["splits"]["train"]["shards"]]


def same(ours: Iterator[Batch], theirs: Iterator[Batch]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    pixels = all(torch.equal(a.images["student"], b.images["student"]) for a, b in pairs)
    return bool(pairs) and pixels and all(a.keys == b.keys for a, b in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_reads_each_shard_once_within_the_bound(server: Server, folder: Path, workers: int) -> None:
    here = loader(ShardSet.open(str(folder), folder))
    # Two blocks of two shards, and as many as workers may be ahead by: the second number of a refusal.
    bound = largest(opened(), 4 if not workers else 8)
    there = loader(opened(bound), workers=workers)
    steps = there.steps_per_epoch
    assert same(there.batches(0, steps), here.batches(0, steps))
    names = [file.name for file in train_files(opened())]
    assert Counter(server.downloads) == Counter(names)
    assert len(names) >= 12
    assert server.most <= bound < sum(file.bytes for file in train_files(opened()))


def test_a_resumed_stream_goes_on_as_it_would_have(server: Server, folder: Path) -> None:
    here, there = loader(ShardSet.open(str(folder), folder)), loader(opened(largest(opened(), 2)))
    first, last = here.steps_per_epoch - 3, here.steps_per_epoch + 4
    assert same(there.batches(first, last), here.batches(first, last))
    assert server.most <= there._items.shards.room.bound


def test_the_next_block_is_there_before_it_is_read(server: Server) -> None:
    stream = loader(opened(largest(opened(), 4)))
    batches = stream.batches(0, stream.steps_per_epoch)
    next(batches)
    wanted = set(stream._items.files(stream._items.order.blocks(0)[1]))
    deadline = time.monotonic() + 10
    while not all(file.copy.exists() for file in wanted):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    batches.close()


def test_without_a_bound_nothing_goes(server: Server) -> None:
    stream = loader(opened())
    for _ in stream.batches(0, 2 * stream.steps_per_epoch):
        pass
    assert max(Counter(server.downloads).values()) == 1
    assert sum(file.copy.exists() for file in train_files(opened())) == len(server.downloads) > 16


def test_nothing_is_copied_of_a_local_root(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stream = loader(ShardSet.open(str(folder), machine_folder() / "set", bound=1))
    assert len(list(stream.batches(0, 4))) == 4
    assert not list(tmp_path.rglob("*"))


def test_a_bound_below_a_block_is_refused_with_one_that_will_do(server: Server) -> None:
    needed = largest(opened(), 2)
    said = (
        r"runtime\.cache_gb=\S+ holds less than the 2 shards that are shuffled together: give at least (\S+), or (\S+) "
        "for the next ones to be fetched meanwhile"
    )
    with pytest.raises(InputError, match=said) as refusal:
        loader(opened(needed - 1))
    for given in re.search(said, str(refusal.value)).groups():  # type: ignore[union-attr]
        bound = round(float(given) * GB)
        assert len(list(loader(opened(bound)).batches(0, 8))) == 8
    assert server.most <= bound


def test_a_reader_of_other_splits_needs_room_for_a_shard(server: Server) -> None:
    shards = opened(1000)
    with pytest.raises(InputError, match=r"holds less than test-00000\.tar: give at least 0\.0000"):
        shards.read_image("test", 0)


def test_a_copy_of_before_counts(server: Server) -> None:
    for _ in (stream := loader(opened())).batches(0, stream.steps_per_epoch):
        pass
    bound = largest(opened(), 4)
    stream = loader(opened(bound), seed=4)
    for _ in stream.batches(0, stream.steps_per_epoch):
        pass
    assert sum(file.bytes for file in train_files(opened()) if file.copy.exists()) <= bound


# ---- what goes ------------------------------------------------------------------------------------


@pytest.fixture
def files(server: Server) -> list[RemoteFile]:
    """Four of the same size."""
    made = []
    server.folder = server.folder.parent / "same-size"
    server.folder.mkdir(exist_ok=True)
    for name in "abcd":
        (server.folder / f"{name}.tar").write_bytes(name.encode() * 100)
        digest = hashlib.sha256(name.encode() * 100).hexdigest()
        made.append(RemoteFile(S3, f"{name}.tar", digest, 100, machine_folder() / "few", "run prepare"))
    return made


def there(files: list[RemoteFile]) -> str:
    return "".join(file.name[0] for file in files if file.copy.exists())


def read(cache: ShardCache, file: RemoteFile, **more: frozenset[Path]) -> bytes:
    with cache.opened(file, **more) as descriptor:
        return os.pread(descriptor, 1, 0)


def test_the_least_recently_used_goes(files: list[RemoteFile]) -> None:
    a, b, c, d = files
    cache = ShardCache(200)
    assert [read(cache, file) for file in (a, b, a, c)] == [b"a", b"b", b"a", b"c"]
    assert there(files) == "ac"
    read(cache, d, wanted=frozenset({a.copy}))  # older than c, and wanted
    assert there(files) == "ad"


def test_none_goes_that_is_read(files: list[RemoteFile]) -> None:
    a, b, c, _ = files
    cache = ShardCache(200)
    with cache.opened(a):
        read(cache, b)
        read(cache, c)
        assert there(files) == "ac"
        with cache.opened(c), pytest.raises(NoRoomError):
            cache.ahead(b, lambda: frozenset({b.copy}))
        assert there(files) == "ac"
    cache.ahead(b, lambda: frozenset({b.copy, c.copy}))
    assert there(files) == "bc"
    with pytest.raises(NoRoomError):
        cache.ahead(a, lambda: frozenset(file.copy for file in files))
    with pytest.raises(NoRoomError):  # the batches have gone on since it was asked for
        ShardCache(0).ahead(a, lambda: frozenset({b.copy}))


def test_who_needs_room_waits_for_a_reader(files: list[RemoteFile]) -> None:
    a, b, _, _ = files

    def reader(ready: object) -> None:
        with ShardCache(100).opened(a):
            ready.set()  # type: ignore[attr-defined]
            time.sleep(0.3)

    ready = fork.Event()
    other = fork.Process(target=reader, args=(ready,))
    other.start()
    ready.wait(10)
    begun = time.monotonic()
    assert read(ShardCache(100), b) == b"b"
    assert time.monotonic() - begun > 0.1
    other.join()


def test_a_changed_copy_is_fetched_anew(files: list[RemoteFile], server: Server) -> None:
    a = files[0]
    cache = ShardCache(100)
    read(cache, a)
    a.copy.write_bytes(b"x" * 100)
    os.utime(a.copy, ns=(0, 0))
    assert read(cache, a) == b"a"
    assert server.downloads == ["a.tar", "a.tar"]


def test_a_process_killed_while_it_fetches_leaves_its_room(files: list[RemoteFile], server: Server) -> None:
    a, b, _, _ = files
    server.seconds = 60
    killed = fork.Process(target=read, args=(ShardCache(100), a))
    killed.start()
    while not server.downloads or not list(machine_folder().glob("turns/*.part/*")):
        time.sleep(0.005)
    os.kill(killed.pid or 0, signal.SIGKILL)
    killed.join()
    server.seconds = 0
    assert read(ShardCache(100), b) == b"b"
    assert not list(machine_folder().glob("turns/*.part"))
    assert read(ShardCache(100), a) == b"a"
    assert there(files) == "a"


def test_ranks_of_a_machine_share_copies(server: Server) -> None:
    """Two ranks, each with half of each batch: one fetches, the other waits."""
    bound = largest(opened(), 6)
    server.seconds = 0.01

    def rank(number: int, barrier: object) -> None:
        stream = loader(opened(bound), rank=number, world=2)
        for _ in stream.batches(0, stream.steps_per_epoch):
            barrier.wait(20)  # type: ignore[attr-defined]  # as gradients do

    barrier = fork.Barrier(2)
    ranks = [fork.Process(target=rank, args=(number, barrier)) for number in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert Counter(server.downloads) == Counter(file.name for file in train_files(opened()))
    assert server.most <= bound


# ---- the teacher's outputs ------------------------------------------------------------------------


@pytest.fixture
def parts(server: Server, folder: Path, tmp_path: Path) -> tuple[TeacherCache, list[RemoteFile]]:
    """Parts of seven pictures each, here and at S3."""
    shards = ShardSet.open(str(folder), folder)
    count = shards.count("train")
    counts = [len(shards.captions("train", i)) for i in range(count)]
    both = tmp_path / "both"
    shutil.copytree(folder, both)
    paths, remote = [], []
    for start in range(0, count, 7):
        own = counts[start : start + 7]
        crops = {"image": torch.rand(len(own), 3, 5), "P5": torch.rand(len(own), 3, 2, 4, 4).half()}
        crops |= {"P4": torch.randint(-127, 128, (len(own), 3, 2, 4, 4)).to(torch.int8)}
        crops |= {"P4/scale": torch.randint(-9, 9, (len(own), 3, 4, 4)).to(torch.int8)}
        path = both / f"{start:06d}.safetensors"
        write_part(path, start, crops, {"text": torch.rand(sum(own), 5)}, own, MADE_FROM)
        paths.append(path)
        digest, size = storage.sha256_file(path), path.stat().st_size
        remote.append(RemoteFile(S3, path.name, digest, size, machine_folder() / "stored", "run teacher"))
    server.folder = both
    return TeacherCache.open(paths, MADE_FROM), remote


def test_outputs_stream_with_the_shards(
    server: Server, folder: Path, parts: tuple[TeacherCache, list[RemoteFile]]
) -> None:
    whole, remote = parts
    bound = largest(opened(), 4) + sum(sorted(file.bytes for file in remote)[-8:])
    streamed = StoredParts(remote, 7, MADE_FROM, ShardCache(bound))
    here = loader(ShardSet.open(str(folder), folder), cache=whole, crops=3)
    there = loader(opened(bound), cache=streamed, crops=3)
    steps = here.steps_per_epoch
    for ours, theirs in zip(there.batches(0, steps), here.batches(0, steps), strict=True):
        assert ours.keys == theirs.keys
        assert theirs.cached.keys() == {"image", "P4", "P4/scale", "P5", "text"}
        assert all(torch.equal(ours.cached[name], x) for name, x in theirs.cached.items())
    assert server.most <= bound < sum(file.bytes for file in [*remote, *train_files(opened())])


def test_some_of_the_outputs(parts: tuple[TeacherCache, list[RemoteFile]]) -> None:
    whole, remote = parts
    streamed = StoredParts(remote, 7, MADE_FROM, ShardCache(0)).only("text", "P4")
    index = np.array([9, 0, 8])
    found, expected = (one.rows(index, [0, 1, 2], [0, 0, 0]) for one in (streamed, whole.only("text", "P4")))
    assert found.keys() == expected.keys() == {"text", "P4", "P4/scale"}
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_outputs_of_pictures_with_the_captions_of_others(parts: tuple[TeacherCache, list[RemoteFile]]) -> None:
    whole, remote = parts
    given = np.array([9, 0, 8]), [0, 1, 2], [0, 0, 0], np.arange(20)[::-1].copy()
    found, expected = (one.rows(*given) for one in (StoredParts(remote, 7, MADE_FROM, ShardCache(0)), whole))
    assert found.keys() == expected.keys() == {"image", "P4", "P4/scale", "P5", "text"}
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_outputs_of_some_pictures(parts: tuple[TeacherCache, list[RemoteFile]]) -> None:
    """Positions in the split become numbers among the cached pictures, which are every third here."""
    whole, remote = parts
    pictures, numbers = np.arange(1, 100, 3), np.array([9, 0, 8])
    streamed = StoredParts(remote, 7, MADE_FROM, ShardCache(0), pictures=pictures)
    expected = whole.rows(numbers, [0, 1, 2], [0, 0, 0])
    for cache in (
        streamed,
        streamed.only(),
        TeacherCache(whole.parts, (), pictures),
        TeacherCache(whole.parts, (), pictures).only(),
    ):
        found = cache.rows(pictures[numbers], [0, 1, 2], [0, 0, 0])
        assert all(torch.equal(found[name], x) for name, x in expected.items())
    assert streamed.files(np.arange(3, 30)) == remote[:2]  # those of pictures 4 to 28 are numbers 1 to 9


def test_outputs_of_something_else_are_refused(parts: tuple[TeacherCache, list[RemoteFile]]) -> None:
    streamed = StoredParts(parts[1], 7, {"shards": "other"}, ShardCache(0))
    with pytest.raises(InputError, match="caches teacher outputs of something else than this run has"):
        streamed.rows(np.array([0]), [0], [0])


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1, "0.000000001"), (1234567, "0.00124"), (2 * GB, "2"), (123456 * GB, "124000")]
)
def test_gigabytes_are_rounded_up(count: int, text: str) -> None:
    assert shard_cache.in_gb(count) == text
    assert float(text) * GB >= count
