"""The models of a search: a Backbone with what it is called and what its embeddings are kept by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cmapkd.opened_model import artifact_of, model_of, open_backbone
from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.stages.artifact import Artifact

OWN_TEACHER = "its-own"  # as --teacher: the one that the student learned from
_MADE_FROM = ("model", "init", "teacher")  # inputs that lead from an export to its student's teacher


@dataclass(frozen=True)
class SearchedModel:
    """A model in evaluation mode. name: for people. digest: of its weights and of what it is beside them."""

    name: str
    backbone: Backbone
    digest: str


def open_model(spelling: str) -> SearchedModel:
    """The model that `spelling` names, as `open_backbone` takes it, on the CPU.

    Raises:
        InputError: no such model, or one without weights; names what can be given.
    """
    artifact = artifact_of(spelling)
    if artifact is None:
        backbone, name = open_backbone(spelling), spelling
    else:
        backbone = model_of(artifact)
        name = f"{backbone.identity.architecture} of {_called(artifact)}"
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


def _called(artifact: Artifact) -> str:
    """The last two parts of its place, such as `export/1a2b3c4d5e6f`."""
    return "/".join(artifact.url.rstrip("/").split("/")[-2:])


def digest_of(backbone: Backbone) -> str:
    """sha256 of its weights and its identity: equal where its embeddings are."""
    digest = hashlib.sha256(repr(sorted(backbone.identity.plain().items())).encode())
    for name, value in sorted(backbone.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()
