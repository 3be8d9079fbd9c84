"""Cache of the frozen teacher's outputs for fixed crops and all captions: stage `teacher` writes, training reads.

Methods that need no more than is cached (`method_specs.METHODS`: targets) then never run the teacher's towers.
Its embeddings are 3 KB a crop; its levels are the laterals of its pyramid before they are merged (fp16; about 326 KB
a crop of ViT-L/14 beside ViT-B/16, a sixth of the merged maps), and its fitted pyramid merges them beside the student.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cmapkd_core import parallel, storage
from cmapkd_core.catalog import STORES
from cmapkd_core.config import ALL_LEVELS, Recipe
from cmapkd_core.data.fixed_crops import CACHE_FOLDER, TeacherCache, crop_batches, write_part
from cmapkd_core.data.shard_cache import GB, ShardCache
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.stored_parts import StoredParts
from cmapkd_core.data.threads import in_order
from cmapkd_core.engine.finite import require_finite
from cmapkd_core.engine.optim import choose_teacher_precision
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.method_specs import METHODS
from cmapkd_core.models.frozen_teacher import Teacher
from cmapkd_core.models.model_folder import WEIGHTS
from cmapkd_core.progress import Progress
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.method_io import LEVELS_STATE, MODEL

DOWNLOADS = 4  # parts at a time
_PART = re.compile(r"(?P<identity>.+)-(?P<number>\d+)-(?P<digest>[0-9a-f]{64})\.safetensors")
Outputs = tuple[dict[str, Tensor], dict[str, Tensor]]  # for crops [k,n,...] and for captions [c,...], by name


def made_from(recipe: Recipe, shards: ShardSet, teacher: str, levels: str) -> dict[str, str]:
    """What decides a cache's contents; `teacher` and `levels` are the sha256 of its weights and of its pyramid's."""
    fit = recipe.teacher_fit
    return {
        "shards": shards.manifest["index"]["sha256"],
        "teacher": teacher,
        **({"levels": levels} if STORES[fit.store].levels else {}),
        "teacher_fit.views": str(fit.views),
        "teacher_fit.store": fit.store,
        "data.crop_scale": ",".join(map(str, recipe.data.crop_scale)),
    }


def write_cache(context: Context, shards: ShardSet, teacher: Teacher) -> None:
    """Write the cache into `context.out`, beside the teacher's saved weights; nothing where the recipe wants none.

    The ranks share the parts, and a restarted stage finds those that are done.
    """
    recipe, count = context.recipe, shards.count("train")
    if not recipe.teacher_fit.views:
        return
    kind = recipe.teacher_fit.store
    size = STORES[kind].size
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    digests = (storage.sha256_file(context.out / name) for name in (f"{MODEL}/{WEIGHTS}", LEVELS_STATE))
    origin = made_from(recipe, shards, *digests)
    saved = _saved(context)
    make = partial(_make, context, shards, teacher, origin)
    own = range(parallel.rank(), len(parts), parallel.world())
    progress = _progress(context, count, sum(len(parts[number]) for number in own if number in saved))
    for number in own:
        if number not in saved:
            file = make(number, parts[number], progress)
            storage.put(file, _part_url(context, number, storage.sha256_file(file)))
            file.unlink()
    parallel.barrier()
    if parallel.rank() == 0:
        (context.out / CACHE_FOLDER).mkdir()
        gathered = in_order(range(len(parts)), partial(_gather, context, _saved(context)), DOWNLOADS)
        for number, fault in [(number, fault) for number, fault in enumerate(gathered) if fault]:
            context.say(f"teacher: {fault}: its pictures are asked for again\n")
            shutil.move(
                make(number, parts[number], lambda done: None), context.out / CACHE_FOLDER / f"{number:06d}.safetensors"
            )
        context.say(f"teacher: stored {kind} of {recipe.teacher_fit.views} crops each of {count} pictures\n")


def _progress(context: Context, count: int, before: int) -> Callable[[int], None]:
    """Says up to which of the `count` pictures of all ranks the parts are done, given a position among them."""
    kind = context.recipe.teacher_fit.store
    show = Progress(context.say, "teacher", count, "pictures", before=before * parallel.world())
    return lambda done: show(done, f"{kind} of {done} of {count} pictures")


def _make(
    context: Context,
    shards: ShardSet,
    teacher: Teacher,
    origin: dict[str, str],
    number: int,
    rows: range,
    progress: Callable[[int], None],
) -> Path:
    file = context.scratch / f"part-{number}.safetensors"
    counts = [len(shards.captions("train", i)) for i in rows]
    images, texts = teacher_outputs(context, shards, teacher, rows, progress)
    for kind, outputs in (("pictures", images), ("captions", texts)):
        require_finite(outputs, f"teacher outputs of the {kind} of {rows.start}..{rows.stop - 1}")
    write_part(file, rows.start, images, texts, counts, origin)
    return file


def _saved(context: Context) -> dict[int, str]:
    """Number -> digest of the parts in the workdir, which is in their names; one without is of before, and not used."""
    found = (_PART.fullmatch(name) for name in storage.list_files(storage.join(context.workdir, CACHE_FOLDER)))
    return {int(name["number"]): name["digest"] for name in found if name and name["identity"] == context.identity}


def _gather(context: Context, saved: dict[int, str], number: int) -> str:
    """Bring a part from the workdir into `context.out`; why it has to be made again, or ""."""
    if number not in saved:
        return f"part {number} is gone from {context.workdir}"
    url, target = _part_url(context, number, saved[number]), context.out / CACHE_FOLDER / f"{number:06d}.safetensors"
    try:
        # The part itself where the workdir is a local folder, else a download.
        part = storage.fetch(url, context.scratch / f"part-{number}.safetensors")
    except FileNotFoundError:
        return f"{url} is gone"
    shutil.copyfile(part, target)
    (context.scratch / f"part-{number}.safetensors").unlink(missing_ok=True)
    return "" if storage.sha256_file(target) == saved[number] else f"{url} is not what was saved"


def teacher_outputs(
    context: Context, shards: ShardSet, teacher: Teacher, rows: range, progress: Callable[[int], None]
) -> Outputs:
    """The teacher's outputs for the n fixed crops of k pictures, [k,n,...], and for their c captions, [c,...].

    Embeddings are fp32; levels of pictures are laterals in fp16. `progress` is called after each batch, with the
    position in the split up to which pictures are done.
    """
    recipe, device, side = context.recipe, parallel.device(), side_of(teacher.backbone)
    crops, batch = recipe.teacher_fit.views, recipe.teacher_fit.batch
    levels = ALL_LEVELS if STORES[recipe.teacher_fit.store].levels else ()
    pictures = crop_batches(
        shards,
        "train",
        side.view,
        rows,
        crops=crops,
        crop_scale=recipe.data.crop_scale,
        batch=max(1, batch // crops),
        workers=recipe.runtime.workers,
        max_pixels=recipe.data.max_pixels,
        device=device,
    )
    texts = [text for i in rows for text in shards.captions("train", i)]
    chunks = [texts[start : start + batch] for start in range(0, len(texts), batch)]
    teacher.amp = choose_teacher_precision(recipe.optim, device)
    shown = _counted(pictures, rows, progress)
    image = _joined(teacher.image_outputs(x.flatten(0, 1), levels) for x in shown)
    text = _joined(teacher.text_outputs(side.tokenize(chunk).to(device), levels) for chunk in chunks)
    half = {name: x if name == "image" else x.half() for name, x in image.items()}
    return {name: x.unflatten(0, (-1, crops)) for name, x in half.items()}, text


def _counted(pictures: Iterable[Tensor], rows: range, progress: Callable[[int], None]) -> Iterator[Tensor]:
    """The batches [b,..] as they are; each is done when the next one is asked for."""
    done = rows.start
    for batch in pictures:
        yield batch
        done += len(batch)
        progress(done)


def _joined(batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors [b,...] of several batches as [n,...] on the CPU, by name."""
    found = [{name: x.cpu() for name, x in batch.items()} for batch in batches]
    return {name: torch.cat([batch[name] for batch in found]) for name in found[0]}


def open_cache(context: Context) -> TeacherCache | None:
    """The cache that the recipe's method trains from; None where the teacher runs beside the student, or there is none.

    Raises:
        InputError: the teacher's artifact has no cache, or one that was made from something else.
    """
    recipe, fit, spec = context.recipe, context.recipe.teacher_fit, METHODS[context.recipe.method.name]
    if not spec.teacher or not fit.views or spec.targets not in ("embeddings", fit.store):
        return None
    artifact = context.inputs["teacher"]
    parts = [name for name in artifact.files() if name.startswith(f"{CACHE_FOLDER}/")]
    if not parts:
        raise InputError(
            f"teacher_fit.views={fit.views} trains on cached teacher outputs, and {artifact.url} has none: "
            "run stage teacher with this recipe and give its artifact as --teacher, or set teacher_fit.views=0"
        )
    digests = (_digest(artifact, name) for name in (f"{MODEL}/{WEIGHTS}", LEVELS_STATE))
    origin = made_from(recipe, shards_of(context), *digests)
    if context.recipe.runtime.cache_gb and "://" in artifact.url:
        room = ShardCache(round(context.recipe.runtime.cache_gb * GB))
        files = [artifact.remote(name) for name in sorted(parts)]
        room.adopt(files)
        return StoredParts(files, STORES[fit.store].size, origin, room)
    # Each rank begins elsewhere, so that the ranks of a machine do not all download the same part.
    begin = parallel.rank() * len(parts) // parallel.world()
    turned = [*parts[begin:], *parts[:begin]]
    return TeacherCache.open(list(in_order(turned, artifact.fetch, DOWNLOADS)), origin)


def _digest(artifact: Artifact, name: str) -> str:
    digest: str = artifact.manifest["outputs"][name]["sha256"]
    return digest


def _part_url(context: Context, number: int, digest: str) -> str:
    return storage.join(context.workdir, CACHE_FOLDER, f"{context.identity}-{number:06d}-{digest}.safetensors")
