"""Pairs of split val for a selector that weighs by them (catalog.SELECTORS: validates); nothing else trains by them."""

from __future__ import annotations

from cmapkd_core import parallel
from cmapkd_core.data.loader import Batch, Side, TrainLoader
from cmapkd_core.errors import InputError
from cmapkd_core.stages.data_set import shards_of
from cmapkd_core.stages.execute import Context


class ValidationPairs:
    """Batches of the student's inputs by step of a phase: as many pairs as a training batch has, or all there are."""

    def __init__(self, context: Context, side: Side, seed: int) -> None:
        """Args: side, seed: as of `TrainLoader`.

        Raises:
            InputError: the data set has too few validation pairs.
        """
        recipe, shards, world = context.recipe, shards_of(context), parallel.world()
        count = shards.manifest["splits"].get("val", {}).get("count", 0)
        batch = min(recipe.optim.batch, count) // world * world
        if batch < 2:
            raise InputError(
                f"selector.kind={recipe.selector.kind} weighs by validation pairs, and {shards.url} has {count}: "
                "prepare data with data.val_share above 0, or with val among data.splits where the source names splits"
            )
        data = recipe.data
        self._loader = TrainLoader(
            shards,
            {"student": side},
            split="val",
            batch=batch,
            rank=parallel.rank(),
            world=world,
            seed=seed,
            fraction=1.0,
            crop_scale=data.crop_scale,
            workers=0,  # steps come one by one
            max_pixels=data.max_pixels,
            quarantine_bound=data.quarantine_bound,
            device=parallel.device(),
        )
        self._corrupt: dict[str, str] = {}

    def of_step(self, step: int) -> Batch:
        """This rank's pairs of a step, on its device.

        Raises:
            InputError: more validation pairs are corrupt than may be.
        """
        batch = next(self._loader.batches(step, step + 1)).to(parallel.device())
        self._corrupt.update(batch.replaced)
        self._loader.require_few_corrupt(self._corrupt)
        return batch
