"""The frozen teacher's embeddings of fixed crops and of all captions: written by stage `teacher`, read by training.

Later stages of methods that hear embeddings alone (`method_specs.METHODS`: targets) then never run the teacher.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmapkd_core import parallel, storage
from cmapkd_core.config import Recipe
from cmapkd_core.data.fixed import STORE, EmbeddingStore, crop_batches, write_store
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.engine.optim import choose_precision
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import precision
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.folder import WEIGHTS
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.assembly import MODEL, open_shards
from cmapkd_core.stages.common import Context

PART = 2048  # pictures between two saves: what a stopped stage does not do again


def made_from(recipe: Recipe, shards: ShardSet, teacher: str) -> dict[str, str]:
    """What decides a store's contents; `teacher` is the sha256 of its weights."""
    return {
        "shards": shards.manifest["index"]["sha256"],
        "teacher": teacher,
        "teacher_fit.views": str(recipe.teacher_fit.views),
        "data.crop_scale": ",".join(map(str, recipe.data.crop_scale)),
    }


def store_embeddings(context: Context, shards: ShardSet, backbone: Backbone) -> None:
    """Write the store into `context.out`, beside the teacher's saved model; nothing where the recipe wants none.

    The ranks share the parts, and a restarted stage finds those that are done.
    """
    recipe, count = context.recipe, shards.count("train")
    if not recipe.teacher_fit.views:
        return
    parts = [range(start, min(start + PART, count)) for start in range(0, count, PART)]
    for number in range(parallel.rank(), len(parts), parallel.world()):
        url = _part_url(context, number)
        if not storage.exists(url):
            file = context.scratch / f"part-{number}.safetensors"
            save_file(embed_part(context, shards, backbone, parts[number]), file)
            storage.put(file, url)
            file.unlink()
        context.say(f"teacher: embeddings of {parts[number].stop} of {count} pictures")
    parallel.barrier()
    if parallel.rank() == 0:
        found = [load_file(_fetch_part(context, number)) for number in range(len(parts))]
        image, text = (torch.cat([part[name] for part in found]) for name in ("image", "text"))
        captions = [len(own) for own in shards.table("train")["captions"].to_pylist()]
        digest = storage.sha256_file(context.out / MODEL / WEIGHTS)
        write_store(context.out / STORE, image, text, captions, made_from(recipe, shards, digest))
        context.say(f"teacher: stored embeddings of {image.shape[1]} crops each of {count} pictures\n")


@torch.no_grad()
def embed_part(context: Context, shards: ShardSet, backbone: Backbone, rows: range) -> dict[str, Tensor]:
    """image [k,n,E] of the fixed crops of k pictures and text [c,E] of their captions, fp32."""
    recipe, device, side = context.recipe, parallel.device(), side_of(backbone)
    crops, batch = recipe.teacher_fit.views, recipe.teacher_fit.batch
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
    )
    texts = [text for i in rows for text in shards.captions("train", i)]
    chunks = [texts[start : start + batch] for start in range(0, len(texts), batch)]
    backbone.eval()
    with precision(device.type, choose_precision(recipe.optim.precision, device)):
        image = [backbone.encode_image(x.flatten(0, 1).to(device)).float().cpu() for x in pictures]
        text = [backbone.encode_text(side.tokenize(chunk).to(device)).float().cpu() for chunk in chunks]
    return {"image": torch.cat(image).unflatten(0, (-1, crops)), "text": torch.cat(text)}


def open_store(context: Context) -> EmbeddingStore | None:
    """The store that the recipe's method trains from; None where the teacher runs beside the student, or there is none.

    Raises:
        InputError: the teacher's artifact has no store, or one that was made from something else.
    """
    recipe = context.recipe
    if not recipe.teacher_fit.views or METHODS[recipe.method.name].targets != "embeddings":
        return None
    artifact = context.inputs["teacher"]
    if STORE not in artifact.files():
        raise InputError(
            f"teacher_fit.views={recipe.teacher_fit.views} trains from stored embeddings, and {artifact.url} has none: "
            "run stage teacher with this recipe, or set teacher_fit.views=0"
        )
    return EmbeddingStore.open(artifact.fetch(STORE), made_from(recipe, _shards(context), _weights(artifact)))


def _shards(context: Context) -> ShardSet:
    return open_shards(context.inputs["shards"])


def _weights(artifact: Artifact) -> str:
    digest: str = artifact.manifest["outputs"][f"{MODEL}/{WEIGHTS}"]["sha256"]
    return digest


def _part_url(context: Context, number: int) -> str:
    return storage.join(context.workdir, "embeddings", f"{context.identity}-{number:06d}.safetensors")


def _fetch_part(context: Context, number: int) -> Path:
    return storage.fetch(_part_url(context, number), context.scratch / "parts" / f"{number}.safetensors")
