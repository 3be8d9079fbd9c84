"""Whether what a stage is given by hand was made by the recipe that it is asked for: its manifest would say so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cmapkd_core.config import STAGE_PHASES, Recipe
from cmapkd_core.ensemble import recipe_of_teacher
from cmapkd_core.errors import InputError
from cmapkd_core.fields import differences, flatten
from cmapkd_core.fingerprints import reads
from cmapkd_core.model_reference import named_model
from cmapkd_core.places import stage_url
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.stages.given_teachers import make_teacher

_STAGES = ("prepare", "teacher", *STAGE_PHASES)  # those whose fields follow from the recipe alone


def refuse_foreign(recipe: Recipe, root: str, inputs: Mapping[str, str]) -> None:
    """Hold the artifacts in `inputs`, URLs by what they are called, to the recipe; one that is missing is not judged.

    Training may go on from an `init` with other data: which those were stands in what that was made from.

    Raises:
        InputError: one was made by another recipe; names the differing fields.
    """
    for name, url in inputs.items():
        artifact = find(url)
        if artifact is None or artifact.manifest["stage"] not in _STAGES:
            continue
        own = recipe_of_teacher(recipe, name)
        changed = [line for line in differing(own, artifact) if name != "init" or not line.startswith("data.")]
        if changed:
            stage, lines = artifact.manifest["stage"], "\n  ".join(changed)
            flag = f"--{name}" if own is recipe else f"--artifacts {name}"
            again = f"run stage {stage} with this one" if own is recipe else make_teacher(recipe, name)
            raise InputError(
                f"{flag} {url} was made by another recipe than this one (then -> now):\n  {lines}\n"
                f"ask for the recipe that it had, or {again}, which makes {stage_url(root, stage, own)}"
            )


def refuse_evaluation_of_another(name: str, evaluation: str, model: str) -> None:
    """Hold an evaluation to the model that its numbers will stand beside; what is not there is not judged.

    model: URL of an artifact, or a model's name (`model_reference.named_model`).

    Raises:
        InputError: it is of another model.
    """
    artifact = find(evaluation) if evaluation else None
    if artifact is None or not model:
        return
    given, called = artifact.manifest["inputs"].get("model"), artifact.manifest["fields"].get("model", model)
    if named_model(model):
        same = given is None and called == model
    else:
        own = find(model)
        if own is None or not artifact.manifest["inputs"]:
            return
        same = given is not None and given["digest"] == own.digest
    if not same:
        of = given["url"] if given else f"{called}, a model that no stage has trained"
        raise InputError(
            f"{name} {evaluation} is an evaluation of {of}, and not of {model}: give that model's, or run stage "
            "evaluate with it"
        )


def differing(recipe: Recipe, artifact: Artifact) -> list[str]:
    """`field: as it was made -> as the recipe has it`, of what the artifact's stage reads.

    A field that the artifact does not have, being younger or left out at its default, had its default then.
    """
    recorded, asked = artifact.manifest["fields"], reads(recipe, artifact.manifest["stage"])
    leaves, usual = _plain({**flatten(recipe), **asked}), _plain(flatten(Recipe()))
    names = [name for name in leaves if name in recorded or name in asked]
    return differences(
        {name: leaves[name] for name in names}, {name: recorded.get(name, usual[name]) for name in names}
    )


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(fields)))
