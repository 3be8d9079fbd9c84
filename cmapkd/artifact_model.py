"""The model that an artifact holds, whichever stage made it."""

from __future__ import annotations

from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import load_model
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.usage import OPEN_CLIP

FOLDERS = (OPEN_CLIP, "model")  # of a model in an artifact: an export's, and that of a stage that trains


def model_of(artifact: Artifact) -> Backbone:
    """The model of an artifact, on the CPU.

    Raises:
        InputError: it holds none.
    """
    for folder in FOLDERS:
        if any(name.startswith(f"{folder}/") for name in artifact.files()):
            return load_model(artifact.fetch_folder(folder))
    raise InputError(
        f"{artifact.url} is of stage {artifact.manifest['stage']} and holds no model: give that of stage export "
        "(ROOT/export/KEY), or of one that trains (ROOT/joint/KEY)"
    )
