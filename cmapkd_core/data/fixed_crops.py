"""Fixed crops of the training pictures, and a cache of a teacher's outputs for them (dataset reinforcement).

A picture has crops 0..n-1; a crop's box follows from the picture's key and its number alone, so what is cached of it
serves every run. Training then draws one of them for each epoch (`order.crop_of`), and the student sees exactly
the pixels that the teacher saw.

Shapes: n crops a picture; k pictures of a part with c captions, in the order of the training split's table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmapkd_core.data.augment import Rendering, train_pixels
from cmapkd_core.data.order import crop_seed
from cmapkd_core.errors import DamagedInput, InputError, again

CACHE_FOLDER = "stored"  # of a teacher's artifact; its files are the parts


def fixed_pixels(
    image: np.ndarray,
    renderings: Sequence[Rendering],
    scale: tuple[float, float],
    key_hash: int,
    crop: int,
    into: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Fixed crop number `crop` of the picture with this hash of its key, as `train_pixels` gives one."""
    return train_pixels(image, renderings, scale, torch.Generator().manual_seed(crop_seed(key_hash, crop)), into)


class TeacherCache:
    """A frozen teacher's outputs for the fixed crops and the captions, in parts of consecutive pictures.

    crops: tensors [k,n,...] by name; captions: tensors [c,...] by name, of the k pictures of a part. `open` makes a
    cache. The files stay on disk and are mapped into memory, for all loader workers together.

    pictures: positions in the split of those that it has, ascending, int64 [m]; None: all of the split.
    """

    def __init__(self, parts: Sequence[_Part], names: Sequence[str] = (), pictures: np.ndarray | None = None) -> None:
        self.parts, self.names, self.pictures = parts, names, pictures
        self._firsts = np.array([part.first for part in parts])

    @classmethod
    def open(
        cls, paths: Sequence[Path], made_from: Mapping[str, str], pictures: np.ndarray | None = None
    ) -> TeacherCache:
        """The cache in these files.

        Args:
            made_from: what it must have been made from, as given to `write_part`.
            pictures: as of the class.

        Raises:
            InputError: it was made from something else, or lacks parts.
        """
        parts = sorted((_read_part(path, made_from) for path in paths), key=lambda part: part.first)
        ends = [0, *(part.first + len(part.offsets) - 1 for part in parts)]
        count = ends[-1] if pictures is None else len(pictures)
        if [part.first for part in parts] != ends[:-1] or ends[-1] != count:
            raise DamagedInput(lacking(paths[0].parent, len(parts)))
        return cls(parts, (), pictures)

    def only(self, *names: str) -> TeacherCache:
        """The same cache, which gives these tensors alone, with what is stored beside each (NAME/..)."""
        return TeacherCache(self.parts, names, self.pictures)

    def places(self, index: np.ndarray) -> np.ndarray:
        """Numbers among the cached pictures of those at these positions in the split, int64 [b] -> [b]."""
        return np.asarray(index) if self.pictures is None else np.searchsorted(self.pictures, index)

    def gives(self, name: str) -> bool:
        """Whether it gives this tensor."""
        return not self.names or name.partition("/")[0] in self.names

    def rows(
        self, index: np.ndarray, crops: Sequence[int], captions: Sequence[int], owners: np.ndarray | None = None
    ) -> dict[str, Tensor]:
        """Tensors [b,...] by name, of samples by position in the split, number of the crop and of the caption.

        Args:
            owners: positions of the pictures that all pictures of the split have their captions of; None: their own.
        """
        own, rows = self._located(index)
        caption_parts, caption_rows = (own, rows) if owners is None else self._located(owners[index])
        texts = [int(part.offsets[row]) + k for part, row, k in zip(caption_parts, caption_rows, captions, strict=True)]
        first = self.parts[0]
        crop_tensors = {
            name: torch.stack([p.crops[name][row, crop] for p, row, crop in zip(own, rows, crops, strict=True)])
            for name in first.crops
            if self.gives(name)
        }
        return crop_tensors | {
            name: torch.stack([part.captions[name][row] for part, row in zip(caption_parts, texts, strict=True)])
            for name in first.captions
            if self.gives(name)
        }

    def _located(self, index: np.ndarray) -> tuple[list[_Part], list[int]]:
        """The parts that hold the samples at these positions [b], and their rows there."""
        places = self.places(index)
        own = [self.parts[i] for i in np.searchsorted(self._firsts, places, side="right") - 1]
        return own, [int(i) - part.first for i, part in zip(places, own, strict=True)]


_ENTRY = "part"  # of a file's metadata


@dataclass(frozen=True)
class _Part:
    """Pictures first..first+k-1 of those that are cached. offsets: [k+1], where the captions of each begin."""

    first: int
    crops: dict[str, Tensor]
    captions: dict[str, Tensor]
    offsets: Tensor


def check_part(name: object, metadata: Mapping[str, str], made_from: Mapping[str, str]) -> int:
    """Number of a part's first picture.

    Raises:
        InputError: the part was made from something else.
    """
    described = _metadata(metadata)
    recorded = described.get("made_from", {})
    names = dict.fromkeys((*made_from, *recorded))
    wrong = [f"{n}: {recorded.get(n)} -> {made_from.get(n)}" for n in names if recorded.get(n) != made_from.get(n)]
    if wrong:
        lines = "\n  ".join(wrong)
        raise InputError(
            f"{name} caches teacher outputs of something else than this run has:\n  {lines}\n"
            "run stage teacher with this recipe and these shards and give its artifact as --teacher, or set "
            "teacher_fit.views=0"
        )
    return int(described["first"])


def lacking(place: object, parts: int) -> str:
    """What is said of a store of which no more than so many parts are there."""
    return f"{place} has {parts} parts of the teacher's outputs, and others are gone: {again('teacher')}"


def _read_part(path: Path, made_from: Mapping[str, str]) -> _Part:
    with safe_open(path, framework="pt") as file:
        first = check_part(path, file.metadata() or {}, made_from)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file is no dict)
    kinds: dict[str, dict[str, Tensor]] = {"crops": {}, "captions": {}}
    for name, x in tensors.items():
        kind, _, own = name.partition("/")
        if own:
            kinds[kind][own] = x
    return _Part(first, kinds["crops"], kinds["captions"], tensors["offsets"])


def write_part(
    path: Path,
    first: int,
    crops: Mapping[str, Tensor],
    captions: Mapping[str, Tensor],
    counts: Sequence[int],
    made_from: Mapping[str, str],
) -> None:
    """Write one part of a `TeacherCache`.

    Args:
        first: number of its first picture: its position in the split, or among those of it that are cached.
        crops, captions: by name the outputs for k pictures, [k,n,..], and for their c captions, [c,..].
        counts: number of captions of each picture.
        made_from: what decides the contents, such as digests; `open` compares it.
    """
    offsets = torch.tensor([0, *counts]).cumsum(0)
    assert all(int(offsets[-1]) == len(x) for x in captions.values()), "one row a caption"
    named = {"crops": crops, "captions": captions}
    tensors = {f"{kind}/{name}": x.contiguous() for kind, own in named.items() for name, x in own.items()}
    described = {"made_from": dict(made_from), "first": first}
    # One entry: safetensors writes several in random order, and the file's digest would tell two equal parts apart.
    save_file({**tensors, "offsets": offsets}, path, {_ENTRY: json.dumps(described, sort_keys=True)})


def _metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `write_part` described; older parts have an entry for each."""
    if _ENTRY in metadata:
        return dict(json.loads(metadata[_ENTRY]))
    return {name: json.loads(value) for name, value in metadata.items()}
