"""Embeddings of a folder's pictures by one model, kept between searches; the nearest of them.

The file in the cache is named by the model's digest and the folder; each row is of a file's path, time and size. So a
changed picture, and it alone, is embedded anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmapkd.searching.picture_folder import PictureFile, PictureFolder
from cmapkd.searching.searched_model import SearchedModel
from cmapkd_core.data.augment import View, eval_pixels, normalise
from cmapkd_core.data.threads import in_order
from cmapkd_core.errors import BadImageError
from cmapkd_core.progress import Progress, Say

BATCH = 32  # pictures that a tower gets at once
THREADS = 4  # that read and shrink pictures ahead
_ENTRY = "pictures"  # of a cache file's metadata
_Key = tuple[str, int, int]


@dataclass(frozen=True)
class Match:
    """A picture that was found. number: its place in the folder's list. score: cosine, -1..1."""

    number: int
    path: str
    score: float


@dataclass
class PictureIndex:
    """A model's embeddings of a folder's pictures.

    Attributes:
        numbers: place in the folder's list of each row of `images`.
        images: unit embeddings, float [n, E] on the CPU.
        embedded: how many of them this search made; the others were in the cache.
        broken: path of a picture that is left out -> why.
    """

    folder: PictureFolder
    model: SearchedModel
    device: torch.device
    numbers: list[int]
    images: Tensor
    embedded: int
    broken: dict[str, str]
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def text(self, query: str) -> Tensor:
        """Unit embedding [E] of a text."""
        backbone = self.model.backbone
        with self._turn, torch.inference_mode():
            return backbone.encode_text(backbone.tokenize([query]).to(self.device))[0].float().cpu()

    def picture(self, number: int) -> Tensor | None:
        """Unit embedding [E] of a picture of the folder; None of one that is left out."""
        return self.images[self.numbers.index(number)] if number in self.numbers else None

    def like(self, image: Tensor) -> Tensor:
        """Unit embedding [E] of a picture from elsewhere, float [3, H, H] by this model's view."""
        with self._turn, torch.inference_mode():
            return self.model.backbone.encode_image(image[None].to(self.device))[0].float().cpu()

    def nearest(self, query: Tensor, top: int) -> list[Match]:
        """The `top` pictures of the largest cosines with `query` [E]; of equal ones the first by name."""
        scores = self.images @ query
        rows = scores.argsort(descending=True, stable=True)[:top].tolist()
        pictures = self.folder.pictures
        return [Match(self.numbers[i], pictures[self.numbers[i]].path, float(scores[i])) for i in rows]


def view_of(model: SearchedModel) -> View:
    """How the model wants its pictures."""
    return View.of(model.backbone.identity.plain())


def index(folder: PictureFolder, model: SearchedModel, device: torch.device, cache: Path, say: Say) -> PictureIndex:
    """The embeddings of all pictures, from the cache where it has them.

    What was embedded before an interruption is kept. A cache that cannot be written costs the next search its time.
    """
    file = cache_file(cache, model, folder)
    known = _cached(file, say)
    cached = len(known)
    missing = [one for one in folder.pictures if _key(one) not in known]
    model.backbone.to(device)
    broken: dict[str, str] = {}
    try:
        _embed(folder, model, device, missing, known, broken, say)
    finally:
        here = {_key(one) for one in folder.pictures}
        kept = {key: row for key, row in known.items() if key in here}
        if len(kept) != cached or missing:
            _keep(file, kept, say)
    numbers = [number for number, one in enumerate(folder.pictures) if _key(one) in known]
    rows = [known[_key(folder.pictures[number])] for number in numbers]
    images = torch.stack(rows) if rows else torch.empty(0, model.backbone.spec.embed_dim)
    return PictureIndex(folder, model, device, numbers, images, len(missing) - len(broken), broken)


def cache_file(cache: Path, model: SearchedModel, folder: PictureFolder) -> Path:
    """Where a model's embeddings of a folder are kept."""
    place = hashlib.sha256(folder.identity).hexdigest()
    return cache / f"{model.digest[:16]}-{place[:16]}.safetensors"


def _embed(
    folder: PictureFolder,
    model: SearchedModel,
    device: torch.device,
    pictures: list[PictureFile],
    known: dict[_Key, Tensor],
    broken: dict[str, str],
    say: Say,
) -> None:
    """Add the embeddings of `pictures` to `known`, and to `broken` those that cannot be read."""
    view, done = view_of(model), 0
    progress = Progress(say, f"search: {model.name}", len(pictures), "pictures")

    def read(one: PictureFile) -> tuple[PictureFile, Tensor | str]:
        try:
            with folder.read(one) as image:
                return one, eval_pixels(image, view)
        except BadImageError as error:
            return one, str(error)

    for batch in _batches(in_order(pictures, read, THREADS)):
        good = [(one, pixels) for one, pixels in batch if isinstance(pixels, Tensor)]
        broken |= {one.path: pixels for one, pixels in batch if isinstance(pixels, str)}
        if good:
            with torch.inference_mode():
                images = normalise(torch.stack([pixels for _, pixels in good]).to(device), view)
                rows = model.backbone.encode_image(images).float().cpu()
            known |= {_key(one): row for (one, _), row in zip(good, rows, strict=True)}
        done += len(batch)
        progress(done)


def _batches(items: Iterable[tuple[PictureFile, Tensor | str]]) -> Iterator[list[tuple[PictureFile, Tensor | str]]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _key(one: PictureFile) -> _Key:
    return one.path, one.mtime_ns, one.size


def _cached(file: Path, say: Say) -> dict[_Key, Tensor]:
    """What the cache has; a file that cannot be used is said and made anew."""
    if not file.is_file():
        return {}
    try:
        with safe_open(file, framework="pt") as opened:
            keys = json.loads(opened.metadata()[_ENTRY])
            images = opened.get_tensor("images")
        return {(path, mtime, size): row for (path, mtime, size), row in zip(keys, images, strict=True)}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        say(f"search: warning: {file} cannot be used ({error}), so the pictures are embedded anew\n")
        return {}


def _keep(file: Path, known: dict[_Key, Tensor], say: Say) -> None:
    """Replace the cache's file as a whole."""
    made = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        images = torch.stack([*known.values()]) if known else torch.empty(0, 1)
        save_file({"images": images}, made, {_ENTRY: json.dumps([*known])})
        made.replace(file)
    except (OSError, SafetensorError) as error:
        say(f"search: warning: the embeddings are not kept: {error}; give --cache a folder that can be written\n")
