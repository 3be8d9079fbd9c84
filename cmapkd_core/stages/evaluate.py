"""Stage evaluate: what a model can do on held-out data, one or several rows of catalog.EVALUATIONS.

    python -m cmapkd_core.stages.evaluate --recipe demo --root runs/local --shards URL --model URL
    python -m cmapkd_core.stages.evaluate --recipe paper --root runs/local --data folder:pictures \
        --model ViT-B-32:openai --task retrieval
    python -m cmapkd_core.stages.evaluate --recipe paper --root runs/local --model ViT-B-16 --task efficiency

    python -m cmapkd_core.stages.evaluate --recipe paper --root runs/local --model hf-hub:timm/ViT-B-16-SigLIP \
        --task efficiency

Artifact: metrics.json (flat numbers, `retrieval/i2t/R@1` and so on, in percent), model.json (what the model is), and
one JSON a task with what the report's examples need. On other data than the model was trained on, leakage.json: how the
two were compared.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from cmapkd_core.catalog import EVALUATIONS
from cmapkd_core.config import ModelConfig
from cmapkd_core.errors import InputError
from cmapkd_core.fields import choose
from cmapkd_core.model_reference import named_model
from cmapkd_core.models.named import check_model
from cmapkd_core.places import (
    RECIPE_STUDENT,
    evaluation_fields,
    evaluation_reads,
    evaluation_url,
    reads_data,
)
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact, find, look
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Late, execute
from cmapkd_core.stages.given import of_evaluation
from cmapkd_core.stages.nearby import TRAINED, nearby

DIGITS = 8  # of the place's digest, which tell models with one name apart: enough for a person
_TELLS = {"teacher": "teacher.model"}  # the field that tells models of a stage apart; of a student its method
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # what may be a name of the hub
_QUOTES = str.maketrans("", "", "'`")  # MLflow cannot look for them


def run(request: Request, *, model: str, shards: str = "", task: str = "") -> str:
    """Measure a model.

    Args:
        model: URL or path (it has a slash) of an artifact with a model/ folder (teacher, warmup, alsn, joint);
            "recipe:student", the recipe's student before any training; NAME[:WEIGHTS] as a recipe's model and weights
            are written (models/build.py), random where there are none; hf-hub:ORG/NAME; or local-dir:FOLDER.
        shards: URL of the prepare artifact; "" prepares the recipe's data first (`--data SOURCE:URL` names other
            data). Not read where no task looks at data (efficiency).
        task: one row of catalog.EVALUATIONS; "" runs the recipe's.

    Raises:
        InputError: unknown task or model, data that the named task cannot use, or (LeakageError) pictures of another
            data set's split that the model was trained on.
    """
    recipe = request.resolved()
    tasks = (task,) if task else recipe.evaluate.tasks
    for name in tasks:
        choose("task", name, EVALUATIONS)
    inputs = {} if named_model(model) else {"model": _artifact(model)}
    _require_named(model)
    if reads_data(tasks):
        shards = shards or prepare.run(request)
        inputs["shards"] = shards
    tags = evaluation_tags(model, tasks, inputs.get("shards", ""), recipe.data.source)
    return execute(
        request,
        evaluation_name(tags),
        url=evaluation_url(request.root, model, shards, recipe, task),
        fields=evaluation_fields(request.root, model, shards, recipe, task),
        inputs=inputs,
        body=Late("evaluate", model=model, tasks=tasks, tags=tags, strict=bool(task)),
        declared=evaluation_reads(model, recipe, task),
        paths=of_evaluation(recipe, model, tasks),
    )


def _require_named(model: str) -> None:
    """Raises InputError for a name, tag or file that is none, before data are prepared for it."""
    if model != RECIPE_STUDENT and (named := named_model(model)):
        check_model(ModelConfig(named[0], named[1] or "random"), here=True)


def _artifact(model: str) -> str:
    """Raises InputError where there is none, with what else a model may be, or a damaged one."""
    if look(model) is None:
        near = nearby(model, TRAINED)
        folder = os.path.isdir(model) and not near
        hub = model if _HUB.fullmatch(model) and not folder else "ORG/NAME"
        raise InputError(
            f"{model} has no manifest.json, so no stage has finished there{near and f' ({near})'}. A model that is no "
            f"artifact of ours: NAME:TAG or NAME:TAG@FILE of open_clip, hf-hub:{hub} of the Hugging Face hub, "
            f"local-dir:{model if folder else 'FOLDER'} for a folder with an open_clip_config.json"
        )
    return model


# ---- what people call an evaluation ---------------------------------------------------------------


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


if __name__ == "__main__":
    sys.exit(main(run))
