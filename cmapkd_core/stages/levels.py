"""Stage levels: teacher's and student's levels side by side, for the paper's Figures 5 and 6.

    python -m cmapkd_core.stages.levels --recipe demo --root runs/local --shards URL --teacher URL --joint URL

Artifact: levels.parquet (pooled image levels of the teacher, of the student before any training and of the trained
one, and the similarities of image levels with text levels, for up to 1000 held-out pairs), metrics.json, levels.json.
A method without levels has none of it; its levels.json says so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType

from cmapkd_core.places import levels_fields, levels_reads, levels_url
from cmapkd_core.request import Request
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Late, execute
from cmapkd_core.stages.foreign import refuse_foreign
from cmapkd_core.stages.given import of_training
from cmapkd_core.stages.given_teachers import teacher_inputs_of
from cmapkd_core.stages.tracked import reported_to_mlflow

NONE: Mapping[str, str] = MappingProxyType({})


def run(request: Request, *, shards: str, teacher: str, joint: str, artifacts: Mapping[str, str] = NONE) -> str:
    """Measure the levels of a trained student beside the teacher's and the untrained student's.

    Args:
        shards, teacher, joint: URLs of the artifacts of these stages.
        artifacts: URLs of the artifacts of further teachers, as of a training stage; their levels are not looked at.

    Raises:
        InputError: an artifact of another recipe.
    """
    recipe = request.resolved()
    inputs = {"shards": shards, "joint": joint, **teacher_inputs_of(recipe, "levels", teacher, artifacts)}
    url, fields = levels_url(request.root, recipe), levels_fields(recipe)
    with reported_to_mlflow(request, "levels"):
        refuse_foreign(recipe, request.root, inputs)
    return execute(
        request,
        "levels",
        url=url,
        fields=fields,
        inputs=inputs,
        body=Late("levels"),
        declared=levels_reads(recipe),
        paths=of_training(recipe, ""),
    )


if __name__ == "__main__":
    sys.exit(main(run))
