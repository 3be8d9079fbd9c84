"""Stage export: a student for other programs, in every format that can hold it, with its model card.

    python -m cmapkd_core.stages.export --recipe demo --root runs/local --shards URL --model URL --evaluation URL

Artifact: open_clip/, huggingface/ and onnx/ (or the reason in parity.json), README.md (the card), parity.json (how far
each format's embeddings are from the student's), training.json (what the training was asked for). Afterwards the
artifact becomes a version in MLflow's model registry, where there is one; its absence loses nothing.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from cmapkd_core import storage
from cmapkd_core.config import Recipe
from cmapkd_core.data.images import decode
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.export import FORMATS, Inexpressible, card, parity
from cmapkd_core.export.quiet import quiet
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.places import export_fields, export_reads, export_url, named_model
from cmapkd_core.progress import Progress
from cmapkd_core.request import Request
from cmapkd_core.stages import export_facts, prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.evaluate import open_model
from cmapkd_core.stages.execute import Context, execute
from cmapkd_core.stages.foreign import refuse_evaluation_of_another
from cmapkd_core.stages.given import of_evaluation
from cmapkd_core.stages.shards import shards_of
from cmapkd_core.stages.tracked import reported_to_mlflow
from cmapkd_core.tracking import RegistryError, register_model

CARD, PARITY, TRAINING = "README.md", "parity.json", "training.json"
PICTURES = 32  # of the evaluated split, with a caption each, that every format is compared on


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
        body=lambda context: body(context, model, licence),
        declared=export_reads(model),
        paths=of_evaluation(decided_by[3], model),
    )
    register(request, Artifact.open(url))
    return url


def body(context: Context, model: str, licence: str) -> dict[str, float]:
    """Write every format, compare it, write the card; the metrics are the bounds, `onnx/image/max_difference`."""
    training = export_facts.training_of(context, model)
    backbone = open_model(context, model).eval()
    data = shards_of(context)
    found = compare(context, backbone, data)
    facts = export_facts.facts(context, backbone, data, training, found, licence)
    for name, text in (
        (PARITY, json.dumps(found, indent=1)),
        (TRAINING, json.dumps(vars(training), indent=1)),
        (CARD, card.render(facts)),
    ):
        (context.out / name).write_text(text, encoding="utf-8")
    context.tracker.artifact(context.out / CARD)
    return {
        f"{name}/{tower}/{measure}": entry[tower][measure]
        for name, entry in found["formats"].items()
        for tower in parity.TOWERS
        for measure in ("max_difference", "min_cosine")
        if tower in entry
    }


def compare(context: Context, backbone: Backbone, data: ShardSet) -> dict[str, Any]:
    """Each format written below `context.out`, opened by its own library and held to the tolerance.

    Raises:
        ParityError: one gives other embeddings than the student.
    """
    given = _probe(backbone, data, context.recipe)
    formats: dict[str, dict[str, Any]] = {}
    progress = Progress(context.say, "export", len(FORMATS), "formats")
    for done, (name, form) in enumerate(FORMATS.items()):
        progress(done, name)
        folder = context.out / name
        try:
            with quiet():
                form.write(backbone, folder)
                towers = form.load(folder)
        except Inexpressible as reason:
            formats[name] = {"reason": str(reason)}
            context.say(f"export: {name}: not given: {reason}\n")
            continue
        formats[name] = parity.measure(towers, given)
        for tower in parity.TOWERS:
            context.say(f"export: {name}: {tower} embeddings: {parity.Bound(**formats[name][tower])}\n")
        parity.check(name, formats[name])
    progress(len(FORMATS))
    counts = {"pictures": len(given.pictures), "random_images": parity.NOISE}
    counts |= {"captions": len(given.captions), "hard_captions": len(parity.HARD)}
    return {"tolerance": parity.TOLERANCE, "inputs": counts, "formats": formats}


def _probe(backbone: Backbone, data: ShardSet, recipe: Recipe) -> parity.Probe:
    split = recipe.evaluate.split
    chosen = range(min(PICTURES, data.count(split)))
    pictures = [decode(data.read_image(split, i), data.max_pixels) for i in chosen]
    return parity.probe(backbone, pictures, [caption for i in chosen for caption in data.captions(split, i)[:1]])


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
