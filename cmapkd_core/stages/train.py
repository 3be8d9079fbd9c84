"""Stages warmup, alsn and joint: train a student by the phases that the recipe's schedule puts there.

    python -m cmapkd_core.stages.train --stage warmup --recipe demo --root runs/local --shards URL --teacher URL
    torchrun --standalone --nproc-per-node 8 -m cmapkd_core.stages.train ...     (the same, eight processes)

Artifact: model/ (the student), method.safetensors (what the method has beside it), history.json; student/ where
the model that answers queries is more than the student; skipped_updates.jsonl where updates were skipped. warmup adds
sample_stats.parquet, and the later stages weights.parquet where a selector was learned.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType

from cmapkd_core import parallel
from cmapkd_core.config import STAGE_PHASES
from cmapkd_core.fields import choose
from cmapkd_core.fingerprints import declared, reads, trains
from cmapkd_core.places import place
from cmapkd_core.progress import ProgressDisplay
from cmapkd_core.request import Request
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Late, execute
from cmapkd_core.stages.foreign import refuse_foreign
from cmapkd_core.stages.given import of_training
from cmapkd_core.stages.given_teachers import teacher_inputs_of
from cmapkd_core.stages.nearby import open_input
from cmapkd_core.stages.tracked import reported_to_mlflow

NONE: Mapping[str, str] = MappingProxyType({})


def run(
    request: Request,
    *,
    stage: str,
    shards: str,
    teacher: str = "",
    init: str = "",
    artifacts: Mapping[str, str] = NONE,
) -> str:
    """Train one stage of a student.

    Args:
        stage: warmup, alsn or joint.
        shards, teacher: URLs of the prepare and teacher artifacts; a method without a teacher reads none.
        artifacts: URLs of the artifacts of further teachers (`teachers`) by what they are, `teacher-2`, `teacher-3` ..
        init: URL of the stage's predecessor; "" starts from the recipe's student.

    Returns:
        the artifact's URL; `init` itself where the stage has nothing to do for this recipe.

    Raises:
        InputError: an input is missing, or was made by another recipe.
    """
    choose("stage", stage, STAGE_PHASES)
    parallel.start()
    recipe = request.resolved()
    if init and not trains(recipe, stage):
        return handed_on(stage, init)
    fields = reads(recipe, stage)
    inputs = {"shards": shards, **({"init": init} if init else {})}
    inputs |= teacher_inputs_of(recipe, stage, teacher, artifacts)
    with reported_to_mlflow(request, stage):
        refuse_foreign(recipe, request.root, inputs)
    url = place(request.root, stage, fields)
    return execute(
        request,
        stage,
        url=url,
        fields=fields,
        inputs=inputs,
        body=Late("train", stage=stage),
        declared=declared(recipe, stage),
        paths=of_training(recipe, init),
    )


def handed_on(stage: str, init: str) -> str:
    """The predecessor's artifact as this stage's own: no copy, so runs with and without the stage agree.

    Raises:
        InputError: it is not complete.
    """
    parallel.start()
    artifact = open_input("init", init)
    ProgressDisplay(quiet=parallel.rank() > 0)(
        f"{stage}: nothing to train for this recipe; it hands on {artifact.url}\n"
    )
    return artifact.url


if __name__ == "__main__":
    sys.exit(main(run))
