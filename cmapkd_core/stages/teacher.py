"""Stage teacher: fit the frozen teacher's joint space (where it has none), pyramid and bridges; freeze them.

    python -m cmapkd_core.stages.teacher --recipe demo --root runs/local --shards runs/local/prepare/88c2824ac398

Artifact: model/ (the teacher), pyramid.safetensors (its levels and alpha), fit.json (per level retrieval
R@1 and explained variance on held-out pairs, alpha), history.json; stored/ (its cached outputs for the training
pairs) where teacher_fit.views > 0; skipped_updates.jsonl where updates were skipped.
"""

from __future__ import annotations

import sys

from cmapkd_core import parallel
from cmapkd_core.ensemble import require_heads
from cmapkd_core.fingerprints import declared, reads
from cmapkd_core.places import place
from cmapkd_core.request import Request
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Late, execute
from cmapkd_core.stages.foreign import refuse_foreign
from cmapkd_core.stages.given import of_teacher
from cmapkd_core.stages.tracked import reported_to_mlflow


def run(request: Request, *, shards: str) -> str:
    """Fit the teacher on the pairs of a data set.

    Args:
        shards: URL of the prepare artifact.

    Raises:
        InputError: they are missing, or were prepared by another recipe; the teacher's heads would be random.
    """
    parallel.start()
    recipe = request.resolved()
    require_heads(recipe)
    with reported_to_mlflow(request, "teacher"):
        refuse_foreign(recipe, request.root, {"shards": shards})
    fields, may = reads(recipe, "teacher"), declared(recipe, "teacher")
    url = place(request.root, "teacher", fields)
    return execute(
        request,
        "teacher",
        url=url,
        fields=fields,
        inputs={"shards": shards},
        body=Late("teacher"),
        declared=may,
        paths=of_teacher(recipe),
    )


if __name__ == "__main__":
    sys.exit(main(run))
