"""Stage export: a student for other programs, in every format that can hold it, with its model card.

    python -m cmapkd_core.stages.export --recipe demo --root runs/local --shards URL --model URL --evaluation URL

Artifact: open_clip/, huggingface/ and onnx/ (or the reason in parity.json), README.md (the card), parity.json (how far
each format's embeddings are from the student's), training.json (what the training was asked for). Afterwards the
artifact becomes a version in MLflow's model registry, where there is one; its absence loses nothing.
"""

from __future__ import annotations

import sys

from cmapkd_core import storage
from cmapkd_core.model_reference import named_model
from cmapkd_core.places import export_fields, export_reads, export_url
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Late, execute
from cmapkd_core.stages.foreign import refuse_evaluation_of_another
from cmapkd_core.stages.given import of_evaluation
from cmapkd_core.stages.tracked import reported_to_mlflow
from cmapkd_core.tracking import RegistryError, register_model


def run(
    request: Request, *, model: str, shards: str = "", evaluation: str = "", suite: str = "", licence: str = ""
) -> str:
    """Export a student.

    Args:
        model: as of stage evaluate.
        shards: URL of the prepare artifact; "" prepares the recipe's data first.
        evaluation: URL of the model's evaluation; "" leaves the card without results.
        suite: URL of a suite's report; its means and intervals over seeds then stand in the card.
        licence: of the exported weights, an identifier of Hugging Face such as mit; "" leaves it open.

    Raises:
        InputError: an artifact that is not complete, a model that is no student, or another model's evaluation.
        ParityError: a format gives other embeddings than the student.
    """
    shards = shards or prepare.run(request)
    given = {"shards": shards, "model": "" if named_model(model) else model, "evaluation": evaluation, "suite": suite}
    with reported_to_mlflow(request, "export"):
        refuse_evaluation_of_another("--evaluation", evaluation, model)
    decided_by = (request.root, model, shards, request.resolved(), evaluation, suite, licence)
    url = execute(
        request,
        "export",
        url=export_url(*decided_by),
        fields=export_fields(*decided_by),
        inputs={name: where for name, where in given.items() if where},
        body=Late("export", model=model, licence=licence),
        declared=export_reads(model),
        paths=of_evaluation(decided_by[3], model),
    )
    register(request, Artifact.open(url))
    return url


def register(request: Request, artifact: Artifact) -> None:
    """A version of `cmapkd-RECIPE` in MLflow's model registry; what goes wrong there is said and loses nothing."""
    name, source = f"cmapkd-{request.recipe}", storage.join(artifact.url, artifact.manifest["folder"])
    tags = {"cmapkd.run": request.run or "unnamed", "cmapkd.ablation": request.ablation or "none"}
    tags["cmapkd.artifact"] = artifact.url
    try:
        version = register_model(request.tracking_uri, name=name, source=source, digest=artifact.digest, tags=tags)
    except RegistryError as error:
        print(f"export: warning: not registered in MLflow: {error}; the export stands at {source}", flush=True)
        return
    outcome = (
        f"version {version} of {name} in MLflow's registry" if version else "no MLflow is given, so not registered"
    )
    print(f"export: {outcome}: {source}", flush=True)


if __name__ == "__main__":
    sys.exit(main(run))
