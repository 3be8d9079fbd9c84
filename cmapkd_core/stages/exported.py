"""Where a run's exported student lies and how it is used, and the commands that make what a run does not have."""

from __future__ import annotations

import json
import shlex

from cmapkd_core.commands import PYTHON, SUBMIT
from cmapkd_core.errors import InputError
from cmapkd_core.fields import parse_overrides
from cmapkd_core.places import export_url
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact, find
from cmapkd_core.storage import StorageError
from cmapkd_core.usage import CONFIG, OPEN_CLIP, StudentUse, copy_command


def student_use(export: str) -> StudentUse | None:
    """The export at a URL as it is used; None while there is none that is complete."""
    try:
        artifact = find(export)
        return None if artifact is None else _use(artifact)
    except (InputError, StorageError):  # another's, or a root that lets nobody in now: the run itself is not affected
        return None


def _use(artifact: Artifact) -> StudentUse:
    formats = json.loads(artifact.fetch("parity.json").read_bytes())["formats"]
    reason = formats[OPEN_CLIP].get("reason", "")
    text = {} if reason else json.loads(artifact.fetch(f"{OPEN_CLIP}/{CONFIG}").read_bytes())["model_cfg"]["text_cfg"]
    card = artifact.file_url("README.md")
    folder = card.rpartition("/")[0]
    return StudentUse(folder, card, text, reason, copy_command(folder) if "://" in folder else "")


def export_of(request: Request, joint: str, shards: str, evaluation: str) -> str:
    """URL at which stage export of a run puts its student; "" of a run without one."""
    if not (joint and shards and evaluation):
        return ""
    return export_url(request.root, joint, shards, request.resolved(), evaluation)


def export_command(request: Request, joint: str, shards: str, evaluation: str) -> str:
    """What makes the export, or answers at once where it is there; "" where the run trained no student."""
    if not export_of(request, joint, shards, evaluation):
        return ""
    given = {"--model": joint, "--shards": shards, "--evaluation": evaluation}
    words = [PYTHON, "-m", "cmapkd_core.stages.export", *_decided(request, row=True), "--root", request.root]
    words += ["--run", request.run] if request.run else []
    return shlex.join([*words, *(word for pair in given.items() for word in pair)])


def start_words(request: Request, *, row: bool = True) -> tuple[str, ...]:
    """The words of a command that starts such a run at its root, without a name; row: False leaves out row and seed."""
    here = ["--local"] if "://" not in request.root else []
    return (*SUBMIT, *_decided(request, row), "--root", request.root, *here)


def _decided(request: Request, row: bool) -> list[str]:
    words = ["--recipe", request.recipe]
    if row:
        words += ["--ablation", request.ablation] if request.ablation not in ("", "none") else []
        words += ["--seed", request.seed] if request.seed else []
    words += ["--data", request.data] if request.data else []
    given = parse_overrides(request.overrides).items()
    return [*words, *(word for name, value in given for word in ("--set", f"{name}={value}"))]
