"""The data set that a stage reads. Not in training.py, which imports models: seconds that a report spares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmapkd_core import storage
from cmapkd_core.data.layout import MANIFEST
from cmapkd_core.data.shard_cache import GB
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError
from cmapkd_core.stages.artifact import Artifact

if TYPE_CHECKING:
    from cmapkd_core.stages.execute import Context


def shards_of(context: Context) -> ShardSet:
    """The data set that a stage's input `shards` is: opened once, for all its phases, as an index may have gigabytes.

    Raises:
        InputError: as of `open_shards`.
    """
    if context.shards is None:
        context.shards = open_shards(context.inputs["shards"], context.recipe.runtime.cache_gb)
    return context.shards


def open_shards(artifact: Artifact, cache_gb: float = 0.0) -> ShardSet:
    """The data set of a prepare artifact.

    Args:
        cache_gb: as `config.RuntimeConfig` has it.

    Raises:
        InputError: it has no data set, or one that is not as its manifest says.
    """
    if MANIFEST not in artifact.manifest["outputs"]:
        raise InputError(f"{artifact.url} has no {MANIFEST}, so it is no data set: give an artifact of stage prepare")
    digest = artifact.manifest["outputs"][MANIFEST]["sha256"]
    return ShardSet.open(
        storage.join(artifact.url, artifact.manifest["folder"]), artifact.cache, digest, round(cache_gb * GB)
    )
