"""What may stand as MODEL of a search, and the Backbone that it names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cmapkd.artifact_model import FOLDERS, model_of
from cmapkd_core import storage, temporary
from cmapkd_core.config import FOLDER, ModelConfig
from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build
from cmapkd_core.models.model_folder import CONFIG
from cmapkd_core.places import RECIPE_STUDENT, named_model
from cmapkd_core.stages.artifact import Artifact, look
from cmapkd_core.usage import OPEN_CLIP

OWN_TEACHER = "its-own"  # as --teacher: the one that the student learned from
_MADE_FROM = ("model", "init", "teacher")  # inputs that lead from an export to its student's teacher


@dataclass(frozen=True)
class SearchedModel:
    """A model in evaluation mode. name: for people. digest: of its weights and of what it is beside them."""

    name: str
    backbone: Backbone
    digest: str


def open_model(spelling: str) -> SearchedModel:
    """The model that `spelling` names, on the CPU.

    Args:
        spelling: a folder or s3:// URL: an export, its open_clip/, or the artifact of a stage that trains; else
            NAME:TAG, hf-hub:ORG/NAME or local-dir:FOLDER, as stage evaluate takes them.

    Raises:
        InputError: no such model, or one without weights; names what can be given.
    """
    artifact = artifact_of(spelling)
    if artifact is not None:
        backbone = model_of(artifact)
        name = f"{backbone.identity.architecture} of {_called(artifact)}"
    else:
        backbone, name = _named(spelling), spelling
    return SearchedModel(name, backbone.eval(), digest_of(backbone))


def teacher_of(spelling: str) -> str:
    """URL of the teacher that the student at `spelling` learned from, by the manifests of what it was made from.

    Raises:
        InputError: nothing there says so.
    """
    artifact = artifact_of(spelling)
    while artifact is not None and artifact.manifest["stage"] != "teacher":
        inputs = artifact.manifest["inputs"]
        step = next((name for name in reversed(_MADE_FROM) if name in inputs), None)
        artifact = artifact.source(step) if step else None
    if artifact is None:
        raise InputError(
            f"{spelling} does not say which teacher it learned from: give --teacher the teacher's artifact "
            "(ROOT/teacher/KEY) or another model, such as ViT-L-14:openai"
        )
    return artifact.url


def artifact_of(spelling: str) -> Artifact | None:
    """The artifact at a place, or the one whose folder of files, or whose folder of a model in it, the place is."""
    if named_model(spelling) or "/" not in storage.absolute(spelling):
        return None
    place = storage.absolute(spelling).rstrip("/")
    above = [place, *(place.rsplit("/", up)[0] for up in (1, 2) if place.count("/") > up)]
    for url in above:
        found = look(url)
        if found is not None and _is_of(place, found):
            return found
    return None


def _is_of(place: str, artifact: Artifact) -> bool:
    files = storage.join(artifact.url, artifact.manifest["folder"])
    return place in (artifact.url.rstrip("/"), files, *(storage.join(files, folder) for folder in FOLDERS))


def _called(artifact: Artifact) -> str:
    """The last two parts of its place, such as `export/1a2b3c4d5e6f`."""
    return "/".join(artifact.url.rstrip("/").split("/")[-2:])


def _named(spelling: str) -> Backbone:
    """Raises InputError for what is neither a model's name nor a folder of one."""
    if spelling == RECIPE_STUDENT:
        raise InputError(f"{spelling} is a student before training, which finds nothing: give an export's folder")
    named = named_model(spelling) or _in_folder(spelling)
    if named is None:
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


def digest_of(backbone: Backbone) -> str:
    """sha256 of its weights and its identity: equal where its embeddings are."""
    digest = hashlib.sha256(repr(sorted(backbone.identity.plain().items())).encode())
    for name, value in sorted(backbone.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()
