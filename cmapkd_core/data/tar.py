"""One WebDataset shard: written member by member, then read back and completed with where its bytes lie."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from cmapkd_core.data.prepare_resume import SavedShards, SourceChangedError

_PLAIN_KEY = re.compile(r"\w[\w-]{0,79}", re.ASCII)


class Shard:
    """One tar being written. samples: lines of the index so far; numbers: of their rows in the source."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples: list[dict[str, Any]] = []
        self.numbers: list[int] = []
        self._file = open(path, "wb")  # noqa: SIM115  closed by seal()
        self._tar = TarWriter(self._file, encoder=False, mtime=0)

    def add(self, number: int, sample: dict[str, Any], image: bytes, said: dict[str, Any]) -> None:
        """Store a picture and what is `said` of it beside the picture; `sample` becomes its line of the index."""
        text = json.dumps(said, ensure_ascii=False).encode()
        self._tar.write({"__key__": _member(sample["key"]), sample["ext"]: image, "json": text})
        crc = {"image_crc32": zlib.crc32(image), "json_crc32": zlib.crc32(text)}
        self.samples.append({**sample, "shard": self.path.name, **crc})
        self.numbers.append(number)

    def seal(self) -> list[dict[str, Any]]:
        """Close the tar, read it back, and complete the samples with the places of their bytes.

        Raises:
            OSError: what is read back is not what was written.
        """
        self._tar.close()
        self._file.close()
        with tarfile.open(self.path, "r:") as tar:
            members = {member.name: member for member in tar}
            for sample in self.samples:
                for part, ext in (("image", sample["ext"]), ("json", "json")):
                    member = members.pop(f"{_member(sample['key'])}.{ext}")
                    stored = tar.extractfile(member)
                    if stored is None or zlib.crc32(stored.read()) != sample[f"{part}_crc32"]:
                        raise OSError(f"{self.path}: {member.name} reads back changed; the disk is not to be trusted")
                    sample |= {f"{part}_offset": member.offset_data, f"{part}_size": member.size}
        return self.samples


class RestoredShard:
    """A shard that an earlier attempt finished: nothing can be added but the samples that it has."""

    def __init__(self, path: Path, saved: SavedShards) -> None:
        self.path, self._saved = path, saved
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
        self._saved.fetch(self.path.name, self.path)
        return self.samples


def _member(key: str) -> str:
    """The key as a WebDataset member name; a hash where dots or other signs would be misread."""
    return key if _PLAIN_KEY.fullmatch(key) else f"h-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
