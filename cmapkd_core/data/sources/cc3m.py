"""Conceptual Captions 3M, whose publishers give URLs and no pictures.

Either the shards that img2dataset makes of the TSV (see img2dataset.py), in train/ and validation/ or beside each
other; or the TSV files with the pictures that another tool has downloaded:

    Train_GCC-training.tsv                     caption TAB url, 3,318,333 lines without a header: split train
    Validation_GCC-1.1.0-Validation.tsv        15,840: split val
    images/, training/ or train/, validation/ or val/    named by the line (from 0: 0.jpg, 00000000.jpg,
                                               000000000.jpg) or by the CRC-32 of the URL

About a tenth and more of the URLs are dead by now. Each picture that is not there is a bad row of the TSV, so that
`data.quarantine_bound` must say how many may be missing.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.files import below, files_below, opened, picture, place
from cmapkd_core.data.rows import BadRow, Counted, Item, LazyRow, Row
from cmapkd_core.data.sources.img2dataset import PICTURES, tar_names, tar_rows
from cmapkd_core.data.tables import byte_lines
from cmapkd_core.data.texts import BadValueError, decoded, encoding_of, shown, text, texts
from cmapkd_core.errors import InputError

LICENCE = "Conceptual Captions: free for any use; pictures under their sites' terms"
COMMAND = (
    r"  (printf 'caption\turl\n'; cat Train_GCC-training.tsv) > cc3m.tsv" + "\n"
    "  img2dataset --url_list cc3m.tsv --input_format tsv --url_col url --caption_col caption "
    "--output_format webdataset --output_folder cc3m --processes_count 16 --thread_count 64 --image_size 512 "
    "--resize_mode keep_ratio --resize_only_if_bigger True"
)


@dataclass(frozen=True)
class _Part:
    """One TSV: its split and the folders that its pictures may be in."""

    file: str
    split: str
    folders: tuple[str, ...]


PARTS = (
    _Part("Train_GCC-training.tsv", "train", ("images", "training", "train")),
    _Part("Validation_GCC-1.1.0-Validation.tsv", "val", ("validation", "val")),
)


def cc3m_rows(config: DataConfig) -> Counted:
    """One row a pair.

    Raises:
        InputError: neither shards nor a TSV with pictures.
    """
    url = place(config)
    names = tar_names(url)
    if names:
        return tar_rows(url, names)
    parts = [part for part in PARTS if storage.exists(below(url, part.file))]
    if not parts:
        raise InputError(
            f"data.source=cc3m: {url} has neither .tar shards nor {PARTS[0].file}; make shards:\n{COMMAND}"
        )
    pictures = [_pictures(url, part) for part in parts]
    if not any(pictures):
        folders = ", ".join(f"{folder}/" for part in parts for folder in part.folders)
        raise InputError(
            f"data.source=cc3m: {url} has the URLs and no picture (looked in {folders}). Download them, and give "
            f"data.url the folder of the shards:\n{COMMAND}"
        )
    tables = [_Lines(below(url, part.file)) for part in parts]
    rows = (
        row
        for part, files, lines in zip(parts, pictures, tables, strict=True)
        for row in _rows(url, part, files, lines)
    )
    return Counted(rows, sum(map(len, tables)))


def _pictures(url: str, part: _Part) -> dict[str, str]:
    """Names without extension -> files, of all pictures of a part."""
    files: dict[str, str] = {}
    for folder in part.folders:
        for name in files_below(url, folder):
            stem, _, extension = name.rpartition(".")
            if not stem:  # the CRC tool gives no extension
                stem, extension = name, PICTURES[0]
            if extension.lower() in PICTURES:
                files.setdefault(stem.rpartition("/")[2], f"{folder}/{name}")
    return files


class _Lines:
    """The lines of a TSV as they are, read as they are asked for: one that is in another encoding is one bad row."""

    def __init__(self, url: str) -> None:
        with opened(url) as raw:
            self._file = os.fdopen(os.dup(raw.fileno()), "rb")
        if encoding_of(self._file.peek(4)[:4]) != "UTF-8":
            try:
                self._file = BufferedReader(BytesIO(decoded(self._file.read(), url).encode()))
            except BadValueError as error:
                raise InputError(f"{error}: download it again") from None
        self._count = sum(1 for _ in byte_lines(self._file))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes | BadValueError]:
        self._file.seek(0)
        return byte_lines(self._file)


def _rows(url: str, part: _Part, pictures: dict[str, str], lines: _Lines) -> Iterator[Item]:
    for number, line in enumerate(lines):
        key = f"cc3m-{part.split}-{number}"
        try:
            yield _row(url, part, pictures, number, line)
        except BadValueError as error:
            yield BadRow(key, str(error), part.split)


def _row(url: str, part: _Part, pictures: dict[str, str], number: int, line: bytes | BadValueError) -> LazyRow:
    if isinstance(line, BadValueError):
        raise line
    columns = decoded(line.removesuffix(b"\n").removesuffix(b"\r"), f"line {number + 1} of {part.file}").split("\t")
    if len(columns) != 2:
        raise BadValueError(f"line {number + 1} of {part.file} is not caption TAB url")
    caption, address = columns[0], text(columns[1], "url")
    names = (f"{number}", f"{number:08d}", f"{number:09d}", f"{zlib.crc32(address.encode())}")
    file = next((pictures[name] for name in names if name in pictures), "")
    if not file:
        raise BadValueError(f"no picture of line {number + 1} was downloaded: {shown(address)}")
    key, origins = f"cc3m-{part.split}-{number}", (f"url:{address}",)
    return LazyRow(
        Row(key, b"", texts(caption), split=part.split, licence=LICENCE, origins=origins), picture(url, file)
    )
