"""One WebDataset shard: written member by member, then read back as a whole.

Where webdataset's writer puts a member is known without parsing what was written; reading back checks it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from cmapkd_core.data.prepare_resume import SavedShards, SourceChangedError

PARTS = ("image", "json")
Member = tuple[str, str, int, int, int]  # key, which of PARTS, offset, size, CRC-32
_COPIED = 2**22  # bytes at a time
_PLAIN_KEY = re.compile(r"\w[\w-]{0,79}", re.ASCII)


class Shard:
    """One tar being written.

    Attributes:
        samples: lines of the index so far.
        numbers: of their rows in the source.
        digest: sha256 of the file, once it is sealed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.digest = path, ""
        self.samples: list[dict[str, Any]] = []
        self.numbers: list[int] = []
        self._file = open(path, "wb")  # noqa: SIM115  closed by seal()
        self._tar = TarWriter(self._file, encoder=False, mtime=0)

    def add(self, number: int, sample: dict[str, Any], image: bytes, metadata: dict[str, Any]) -> None:
        """Store a picture and its `metadata` beside it; `sample` becomes its line of the index."""
        text = json.dumps(metadata, ensure_ascii=False).encode()
        parts = {sample["ext"]: image, "json": text}
        end: int = self._tar.tarstream.offset
        self._tar.write({"__key__": _member(sample["key"]), **parts})
        placed: dict[str, int] = {}
        for ext in sorted(parts):  # the order in which the writer takes them
            part, data = "json" if ext == "json" else "image", parts[ext]
            first = end + tarfile.BLOCKSIZE  # behind the member's header
            placed |= {f"{part}_offset": first, f"{part}_size": len(data), f"{part}_crc32": zlib.crc32(data)}
            end = first + len(data) + -len(data) % tarfile.BLOCKSIZE
        if end != self._tar.tarstream.offset:
            raise OSError(f"{self.path}: webdataset wrote {sample['key']} in other places than they are looked for")
        self.samples.append({**sample, "shard": self.path.name, **placed})
        self.numbers.append(number)

    def seal(self) -> list[dict[str, Any]]:
        """Close the tar, read it back and take its digest.

        Raises:
            OSError: what is read back is not what was written.
        """
        self._tar.close()
        self._file.close()
        members = (
            (sample["key"], part, *(sample[f"{part}_{what}"] for what in ("offset", "size", "crc32")))
            for sample in self.samples
            for part in PARTS
        )
        self.digest = read_back(self.path, members)
        return self.samples


def read_back(path: Path, members: Iterable[Member]) -> str:
    """The sha256 of a tar that was written.

    Raises:
        OSError: what is read back of a member is not what was written.
    """
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as whole,
    ):
        for key, part, first, size, crc32 in members:
            if zlib.crc32(whole[first : first + size]) != crc32:
                raise OSError(f"{path}: the {part} of {key} reads back changed; the disk is not to be trusted")
        return hashlib.sha256(whole).hexdigest()


def join_tars(path: Path, runs: Iterable[tuple[Path, int, int]]) -> None:
    """A tar of members of others, as one writer would have written it: members do not depend on their place.

    Args:
        runs: a tar, and from which byte to which its members are taken.
    """
    with open(path, "wb") as target:
        for source, first, last in runs:
            with open(source, "rb") as file:
                file.seek(first)
                while first < last and (data := file.read(min(_COPIED, last - first))):
                    first += target.write(data)
            if first < last:
                raise OSError(f"{source} ends before byte {last}")
        target.write(bytes(2 * tarfile.BLOCKSIZE))
        target.write(bytes(-target.tell() % tarfile.RECORDSIZE))


class RestoredShard:
    """A shard that an earlier attempt finished: nothing can be added but the samples that it has; else as `Shard`."""

    def __init__(self, path: Path, saved: SavedShards) -> None:
        self.path, self.digest, self._saved = path, "", saved
        self.samples: list[dict[str, Any]] = []

    def restore(self, sample: dict[str, Any]) -> None:
        """The next sample, as the earlier attempt left it.

        Raises:
            SourceChangedError: it lay in another shard then.
        """
        if sample["shard"] != self.path.name:
            raise SourceChangedError(f"{sample['key']} was in {sample['shard']} and would be in {self.path.name}")
        self.samples.append(sample)

    def seal(self) -> list[dict[str, Any]]:
        """Bring the tar here.

        Raises:
            SourceChangedError: samples are missing, or the tar is not what was saved.
        """
        if len(self.samples) != self._saved.count(self.path.name):
            raise SourceChangedError(f"{self.path.name} had other samples")
        self.digest = self._saved.fetch(self.path.name, self.path)
        return self.samples


def _member(key: str) -> str:
    """The key as a WebDataset member name; a hash where dots or other signs would be misread."""
    return key if _PLAIN_KEY.fullmatch(key) else f"h-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
