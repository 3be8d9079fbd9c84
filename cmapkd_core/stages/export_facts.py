"""What the artifacts behind a model say of it, for its card: training, data, licences, results, cost."""

from __future__ import annotations

import json
from typing import Any

from cmapkd_core.config import STAGE_PHASES
from cmapkd_core.data.augment import View, in_words
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import DamagedInput, InputError
from cmapkd_core.evaluate import count_parameters
from cmapkd_core.export import FORMATS, card_results
from cmapkd_core.export.card import Cost, Facts, TrainingFacts
from cmapkd_core.export.licences import Licence, of_data, of_weights
from cmapkd_core.model_reference import named_model
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.places import RECIPE_STUDENT
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.execute import Context

LOOKED_AT = 1000  # pictures of each split whose licence is read: those that lie first, so that few shards are fetched
SIDES = {"teacher": "teacher", "student": "student before training"}


def training_of(context: Context, model: str) -> TrainingFacts:
    """The request of the stage that made the model, from its manifest; of an untrained one, what it is.

    Raises:
        InputError: the artifact is of a stage that trains no student.
    """
    if "model" in context.inputs:
        manifest = context.inputs["model"].manifest
        if manifest["stage"] not in STAGE_PHASES:
            known = ", ".join(STAGE_PHASES)
            raise InputError(
                f"{model} is an artifact of stage {manifest['stage']}: a student comes from one of {known}"
            )
        return TrainingFacts(manifest["fields"], manifest["recipe"], manifest["ablation"], manifest["overrides"])
    if model == RECIPE_STUDENT:
        student, seed = context.recipe.student, context.recipe.seed
        fields = {"student.model": student.model, "student.weights": student.weights, "seed": seed}
        return TrainingFacts(fields | ({"student.lift": student.lift} if student.lift else {}))
    named = named_model(model)
    assert named is not None, "what is no artifact is a name"
    return TrainingFacts({"student.model": named[0], "student.weights": named[1] or "random"})


def facts(
    context: Context, backbone: Backbone, data: ShardSet, training: TrainingFacts, parity: dict[str, Any], licence: str
) -> Facts:
    """Everything that the card says; `parity` is what parity.json holds."""
    # A data set of earlier code has not counted them.
    licences = data.manifest.get("licences") or data.licences(LOOKED_AT)
    rows, note = _results(context, training)
    return Facts(
        name=f"cmapkd-{context.recipe.name}",
        spec=backbone.spec,
        pixels=in_words(View.of(backbone.identity.plain())),
        identity=backbone.identity,
        parameters={name.rpartition("/")[2]: count for name, count in count_parameters(backbone).items()},
        training=training,
        data=_data(context.inputs["shards"], data, training),
        parity=parity,
        titles={name: form.title for name, form in FORMATS.items()},
        usage={name: form.usage(backbone) for name, form in FORMATS.items()},
        licence=licence,
        licences=[*_licences_of_weights(training), *(("data", row) for row in of_data(licences))],
        looked_at=0 if "licences" in data.manifest else sum(licences.values()),
        results=rows,
        results_note=note,
        costs=costs(context.inputs.get("model")),
    )


def _data(artifact: Artifact, data: ShardSet, training: TrainingFacts) -> dict[str, Any]:
    fields = artifact.manifest["fields"]
    return {
        "source": fields["data.source"],
        "url": fields["data.url"],
        "fraction": training.fields.get("data.fraction") if training.method else None,
        "unpaired": training.fields.get("data.unpaired", 0.0),
        "noise": training.fields.get("data.noise", 0.0),
        "splits": {name: entry["count"] for name, entry in data.manifest["splits"].items()},
        "seen": data.manifest["seen"],
        "quarantined": data.manifest["quarantined"],
    }


def _licences_of_weights(training: TrainingFacts) -> list[tuple[str, Licence]]:
    licences = []
    for side, role in SIDES.items():
        if model := training.fields.get(f"{side}.model"):
            licences += [(role, row) for row in of_weights(model, training.fields[f"{side}.weights"])]
    for further in training.further_teachers:
        licences += [("further teacher", row) for row in of_weights(*further)]
    return licences


def _results(context: Context, training: TrainingFacts) -> tuple[list[card_results.Result], str]:
    """The table of results and what its intervals are; [] without an evaluation."""
    if "suite" in context.inputs:
        row = training.ablation or "none"
        table = json.loads(context.inputs["suite"].fetch("suite.json").read_bytes())
        return card_results.of_suite(
            table, row
        ), f"Row `{row}` of a suite: means and t-intervals over n seeds of training."
    if "evaluation" not in context.inputs:
        return [], ""
    source, split = context.inputs["evaluation"], context.recipe.evaluate.split
    kept = [name for name in card_results.DETAILS if f"{name}.json" in source.files()]
    details = {name: json.loads(source.fetch(f"{name}.json").read_bytes()) for name in kept}
    note = f"One training, split `{split}`. Intervals: percentile bootstrap over the n test queries."
    return card_results.of_run(source.manifest["metrics"], details), note


def costs(model: Artifact | None) -> list[Cost]:
    """The stages behind a model, first ones first, as their manifests name each other."""
    by_url: dict[str, Cost] = {}

    def visit(artifact: Artifact) -> None:
        for name, entry in artifact.manifest["inputs"].items():
            try:
                before = artifact.earlier(name)
            except DamagedInput:
                before = None
            if before is None:
                by_url.setdefault(entry["url"], Cost(name, None, note=f"not known: {entry['url']} is gone"))
                continue
            if before.url not in by_url:
                visit(before)
        manifest = artifact.manifest
        by_url[artifact.url] = Cost(manifest["stage"], manifest["seconds"], manifest["finished"], manifest["run"])

    if model is not None:
        visit(model)
    return list(by_url.values())
