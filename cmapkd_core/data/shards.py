"""Prepared data sets: one read at an offset per sample, checked against the index.

No tar header is parsed while reading: a damaged one loses nothing, and damaged bytes of a sample are
always noticed (CRC-32 of every member, sha256 of every shard that comes over the network).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmapkd_core import storage
from cmapkd_core.catalog import SOURCES
from cmapkd_core.data.copies import fetch_once
from cmapkd_core.data.index import IndexSplit, read_index
from cmapkd_core.data.layout import INDEX, MANIFEST, QUESTION_SCHEMA, QUESTIONS, VERSION
from cmapkd_core.data.shard_cache import NOTHING, RemoteFile, ShardCache
from cmapkd_core.errors import DamagedInput, InputError, OutsideError, again
from cmapkd_core.fields import choose

_OPEN_FILES = 64
_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


class CorruptSampleError(OutsideError):
    """Stored bytes that are not what the index says.

    Attributes:
        shard, key, reason: where and what.
    """

    end = "damaged"

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(shard, key, reason)
        self.shard, self.key, self.reason = shard, key, reason

    def __str__(self) -> str:
        return f"shard {self.shard}, sample {self.key}: {self.reason}; {again('prepare')}"


class NoQuestionsError(InputError):
    """The data set, or the split, has no question; the message says which sources have."""


class ShardSet:
    """The samples of a prepare artifact, at a path or on S3; `open` makes one.

    Shards on S3 are fetched whole into `cache` on first touch, for all ranks and workers of the machine, and go again
    where there is a bound of their bytes. An object is picklable and may be used by forked and spawned workers.

    Attributes:
        room: the copies of this machine and their bound.
        remote: the shards by name where they are copied, {} of a local root.
        wanted: copies that are read now, or next: the last to go.
    """

    def __init__(
        self, url: str, cache: Path, manifest: dict[str, Any], splits: dict[str, IndexSplit], bound: int = 0
    ) -> None:
        self.url, self.cache, self.manifest = url, cache, manifest
        self.room, self.remote, self.wanted = ShardCache(bound), _remote(url, cache, manifest), NOTHING
        self.classes: list[str] = manifest["classes"]
        self.max_pixels: int = manifest["max_pixels"]
        self._splits = splits
        self._files: OrderedDict[str, int] = OrderedDict()  # open file descriptors, least recently used first

    @classmethod
    def open(cls, url: str, cache: Path, digest: str = "", bound: int = 0) -> ShardSet:
        """The data set at `url`.

        Args:
            url: the prepare artifact, a path or s3://.
            cache: a local folder that processes of this machine may share.
            digest: sha256 of its shards.json; "" where no manifest names one, as of a data set being made.
            bound: of the bytes of copies on this machine (`shard_cache`); 0: none. Nothing is copied of a local root.

        Raises:
            InputError: it is no complete data set, or its index does not fit its manifest.
        """
        try:
            manifest = _manifest(url, digest)
            cache = cache / manifest["index"]["sha256"][:16]  # by content: a data set made anew gets its own
            path = fetch_once(url, INDEX, manifest["index"]["sha256"], cache, again("prepare"))
        except FileNotFoundError as error:
            if digest:  # a manifest names it, so that the stage would answer at once
                raise DamagedInput(f"{error} is gone: {again('prepare')}") from None
            raise InputError(f"{url} is no prepared data set ({error} is missing): run stage prepare first") from None
        if "://" not in url and storage.sha256_file(path) != manifest["index"]["sha256"]:
            raise DamagedInput(f"{path} does not match {MANIFEST}: {again('prepare')}")
        shards = cls(url, cache, manifest, read_index(path, manifest["splits"], cache), bound)
        if bound and shards.remote:
            shards.room.adopt(shards.remote.values())
        return shards

    def count(self, split: str) -> int:
        """Number of samples."""
        result: int = self._split(split).table.num_rows
        return result

    def table(self, split: str) -> pa.Table:
        """The index of a split, columns as in `layout.SCHEMA`; positions in it are what loaders call `index`."""
        return self._split(split).table

    def keys(self, split: str) -> list[str]:
        """The samples' keys in table order."""
        result: list[str] = self._split(split).table["key"].to_pylist()
        return result

    def key_hashes(self, split: str) -> np.ndarray:
        """`order.hash64` of the samples' keys in table order: uint64 [n]."""
        return self._split(split).hashes

    def captions(self, split: str, i: int) -> list[str]:
        """All captions of one sample."""
        result: list[str] = self._split(split).value("captions", i)
        return result

    def require_captions(self, split: str) -> None:
        """Refuse a split in which a picture has no caption, as sets of questions have them.

        Raises:
            InputError: names the first such picture.
        """
        table = self._split(split).table
        without = table.filter(pc.equal(pc.list_value_length(table["captions"]), 0))["key"]
        if len(without):
            raise InputError(
                f"{len(without)} of {table.num_rows} pictures of split '{split}' have no caption, such as "
                f"{without[0].as_py()}: teachers and students learn from captions. A set of questions serves "
                "`evaluate --task vqa`; give another data.source, or captions"
            )

    def question_count(self, split: str) -> int:
        """Number of questions; 0 in a data set that has none."""
        result: int = choose("split", split, self.manifest["splits"]).get("questions", 0)
        return result

    def questions(self, split: str) -> pa.Table:
        """The questions about a split's pictures in table order, columns as in `layout.QUESTION_SCHEMA`.

        Raises:
            NoQuestionsError: there are none.
            InputError: no such split, or a table that does not fit the manifest.
        """
        if not self.question_count(split):
            asking = [name for name, source in SOURCES.items() if source.questions]
            raise NoQuestionsError(
                f"split '{split}' of {self.url} has no questions: visual question answering needs a source that has "
                f"them ({', '.join(asking)}), such as --data {asking[0]}"
            )
        digest = self.manifest["questions"]["sha256"]
        try:
            path = fetch_once(self.url, QUESTIONS, digest, self.cache, again("prepare"))
        except FileNotFoundError:
            raise DamagedInput(f"{self.url} lacks its {QUESTIONS}: {again('prepare')}") from None
        if "://" not in self.url and storage.sha256_file(path) != digest:
            raise DamagedInput(f"{path} does not match {MANIFEST}: {again('prepare')}")
        table = pq.read_table(path, schema=QUESTION_SCHEMA)
        return table.filter(pc.equal(table["split"], split)).combine_chunks()

    def class_counts(self, split: str) -> dict[str, int]:
        """Pictures of every class in a split, 0 for a class that has none there."""
        counts = choose("split", split, self.manifest["splits"])["classes"]
        return {name: counts.get(name, 0) for name in self.classes}

    def shard_numbers(self, split: str) -> np.ndarray:
        """Number of the shard that holds each sample: int32 [n]."""
        return self._split(split).shard

    def shard_files(self, split: str, numbers: np.ndarray) -> list[RemoteFile]:
        """The shards of these numbers where they are copied; [] of a local root."""
        names = self._split(split).shards
        return [self.remote[names[number]] for number in numbers] if self.remote else []

    def read_image(self, split: str, i: int) -> bytes:
        """The encoded picture of sample `i`.

        Raises:
            CorruptSampleError: fewer bytes than the index says, or a wrong CRC-32.
            InputError: the shard is missing, or changed on S3.
        """
        return self._read(split, i, "image")

    def read_note(self, split: str, i: int) -> dict[str, Any]:
        """The JSON beside the picture of sample `i`, its licence included; raises what `read_image` does."""
        return dict(json.loads(self._read(split, i, "json")))

    def licences(self, most: int = 0) -> dict[str, int]:
        """Pictures by the licence that their source gave, "" where it gave none; raises what `read_note` does.

        Args:
            most: pictures of each split that are looked at, those that lie first; 0: all.
        """
        places = (
            (split, i) for split in self._splits for i in range(min(most or self.count(split), self.count(split)))
        )
        counts = Counter(self.read_note(*place).get("licence", "") for place in places)
        return dict(sorted(counts.items()))

    def verify(self) -> Iterator[CorruptSampleError]:
        """Every sample whose picture or JSON is not as written, one by one."""
        for split in self._splits:
            for i in range(self.count(split)):
                try:
                    self._read(split, i, "image")
                    self._read(split, i, "json")
                except CorruptSampleError as error:
                    yield error

    def _read(self, split: str, i: int, part: str) -> bytes:
        entry = self._split(split)
        shard, size = entry.shards[entry.shard[i]], entry.value(f"{part}_size", i)
        data = self._bytes(shard, size, entry.value(f"{part}_offset", i))
        if len(data) == size and zlib.crc32(data) == entry.value(f"{part}_crc32", i):
            return data
        reason = f"{len(data)} of {size} bytes are there" if len(data) < size else "its checksum is wrong"
        raise CorruptSampleError(shard, entry.value("key", i), f"{part}: {reason}")

    def _split(self, split: str) -> IndexSplit:
        result: IndexSplit = choose("split", split, self._splits)
        return result

    def _bytes(self, shard: str, size: int, offset: int) -> bytes:
        try:
            if self.remote and self.room.bound:
                with self.room.opened(self.remote[shard], self.wanted) as descriptor:
                    return os.pread(descriptor, size, offset)
            return os.pread(self._file(shard), size, offset)
        except FileNotFoundError:
            raise DamagedInput(f"shard {shard} of {self.url} is missing: {again('prepare')}") from None

    def _file(self, shard: str) -> int:
        """A descriptor that stays open, of a shard that stays where it is."""
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        if self.remote:
            with self.room.opened(self.remote[shard]) as descriptor:  # another process may have a bound
                self._files[shard] = os.dup(descriptor)
        else:
            with storage.opened(storage.join(self.url, shard)) as file:
                self._files[shard] = os.dup(file.fileno())
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_files", {}).values():
            os.close(descriptor)


def _remote(url: str, cache: Path, manifest: dict[str, Any]) -> dict[str, RemoteFile]:
    if "://" not in url:
        return {}
    entries = (entry for split in manifest["splits"].values() for entry in split["shards"])
    return {
        entry["file"]: RemoteFile(url, entry["file"], entry["sha256"], entry["bytes"], cache, again("prepare"))
        for entry in entries
    }


def _manifest(url: str, digest: str) -> dict[str, Any]:
    raw = storage.read_bytes(storage.join(url, MANIFEST))
    if digest and hashlib.sha256(raw).hexdigest() != digest:
        raise DamagedInput(f"{url}/{MANIFEST} was changed after it was written: {again('prepare')}")
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise DamagedInput(f"{url}/{MANIFEST} is no JSON ({error}): {again('prepare')}") from None
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise InputError(f"{url}/{MANIFEST} is not of version {VERSION}: {again('prepare')}")
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            if not _FILE_NAME.fullmatch(shard["file"]):
                raise InputError(f"{url}/{MANIFEST} names the shard {shard['file']!r}, which is no file name")
    return manifest
