"""The model that a person's words name: of an artifact, of a folder, or of open_clip by its name."""

from __future__ import annotations

from pathlib import Path

from cmapkd_core import storage, temporary
from cmapkd_core.config import FOLDER, ModelConfig
from cmapkd_core.errors import InputError
from cmapkd_core.model_reference import named_model
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build, load_model
from cmapkd_core.models.model_folder import CONFIG
from cmapkd_core.places import RECIPE_STUDENT
from cmapkd_core.stages.artifact import Artifact, look
from cmapkd_core.stages.nearby import MODELS, nearby
from cmapkd_core.usage import OPEN_CLIP

FOLDERS = (OPEN_CLIP, "model")  # of a model in an artifact: an export's, and that of a stage that trains


def open_backbone(spelling: str) -> Backbone:
    """The model that `spelling` names, on the CPU.

    Args:
        spelling: a folder or s3:// URL: an artifact of stage export or of one that trains, its folder of files, or the
            model's folder in that; any folder with open_clip_config.json, or that has one in open_clip/; else
            NAME:WEIGHTS, hf-hub:ORG/NAME or local-dir:FOLDER, as stage evaluate takes them.

    Raises:
        InputError: no such model, or one without weights; names what can be given.
    """
    artifact = artifact_of(spelling)
    return _named(spelling) if artifact is None else model_of(artifact)


def artifact_of(spelling: str) -> Artifact | None:
    """The artifact at a place, or the one whose folder of files, or whose folder of a model in it, the place is."""
    if _name(spelling) or "/" not in storage.absolute(spelling):
        return None
    place = storage.absolute(spelling).rstrip("/")
    above = [place, *(place.rsplit("/", up)[0] for up in (1, 2) if place.count("/") > up)]
    for url in above:
        artifact = look(url)
        if artifact is not None and _is_of(place, artifact):
            return artifact
    return None


def model_of(artifact: Artifact) -> Backbone:
    """The model of an artifact, on the CPU.

    Raises:
        InputError: it holds none.
    """
    for folder in FOLDERS:
        if any(name.startswith(f"{folder}/") for name in artifact.files()):
            return load_model(artifact.fetch_folder(folder))
    near = nearby(artifact.url, MODELS)
    raise InputError(
        f"{artifact.url} is of stage {artifact.manifest['stage']} and holds no model: give that of stage export "
        f"(ROOT/export/KEY), or of one that trains (ROOT/joint/KEY){near and f'; {near}'}"
    )


def _is_of(place: str, artifact: Artifact) -> bool:
    files = storage.join(artifact.url, artifact.manifest["folder"])
    return place in (artifact.url.rstrip("/"), files, *(storage.join(files, folder) for folder in FOLDERS))


def _name(spelling: str) -> tuple[str, str] | None:
    """(model, weights) of a model's name; None where a folder here is called so."""
    return None if Path(spelling).is_dir() else named_model(spelling)


def _named(spelling: str) -> Backbone:
    """Raises InputError for what is neither a model's name nor a folder of one."""
    if spelling == RECIPE_STUDENT:
        raise InputError(f"{spelling} is a student before training, which finds nothing: give an export's folder")
    named = _name(spelling) or _in_folder(spelling)
    if named is None:
        if near := nearby(spelling, MODELS):
            raise InputError(f"{spelling} has no manifest.json and no {CONFIG}, so no model is there: {near}")
        raise InputError(
            f"{spelling} has no manifest.json and no {CONFIG}: give an export's folder (a run prints it), or a model "
            "by name: NAME:TAG of open_clip, such as ViT-B-32:openai, or hf-hub:ORG/NAME"
        )
    name, weights = named
    if not weights or weights == "random":
        raise InputError(f"{spelling} names no weights: give NAME:TAG, such as ViT-B-32:openai, or NAME:FILE")
    with temporary.folder() as cache:
        return build(ModelConfig(name, weights), 0, cache)


def _in_folder(spelling: str) -> tuple[str, str] | None:
    """As a named model: a folder with a config of open_clip, or one that has it in open_clip/."""
    for folder in (spelling, storage.join(spelling, OPEN_CLIP)):
        if storage.exists(storage.join(folder, CONFIG)):
            place = folder if "://" in folder else str(Path(folder).expanduser().resolve())
            return f"{FOLDER}{place}", "own"
    return None
