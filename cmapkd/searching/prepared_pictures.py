"""The pictures of a prepared data set to search, read out of its shards, here or on S3; or those of a folder."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image

from cmapkd.searching.picture_folder import PictureFile, PictureFolder, picture_of
from cmapkd_core import storage
from cmapkd_core.errors import BadImageError, InputError
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.nearby import below, nearby

_COLUMNS = ["shard", "image_offset", "image_size", "image_crc32"]
_STAGES = ("prepare",)
Spot = tuple[str, int, int, int]  # of a picture, by _COLUMNS


@dataclass(frozen=True)
class PreparedPictures(PictureFolder):
    """A data set's pictures, named SPLIT/KEY, as a key may be a file's name already.

    Attributes:
        shards: URL of their folder.
        spots: where each lies there.
    """

    shards: str
    spots: Mapping[str, Spot]

    @classmethod
    def of_artifact(cls, artifact: Artifact) -> PreparedPictures:
        """All pictures of an artifact of stage prepare, split by split in the order of its index.

        Raises:
            InputError: it is of another stage, or is not as its manifest says.
        """
        opened = open_shards(artifact)
        files, spots = list[PictureFile](), dict[str, Spot]()
        for split in opened.manifest["splits"]:
            for file, spot in _of_table(split, opened.table(split)):
                files.append(file)
                spots[file.path] = spot
        return cls(artifact.url, tuple(files), 0, opened.url, spots)

    @property
    def identity(self) -> bytes:
        """By its shards: those of a data set made anew lie in another folder."""
        return self.shards.encode()

    def read(self, picture: PictureFile) -> Image.Image:
        """As of a folder; a picture whose bytes are not those that were written cannot be read."""
        # By ranges, from any thread: a ShardSet would bring whole shards here, for a page that shows a few pictures.
        shard, first, size, crc32 = self.spots[picture.path]
        try:
            data = storage.read_part(storage.join(self.shards, shard), first, size)
        except FileNotFoundError:
            raise BadImageError(f"its shard {shard} is gone") from None
        if len(data) != size or zlib.crc32(data) != crc32:
            raise BadImageError(f"its bytes in {shard} are damaged")
        return picture_of(data)


def pictures_at(place: str) -> PictureFolder:
    """The pictures of a folder of this machine, or of a prepared data set anywhere.

    Raises:
        InputError: it is neither, or has no picture.
    """
    artifact = find(place)
    if artifact is not None:
        return PreparedPictures.of_artifact(artifact)
    if "://" in place:
        near = nearby(place, _STAGES)
        raise InputError(
            f"{place} is no prepared data set: give one (ROOT/prepare/KEY, which every run has), or copy the pictures "
            f"into a folder of this machine and give that{near and f'; {near}'}"
        )
    try:
        return PictureFolder.of(place)
    except InputError as error:
        near = nearby(place, _STAGES)
        raise InputError(f"{error}{near and f'; or a prepared data set: {near}'}") from None


def data_sets_below(folder: PictureFolder) -> str:
    """Words for the data sets below a folder of pictures, whose own files lie in shards; "" where there are none."""
    return "" if isinstance(folder, PreparedPictures) else below(folder.place, _STAGES)


def _of_table(split: str, table: pa.Table) -> Iterator[tuple[PictureFile, Spot]]:
    columns = [table[name].to_pylist() for name in ("key", "captions", *_COLUMNS)]
    for key, captions, *spot in zip(*columns, strict=True):
        yield PictureFile(f"{split}/{key}", 0, spot[2], captions[0] if captions else ""), tuple(spot)
