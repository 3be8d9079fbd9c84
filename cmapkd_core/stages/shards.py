"""The data set that a stage reads. Not in assembly.py, which loads what models need: seconds that a report spares."""

from __future__ import annotations

from cmapkd_core import storage
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.stages.artifact import Artifact


def open_shards(artifact: Artifact) -> ShardSet:
    """The data set of a prepare artifact."""
    return ShardSet.open(storage.join(artifact.url, artifact.manifest["folder"]), artifact.cache)
