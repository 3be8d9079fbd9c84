"""The teacher's embeddings of some training pairs, which a method compares all batches with (docs/decisions/0026).

They follow from the recipe's seed and the pictures' keys: the same on every rank, in every stage of a run, and after a
restart. A store has them; without one the live teacher gives the same for the same crops and captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cmapkd_core import parallel
from cmapkd_core.config import Recipe
from cmapkd_core.data.fixed_crops import TeacherCache
from cmapkd_core.data.loader import NO_CACHES
from cmapkd_core.data.order import drawn, mix, withheld
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.teacher_inputs import Chunk, caption_counts, teacher_inputs
from cmapkd_core.ensemble import further_teachers
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.frozen_teacher import Teacher, beside
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.teacher_cache import stored_pictures

CROP = 0  # of a picture's fixed crops
_CAPTION = 0xBA4C  # apart from what else the seed draws for a key


def bank_of(
    context: Context,
    teacher: Teacher,
    cache: TeacherCache | None,
    count: int,
    further: Mapping[str, TeacherCache] = NO_CACHES,
) -> tuple[Tensor, Tensor]:
    """Unit embeddings [n,E] of pictures and of captions: of `count` of the pairs that students train on, or of all.

    Args:
        cache: the teacher's stored outputs; None asks the teacher itself, whose towers are then on the device.
        further: the same of further teachers by name; none asks them.
    """
    recipe, shards = context.recipe, shards_of(context)
    pictures, captions = pairs_of(recipe, shards, count)

    def embeddings_of(backbone: Backbone, stored: TeacherCache | None) -> tuple[Tensor, Tensor]:
        if stored is None:
            return _asked(recipe, shards, teacher, backbone, pictures, captions)
        rows = stored.only("image", "text").rows(pictures, [CROP] * len(pictures), captions)
        return rows["image"].float(), rows["text"].float()

    caches = [cache, *(further.get(name) for name in further_teachers(recipe))]
    each = [embeddings_of(*one) for one in zip((teacher.backbone, *teacher.further), caches, strict=True)]
    embeddings = each[0] if len(each) == 1 else (beside([one[0] for one in each]), beside([one[1] for one in each]))
    fewer = f"; method.bank={count}, and there are no more" if len(pictures) < count else ""
    source = "of the live teacher" if cache is None else "from the teacher's store"
    context.say(f"{recipe.method.name}: a bank of {len(pictures)} training pairs {source}{fewer}\n")
    return embeddings


def pairs_of(recipe: Recipe, shards: ShardSet, count: int) -> tuple[np.ndarray, list[int]]:
    """Positions in the training split, ascending, int64 [n], and which of its captions each picture has in the bank."""
    known, hashes = stored_pictures(recipe, shards), shards.key_hashes("train")
    known = known[~withheld(hashes[known], recipe.data.unpaired)]  # nobody shall learn from a caption that is withheld
    pictures = known[drawn(hashes[known], count, recipe.seed)]
    counts = caption_counts(shards, "train")[pictures].astype(np.uint64)
    return pictures, (mix(hashes[pictures], recipe.seed, _CAPTION) % counts).tolist()


@torch.no_grad()
def _asked(
    recipe: Recipe,
    shards: ShardSet,
    teacher: Teacher,
    backbone: Backbone,
    pictures: np.ndarray,
    captions: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """What the store would have, of a running teacher with these towers."""
    side, device, batch = side_of(backbone), parallel.device(), recipe.teacher_fit.batch
    parts = [range(start, min(start + batch, len(pictures))) for start in range(0, len(pictures), batch)]
    shown = teacher_inputs(
        shards,
        "train",
        side,
        [Chunk(part) for part in parts],
        crops=CROP + 1,
        crop_scale=recipe.data.crop_scale,
        workers=recipe.runtime.workers,
        max_pixels=recipe.data.max_pixels,
        device=device,
        pictures=pictures,
    )
    images = [teacher.image_of(backbone, pixels) for pixels in shown]
    sentences = [shards.captions("train", int(i))[k] for i, k in zip(pictures, captions, strict=True)]
    tokens = (side.tokenize([sentences[i] for i in part]).to(device) for part in parts)
    texts = [teacher.text_of(backbone, one) for one in tokens]
    return torch.cat(images), torch.cat(texts)
