"""Cache of the frozen teacher's outputs for fixed crops and all captions: store_filling.py writes, training reads.

Methods that need no more than is cached (`method_specs.METHODS`: targets) then never run the teacher's towers.
Its embeddings are 3 KB a crop; its levels are the laterals of its pyramid before they are merged (about 326 KB
a crop of ViT-L/14 beside ViT-B/16 in fp16, half of it in int8), and its fitted pyramid merges them beside the student.
It has the pictures that students train on: a share data.fraction of all.
"""

from __future__ import annotations

import numpy as np

from cmapkd_core import parallel
from cmapkd_core.catalog import STORES
from cmapkd_core.config import Recipe, TeacherFitConfig
from cmapkd_core.data.fixed_crops import CACHE_FOLDER, TeacherCache
from cmapkd_core.data.order import chosen
from cmapkd_core.data.shard_cache import GB, ShardCache
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.stored_parts import StoredParts
from cmapkd_core.data.threads import in_order
from cmapkd_core.ensemble import FIRST, as_stored, further_teachers
from cmapkd_core.errors import InputError
from cmapkd_core.method_specs import METHODS
from cmapkd_core.models.model_folder import WEIGHTS
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.given_teachers import make_teacher
from cmapkd_core.stages.method_io import LEVELS_STATE, MODEL
from cmapkd_core.view import with_part

DOWNLOADS = 4  # parts at a time


def made_from(recipe: Recipe, shards: ShardSet, teacher: str, levels: str) -> dict[str, str]:
    """What decides a cache's contents; `teacher` and `levels` are the sha256 of its weights and of its pyramid's."""
    fit = recipe.teacher_fit
    return {
        "shards": shards.manifest["index"]["sha256"],
        "teacher": teacher,
        **({"levels": levels} if STORES[fit.store].levels else {}),
        "teacher_fit.views": str(fit.views),
        "teacher_fit.store": fit.store,
        **({"teacher_fit.levels": fit.levels} if fit.levels != TeacherFitConfig.levels else {}),
        "data.crop_scale": ",".join(map(str, recipe.data.crop_scale)),
        **({"data.fraction": str(recipe.data.fraction)} if recipe.data.fraction < 1 else {}),
    }


def stored_pictures(recipe: Recipe, shards: ShardSet) -> np.ndarray:
    """Positions in the training split of the pictures that students train on, which are those cached, int64 [m]."""
    return chosen(shards.key_hashes("train"), recipe.data.fraction)


def open_cache(context: Context) -> TeacherCache | None:
    """The cache that the recipe's method trains from; None where the teacher runs beside the student, or there is none.

    Raises:
        InputError: the teacher's artifact has no cache, or one that was made from something else.
    """
    recipe, fit, spec = context.recipe, context.recipe.teacher_fit, METHODS[context.recipe.method.name]
    if not spec.teacher or not fit.views or spec.targets not in ("embeddings", fit.store):
        return None
    return _opened(context, FIRST, recipe, shards_of(context))


def open_further(context: Context) -> dict[str, TeacherCache]:
    """The caches of the recipe's further teachers by name, of embeddings; {} where they run beside the student.

    Raises:
        InputError: as of `open_cache`.
    """
    recipe, names = context.recipe, further_teachers(context.recipe)
    if not names or not recipe.teacher_fit.views:
        return {}
    stored = with_part(recipe, "teacher_fit", as_stored(recipe.teacher_fit))
    return {name: _opened(context, name, stored, shards_of(context)) for name in names}


def _opened(context: Context, name: str, recipe: Recipe, shards: ShardSet) -> TeacherCache:
    """The cache in the artifact that is the stage's input `name`."""
    artifact, fit = context.inputs[name], recipe.teacher_fit
    parts = [file for file in artifact.files() if file.startswith(f"{CACHE_FOLDER}/")]
    if not parts:
        raise InputError(
            f"teacher_fit.views={fit.views} trains on cached teacher outputs, and {artifact.url} has none: "
            f"{make_teacher(context.recipe, name)}, or set teacher_fit.views=0"
        )
    digests = (_digest(artifact, file) for file in (f"{MODEL}/{WEIGHTS}", LEVELS_STATE))
    origin, pictures = made_from(recipe, shards, *digests), stored_pictures(recipe, shards)
    if recipe.runtime.cache_gb and "://" in artifact.url:
        room = ShardCache(round(recipe.runtime.cache_gb * GB))
        files = [artifact.remote(file) for file in sorted(parts)]
        room.adopt(files)
        return StoredParts(files, STORES[fit.store].size, origin, room, pictures=pictures)
    # Each rank begins elsewhere, so that the ranks of a machine do not all download the same part.
    begin = parallel.rank() * len(parts) // parallel.world()
    turned = [*parts[begin:], *parts[:begin]]
    return TeacherCache.open(list(in_order(turned, artifact.fetch, DOWNLOADS)), origin, pictures)


def _digest(artifact: Artifact, name: str) -> str:
    digest: str = artifact.manifest["outputs"][name]["sha256"]
    return digest
