"""What people call an evaluation: tasks, data and model; digits of the model's place tell equals apart."""

from __future__ import annotations

from collections.abc import Sequence

from cmapkd_core.places import RECIPE_STUDENT, named_model
from cmapkd_core.stages.artifact import Artifact, find

DIGITS = 8  # of the digest: enough for a person
_TELLS = {"teacher": "teacher.model"}  # the field that tells models of a stage apart; of a student its method
_QUOTES = str.maketrans("", "", "'`")  # MLflow cannot look for them


def evaluation_tags(model: str, tasks: Sequence[str], shards: str, source: str) -> dict[str, str]:
    """Task, source and model of an evaluation, for people.

    Args:
        model, shards: as stage evaluate gets them; shards are "" where no task reads data.
        source: of the recipe, which counts where the shards do not say theirs.
    """
    data = find(shards) if shards else None
    tags = {"task": "+".join(tasks), "model": called(model)}
    if shards:
        tags["source"] = str(data.manifest["fields"].get("data.source", source) if data else source)
    return {name: text.translate(_QUOTES) for name, text in tags.items()}


def evaluation_name(tags: dict[str, str]) -> str:
    """`evaluate vqa on easy_vqa of joint by cmapkd 1a2b3c4d`, in MLflow, in logs and in its manifest."""
    on = f" on {tags['source']}" if "source" in tags else ""
    return f"evaluate {tags['task']}{on} of {tags['model']}"


def called(model: str) -> str:
    """What a model is called: `joint by finetune 1a2b3c4d`, `teacher ViT-L-14 1a2b3c4d`, or the name that was given."""
    if model == RECIPE_STUDENT:
        return "the untrained student"
    made = None if named_model(model) else find(model)
    return model if made is None else _of_artifact(made)


def _of_artifact(made: Artifact) -> str:
    stage, fields = made.manifest["stage"], made.manifest["fields"]
    teller = _TELLS.get(stage, "method.name")
    by = "" if teller not in fields else f" {fields[teller]}" if stage in _TELLS else f" by {fields[teller]}"
    return f"{stage}{by} {made.url.rstrip('/').rpartition('/')[2][:DIGITS]}"
