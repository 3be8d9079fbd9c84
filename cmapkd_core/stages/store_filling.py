"""Stage teacher fills a store with the frozen teacher's outputs: for fixed crops and all captions, part by part.

The teacher goes on while threads write what it gave: one stream of inputs over all parts, and parts go straight to
where they stay, a folder of the artifact that attempts share. A part's name has its digest, so it is there once it is
whole, and two attempts cannot be at odds over one; the manifest, written last, says which parts count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from cmapkd_core import parallel, storage
from cmapkd_core.catalog import LEVEL_CODES, STORES, load
from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.data.fixed_crops import CACHE_FOLDER, lacking, write_part
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.teacher_inputs import caption_counts, chunks_of, teacher_inputs
from cmapkd_core.data.threads import Behind
from cmapkd_core.engine.finite import require_finite
from cmapkd_core.engine.optim import choose_teacher_precision
from cmapkd_core.errors import DamagedInput
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.fingerprints import fingerprint
from cmapkd_core.models.frozen_teacher import Teacher
from cmapkd_core.models.level_codes import as_floats
from cmapkd_core.models.model_folder import WEIGHTS
from cmapkd_core.progress import Progress
from cmapkd_core.stages.artifact import PLACE, RETIRED
from cmapkd_core.stages.ending import OUT
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import LEVELS_STATE, MODEL
from cmapkd_core.stages.teacher_cache import made_from, stored_pictures

UPLOADS, WAITING = 2, 2  # parts that are written at a time, and that wait for it in memory
LOOKS = 4  # parts of an earlier attempt that are read at a time
_PART = re.compile(r"(?P<number>\d+)-(?P<digest>[0-9a-f]{64})\.safetensors")
Named = dict[str, Tensor]
Outputs = tuple[list[Named], list[Named]]  # of a part, batch by batch: for crops [b,n,...] and for captions [b,...]


def write_store(context: Context, shards: ShardSet, teacher: Teacher) -> None:
    """Fill the store of the teacher whose saved weights are in `context.out`; nothing where the recipe wants none.

    The ranks share the parts. A restarted stage keeps those that are whole: it reads its own share of them once, beside
    its work, and makes anew what is damaged.
    """
    fit = context.recipe.teacher_fit
    if not fit.views:
        return
    pictures = stored_pictures(context.recipe, shards)
    count = len(pictures)
    digests = (storage.sha256_file(context.out / name) for name in (f"{MODEL}/{WEIGHTS}", LEVELS_STATE))
    size = STORES[fit.store].size
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    filling = Filling(context, shards, teacher, made_from(context.recipe, shards, *digests), pictures, parts)
    filling.fill(range(parallel.rank(), len(parts), parallel.world()))
    parallel.barrier()
    if parallel.rank() == 0:
        filling.fill(range(len(parts)), known=True)  # of another rank's what has got lost since
        entries = filling.entries()
        if len(entries) < len(parts):
            raise DamagedInput(lacking(filling.folder, len(entries)))
        context.placed |= entries
        context.say(f"teacher: stored {fit.store} of {fit.views} crops each of {count} pictures\n")


@dataclass
class Filling:
    """A store on its way.

    made_from, pictures: see `teacher_cache`. parts: the pictures of each, by their numbers among those.
    """

    context: Context
    shards: ShardSet
    teacher: Teacher
    made_from: dict[str, str]
    pictures: np.ndarray
    parts: Sequence[range]

    def __post_init__(self) -> None:
        context = self.context
        self.artifact = context.workdir.rpartition("/")[0]
        # Results that were set aside keep their parts, and what is made after them has others.
        retired = len(storage.list_files(storage.join(self.artifact, RETIRED)))
        key = fingerprint({**self.made_from, "identity": context.identity, "retired": retired})
        context.shared = f"{OUT}{key}"
        self.folder = f"{context.shared}/{CACHE_FOLDER}"
        self.counts = caption_counts(self.shards, "train")[self.pictures]

    def fill(self, own: range, known: bool = False) -> None:
        """Make those of the parts `own` that are not there. known: that what is there is whole."""
        saved = self.saved()
        present, missing = ([number for number in own if (number in saved) is has] for has in (True, False))
        faults: list[int] = []
        with Behind(partial(self._look, faults), LOOKS, room=len(own), grace=0.0) as looks:

            def look() -> None:
                for number in [] if known else present:
                    looks.put((number, saved[number]))

            self._make(missing, self._progress(present, quiet=known), look)
        for number in sorted(faults):
            again = "its pictures are asked for again"
            self.context.say(f"teacher: {self._url(saved[number])} is not what was saved: {again}\n")
        self._make(sorted(faults), lambda done: None)

    def saved(self) -> dict[int, str]:
        """Number -> name of the parts that are there."""
        matches = (_PART.fullmatch(name) for name in storage.list_files(self._url()))
        return {int(name["number"]): name[0] for name in matches if name}

    def entries(self) -> dict[str, dict[str, object]]:
        """The parts as a manifest names files; nothing is read."""
        sizes = storage.entries(self._url())
        return {
            f"{CACHE_FOLDER}/{number:06d}.safetensors": {
                "bytes": sizes[name].bytes,
                "sha256": _digest(name),
                PLACE: f"{self.folder}/{name}",
            }
            for number, name in sorted(self.saved().items())
        }

    def _url(self, *name: str) -> str:
        return storage.join(self.artifact, self.folder, *name)

    def _look(self, faults: list[int], saved: tuple[int, str]) -> None:
        """Delete a part of an earlier attempt that is not what it wrote."""
        number, name = saved
        try:
            if storage.sha256(self._url(name)) == _digest(name):
                return
        except FileNotFoundError:
            pass
        storage.delete(self._url(name))
        faults.append(number)

    def _make(
        self, numbers: Sequence[int], progress: Callable[[int], None], begun: Callable[[], object] = lambda: None
    ) -> None:
        """Make some parts. begun: called once workers are there, which are forked before threads run."""
        made = teacher_outputs(self, [self.parts[number] for number in numbers], progress) if numbers else iter(())
        with Behind(self._write, UPLOADS, WAITING) as writer:
            for place, (number, outputs) in enumerate(zip(numbers, made, strict=True)):
                if not place:
                    begun()
                writer.put((number, outputs))
        if not numbers:
            begun()

    def _write(self, made: tuple[int, Outputs]) -> None:
        """Store a part: a thread's work."""
        number, outputs = made
        rows, file = self.parts[number], self.context.scratch / f"part-{number}.safetensors"
        images, texts = (_joined(batches) for batches in outputs)
        for kind, tensors in (("pictures", images), ("captions", texts)):
            require_finite(as_floats(tensors), f"teacher outputs of the {kind} of {rows.start}..{rows.stop - 1}")
        write_part(file, rows.start, images, texts, self.counts[rows.start : rows.stop].tolist(), self.made_from)
        storage.put(file, self._url(f"{number:06d}-{storage.sha256_file(file)}.safetensors"))
        file.unlink()

    def _progress(self, present: Sequence[int], quiet: bool) -> Callable[[int], None]:
        """Says up to which of the pictures of all ranks the parts are done, given a position among them."""
        if quiet:
            return lambda done: None
        kind, count = self.context.recipe.teacher_fit.store, len(self.counts)
        before = sum(len(self.parts[number]) for number in present) * parallel.world()
        show = Progress(self.context.say, "teacher", count, "pictures", before=before)
        return lambda done: show(done, f"{kind} of {done} of {count} pictures")


def teacher_outputs(filling: Filling, parts: Sequence[range], progress: Callable[[int], None]) -> Iterator[Outputs]:
    """The teacher's outputs of each part in order, on the teacher's device, which the caller does not wait for.

    Embeddings are fp32; levels of pictures are laterals, as the recipe stores them. `progress` is called after each
    batch of pictures, with the number of those that are done.
    """
    recipe, device, side = filling.context.recipe, parallel.device(), side_of(filling.teacher.backbone)
    fit, crops = recipe.teacher_fit, recipe.teacher_fit.views
    filling.teacher.amp = choose_teacher_precision(recipe.optim, device)
    pictures = max(1, fit.batch // crops)
    chunks = [chunks_of(rows, filling.counts, pictures, fit.batch) for rows in parts]
    inputs = teacher_inputs(
        filling.shards,
        "train",
        side,
        list(chain.from_iterable(chunks)),
        crops=crops,
        crop_scale=recipe.data.crop_scale,
        workers=recipe.runtime.workers,
        max_pixels=recipe.data.max_pixels,
        device=device,
        pictures=filling.pictures,
    )
    levels, coded = ALL_LEVELS if STORES[fit.store].levels else (), load("code of levels", fit.levels, LEVEL_CODES)
    for own in chunks:
        images: list[Named] = []
        texts: list[Named] = []
        for chunk in own:
            given = next(inputs)
            if chunk.captions:
                texts.append(coded(filling.teacher.text_outputs(given, levels)))
            else:
                codes = coded(filling.teacher.image_outputs(given, levels))
                images.append({name: x.unflatten(0, (-1, crops)) for name, x in codes.items()})
                progress(chunk.rows.stop)
        yield images, texts


def _joined(batches: list[Named]) -> Named:
    """Tensors [b,...] of several batches as [n,...] on the CPU, by name."""
    parts = [{name: x.cpu() for name, x in batch.items()} for batch in batches]
    return {name: torch.cat([batch[name] for batch in parts]) for name in parts[0]}


def _digest(name: str) -> str:
    match = _PART.fullmatch(name)
    assert match, f"{name} is no part's name"
    return match["digest"]
