"""The data set that a stage reads. Not in training.py, which imports models: seconds that a report spares."""

from __future__ import annotations

from cmapkd_core import storage
from cmapkd_core.data.layout import MANIFEST
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError
from cmapkd_core.stages.artifact import Artifact


def open_shards(artifact: Artifact) -> ShardSet:
    """The data set of a prepare artifact.

    Raises:
        InputError: it has no data set, or one that is not as its manifest says.
    """
    if MANIFEST not in artifact.manifest["outputs"]:
        raise InputError(f"{artifact.url} has no {MANIFEST}, so it is no data set: give an artifact of stage prepare")
    digest = artifact.manifest["outputs"][MANIFEST]["sha256"]
    return ShardSet.open(storage.join(artifact.url, artifact.manifest["folder"]), artifact.cache, digest)
