"""How a student hears its teacher: beside it, from what is stored of it, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cmapkd_core import parallel
from cmapkd_core.config import STAGE_PHASES
from cmapkd_core.data.fixed import TeacherStore
from cmapkd_core.data.loader import Batch, Side, TrainLoader
from cmapkd_core.engine.optim import choose_precision
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.methods.base import Method
from cmapkd_core.models.pyramid import needed
from cmapkd_core.models.teacher import Embeddings, Teacher
from cmapkd_core.stages.assembly import train_loader
from cmapkd_core.stages.common import Context
from cmapkd_core.stages.shards import open_shards
from cmapkd_core.stages.stored import open_store


@dataclass(frozen=True)
class Taught:
    """How a student hears its teacher.

    loader(phase, levels): the phase's batches. targets(batch, levels): what the teacher says of one at these levels.
    """

    loader: Callable[[str, tuple[str, ...]], TrainLoader]
    targets: Callable[[Batch, tuple[str, ...]], Embeddings | None]


def hear(context: Context, method: Method, teacher: Teacher | None) -> Taught:
    """The teacher beside the student, what is stored of it, or none.

    A teacher whose words are stored runs no more: its towers leave the device.
    """
    store = open_store(context)
    if teacher is None:
        return Taught(lambda phase, levels: pair_loader(context, method, phase), lambda batch, levels: None)
    said = teacher
    said.amp = choose_precision(context.recipe.optim.precision, parallel.device())
    if store is None:
        side = side_of(said.backbone)
        return Taught(
            lambda phase, levels: pair_loader(context, method, phase, teacher=side),
            lambda batch, levels: said.targets(batch.images["teacher"], batch.tokens["teacher"], levels),
        )
    said.backbone.cpu()
    return Taught(
        lambda phase, levels: pair_loader(
            context, method, phase, store=store.only("image", "text", *needed(levels), *levels)
        ),
        lambda batch, levels: said.recalled(batch.stored, levels),
    )


def pair_loader(
    context: Context, method: Method, phase: str, *, teacher: Side | None = None, store: TeacherStore | None = None
) -> TrainLoader:
    """A phase's batches of the students' share of the training pairs, as the student and the teacher want them.

    With a store they carry what the teacher says of them.
    """
    sides = {"student": side_of(method.student), **({"teacher": teacher} if teacher else {})}
    shards, recipe = open_shards(context.inputs["shards"]), context.recipe
    batch, seed = recipe.optim.batch // recipe.optim.accumulate, phase_seed(recipe.seed, phase)
    crops = recipe.teacher_fit.views
    return train_loader(
        recipe, shards, sides, batch=batch, fraction=recipe.data.fraction, seed=seed, crops=crops, store=store
    )


def phase_seed(seed: int, phase: str) -> int:
    """The seed of a phase's stream: phases do not repeat each other's order and crops."""
    names = [name for names in STAGE_PHASES.values() for name in names]
    return seed * len(names) + names.index(phase)
