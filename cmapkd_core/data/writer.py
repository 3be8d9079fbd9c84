"""Rows to WebDataset shards with an index, every row either in a shard or in the quarantine."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from webdataset.writer import TarWriter

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.images import EXTENSIONS, decode, format_of
from cmapkd_core.data.layout import INDEX, MANIFEST, QUARANTINE, SCHEMA, VERSION
from cmapkd_core.data.order import split_of
from cmapkd_core.data.rows import SPLITS, BadRow, Row
from cmapkd_core.errors import InputError

_SHOWN = 5  # reasons in an error message
_PLAIN_KEY = re.compile(r"\w[\w-]{0,79}", re.ASCII)


class TooManyBadError(InputError):
    """More bad rows than `data.quarantine_bound` allows, or none that can train."""


def write_shards(
    rows: Iterable[Row | BadRow], out: Path, config: DataConfig, progress: Callable[[int], None]
) -> dict[str, int]:
    """Check, split and store every row.

    Args:
        rows: from a source; read once, in order, never held together.
        out: an empty local folder; gets the files of `layout`.
        config: shares of the splits, size of shards and what counts as too much.
        progress: called with the number of rows seen so far.

    Returns:
        Counts: seen, used, quarantined, train, val, test, classes, and captions.

    Raises:
        TooManyBadError: above the bound, or nothing left to train on; `quarantine.jsonl` is complete then.
        InputError: shares that leave nothing to train on, or a source without rows.
    """
    if min(config.val_share, config.test_share) < 0 or config.val_share + config.test_share >= 1:
        raise InputError(
            f"data.val_share={config.val_share} and data.test_share={config.test_share} leave nothing to train on: "
            "their sum must be below 1"
        )
    out.mkdir(parents=True, exist_ok=True)
    with open(out / QUARANTINE, "w", encoding="utf-8") as quarantine:
        writer = _Writer(out, config, quarantine)
        for row in rows:
            writer.add(row)
            progress(writer.seen)
        writer.close()
    counts = writer.counts()
    _check(counts, writer.reasons, config)
    storage.write_json(str(out / MANIFEST), writer.manifest())
    return counts


class _Writer:
    """The open shard of each split, the index, and what has been seen."""

    def __init__(self, out: Path, config: DataConfig, quarantine: IO[str]) -> None:
        self.out, self.config, self.quarantine = out, config, quarantine
        self.seen = self.bad = 0
        self.reasons: list[str] = []
        self._keys: set[str] = set()
        self._place_of: dict[bytes, tuple[str, str]] = {}  # picture's digest -> split, key
        self._index = pq.ParquetWriter(out / INDEX, SCHEMA)
        self._open: dict[str, _Shard] = {}
        self._shards: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self._classes: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self._captions = 0

    def add(self, row: Row | BadRow) -> None:
        self.seen += 1
        try:
            if isinstance(row, BadRow):
                raise InputError(row.reason)
            self._store(row)
        except InputError as error:
            self.bad += 1
            if len(self.reasons) < _SHOWN:
                self.reasons.append(f"{row.key}: {error}")
            print(json.dumps({"row": self.seen, "key": row.key, "reason": str(error)}), file=self.quarantine)

    def _store(self, row: Row) -> None:
        captions = _captions(row)
        if row.key in self._keys:
            raise InputError("duplicate key: an earlier row has it")
        kind = format_of(row.image)
        image = decode(row.image, self.config.max_pixels)
        digest = hashlib.sha256(row.image)
        # Without a group of its own a picture is one, so that copies of a file never lie on both sides.
        group = row.group or digest.hexdigest()
        split = row.split or split_of(group, self.config.val_share, self.config.test_share)
        if split not in SPLITS:
            raise InputError(f"split '{split}' is none of {', '.join(SPLITS)}")
        there, other = self._place_of.setdefault(digest.digest(), (split, row.key))
        if there != split:
            raise InputError(f"the same picture is in split {there} as {other}: give both one split or group")
        self._keys.add(row.key)
        sample = {
            "key": row.key,
            "captions": captions,
            "class_name": row.class_name,
            "group": group,
            "sha256": digest.hexdigest(),
            "width": image.width,
            "height": image.height,
        }
        self._classes[split][row.class_name] += 1
        self._captions += len(captions)
        self._shard(split).add(sample, EXTENSIONS[kind], row.image, row.licence)

    def _shard(self, split: str) -> _Shard:
        shard = self._open.get(split)
        if shard and len(shard.samples) == self.config.samples_per_shard:
            self._seal(split)
        if split not in self._open:
            self._open[split] = _Shard(self.out / f"{split}-{len(self._shards[split]):05d}.tar")
        return self._open[split]

    def _seal(self, split: str) -> None:
        shard = self._open.pop(split)
        samples = shard.seal()
        table = [{"split": split, "shard": shard.path.name, **sample} for sample in samples]
        self._index.write_table(pa.Table.from_pylist(table, schema=SCHEMA))
        self._shards[split].append(
            {
                "file": shard.path.name,
                "bytes": shard.path.stat().st_size,
                "sha256": storage.sha256_file(shard.path),
                "count": len(samples),
            }
        )

    def close(self) -> None:
        for split in SPLITS:
            if split in self._open:
                self._seal(split)
        self._index.close()

    def manifest(self) -> dict[str, Any]:
        """What shards.json holds; it is written last, when everything has been checked."""
        return {
            "version": VERSION,
            "max_pixels": self.config.max_pixels,
            "index": {"file": INDEX, "sha256": storage.sha256_file(self.out / INDEX)},
            "splits": {split: self._split_entry(split) for split in SPLITS},
            "classes": self._class_names(),
            "seen": self.seen,
            "quarantined": self.bad,
        }

    def _class_names(self) -> list[str]:
        return sorted({name for counter in self._classes.values() for name in counter if name})

    def _split_entry(self, split: str) -> dict[str, Any]:
        shards = self._shards[split]
        classes = {name: count for name, count in sorted(self._classes[split].items()) if name}
        return {"count": sum(shard["count"] for shard in shards), "shards": shards, "classes": classes}

    def counts(self) -> dict[str, int]:
        """Counts of what the files hold, read back from them.

        Raises:
            RuntimeError: used + quarantined is not what was seen; a defect of this module.
        """
        used = pq.read_metadata(self.out / INDEX).num_rows
        with open(self.out / QUARANTINE, encoding="utf-8") as file:
            quarantined = sum(1 for _ in file)
        if used + quarantined != self.seen:
            raise RuntimeError(f"{used} samples + {quarantined} quarantined are not the {self.seen} rows seen")
        splits = {split: sum(shard["count"] for shard in self._shards[split]) for split in SPLITS}
        totals = {"seen": self.seen, "used": used, "quarantined": quarantined}
        return {**totals, **splits, "classes": len(self._class_names()), "captions": self._captions}


class _Shard:
    """One tar being written, and what goes into the index about it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples: list[dict[str, Any]] = []
        self._file = open(path, "wb")  # noqa: SIM115  closed by seal()
        self._tar = TarWriter(self._file, encoder=False, mtime=0)

    def add(self, sample: dict[str, Any], ext: str, image: bytes, licence: str) -> None:
        text = json.dumps({**sample, "licence": licence}, ensure_ascii=False).encode()
        self._tar.write({"__key__": _member(sample["key"]), ext: image, "json": text})
        crc = {"image_crc32": zlib.crc32(image), "json_crc32": zlib.crc32(text)}
        self.samples.append({**sample, "ext": ext, **crc})

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


def _member(key: str) -> str:
    """The key as a WebDataset member name; a hash where dots or other signs would be misread."""
    return key if _PLAIN_KEY.fullmatch(key) else f"h-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _captions(row: Row) -> list[str]:
    """The captions with single spaces, each once.

    Raises:
        InputError: the row has no key, no caption, an empty one, or text that is no Unicode.
    """
    if not row.key:
        raise InputError("key is missing or empty")
    captions = list(dict.fromkeys(" ".join(caption.split()) for caption in row.captions))
    if not all(captions) or not captions:
        raise InputError("caption is missing or empty")
    try:
        "".join([row.key, row.class_name, row.group, *captions]).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"key, class or caption is no valid Unicode: {error}") from None
    return captions


def _check(counts: dict[str, int], reasons: list[str], config: DataConfig) -> None:
    seen, bad = counts["seen"], counts["quarantined"]
    if not seen:
        raise InputError(f"data.source={config.source} {config.url} has no rows: nothing to prepare")
    listed = "\n  ".join([*reasons, *([f"and {bad - len(reasons)} more"] if bad > len(reasons) else [])])
    if bad > config.quarantine_bound * seen:
        raise TooManyBadError(
            f"{bad} of {seen} rows cannot be used ({bad / seen:.2%}), data.quarantine_bound="
            f"{config.quarantine_bound} allows {config.quarantine_bound:.2%}:\n  {listed}\n"
            f"Mend or remove them, or raise the bound: --set data.quarantine_bound={min(1.0, bad / seen + 0.01):.2f}"
        )
    if not counts["train"]:
        raise TooManyBadError(
            f"no row is in the training split ({counts['val']} val, {counts['test']} test, {bad} bad): "
            "name some rows' split train, or leave it empty"
        )
