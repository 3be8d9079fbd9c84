"""How a stage ends: its artifact is committed, or another process's stands, or it has failed; and what is cleared then.

Turns (turn.py) keep two processes from one artifact, but for one that was silent for so long that it was passed. It may
live all the same, and write and read in the workdir which the first to finish deletes.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmapkd_core import parallel, storage
from cmapkd_core.data.threads import in_order
from cmapkd_core.stages.artifact import MANIFEST, PLACE, RETIRED, WORK, Artifact, find, folders_of
from cmapkd_core.stages.manifest import sealed
from cmapkd_core.stages.tracked import reason

if TYPE_CHECKING:
    from cmapkd_core.stages.execute import Context

OUT = "out-"
UPLOADS = 4  # files at a time; a store of levels has hundreds of parts


def attempt_folder() -> str:
    """Name of the folder of an attempt's files, of this one alone."""
    return f"{OUT}{uuid.uuid4().hex[:8]}"


def commit_artifact(url: str, folder: str, manifest: dict[str, Any], context: Context, left: set[str]) -> bool:
    """Upload into a folder of this attempt, then write the manifest: the only commit point.

    Args:
        folder: the `attempt_folder`.
        left: the `leftovers` from before the stage began.

    Returns:
        whether the artifact is ours; False where another process has finished it first.
    """

    def upload(path: Path) -> tuple[str, dict[str, Any]]:
        name = path.relative_to(context.out).as_posix()
        storage.put(path, storage.join(url, folder, name))
        return name, {"bytes": path.stat().st_size, "sha256": storage.sha256_file(path)}

    files = sorted(path for path in context.out.rglob("*") if path.is_file())
    stage = manifest["stage"]
    try:
        manifest |= {"folder": folder, "outputs": dict(in_order(files, upload, UPLOADS)) | context.placed}
        created = storage.create(storage.join(url, MANIFEST), sealed(manifest))
    except BaseException:
        _drop(url, folder)
        raise
    if not created:
        context.say(f"{stage}: another process finished it first; its result stands, ours is dropped\n")
        storage.delete_tree(storage.join(url, folder))
        _drop_saved(url, context)
        return False
    _clear(url, manifest, lambda: left & leftovers(url), context.say)
    context.say(f"{stage}: done in {manifest['seconds']:.0f} s: {url}\n")
    return True


def _drop(url: str, folder: str) -> None:
    """Files of an attempt that was stopped among its uploads; not where the manifest that was written names them."""
    with contextlib.suppress(Exception):  # what stopped it is what counts, and the next attempt looks again
        artifact = find(url)
        if artifact is None or artifact.manifest["folder"] != folder:
            storage.delete_tree(storage.join(url, folder))


def theirs_stands(error: BaseException, url: str, folder: str, context: Context, stage: str) -> bool:
    """Whether what failed here is no matter, since another process has finished the artifact meanwhile; said then.

    Of one process alone: ranks cannot agree on it where one of them has failed, and the next attempt finds the same.
    """
    if parallel.world() > 1 or not isinstance(error, Exception) or not _stands(url, folder):
        return False
    context.say(f"{stage}: another process finished it first; its result stands, ours is dropped ({reason(error)})\n")
    _drop_saved(url, context)
    return True


def _drop_saved(url: str, context: Context) -> None:
    """What we saved for a next attempt after the winner had cleaned up; not what its manifest names."""
    storage.delete_tree(context.workdir)
    artifact = find(url)
    if artifact is None or not context.shared:
        return
    if context.shared in folders_of(artifact.manifest):
        _clear_strays(url, artifact.manifest)
    else:
        storage.delete_tree(storage.join(url, context.shared))


def clear_behind(error: BaseException, url: str, folder: str, context: Context) -> None:
    """What was saved for the next attempt is of no use where another process has finished the artifact meanwhile."""
    if parallel.rank() == 0 and _stands(url, folder):
        error.add_note("another process has finished it meanwhile: the same command answers with its result")
        with contextlib.suppress(Exception):
            _drop_saved(url, context)


def _stands(url: str, folder: str) -> bool:
    """Whether an artifact is there that is not of the attempt with this folder."""
    with contextlib.suppress(Exception):  # a store that does not answer says nothing
        artifact = find(url)
        return artifact is not None and artifact.manifest["folder"] != folder
    return False


def clear_finished(artifact: Artifact, left: set[str], say: Callable[[str], object]) -> None:
    """Delete what processes that were killed, or came too late, left beside a complete artifact.

    Args:
        left: the `leftovers` from before its manifest was read, so that none is of a later attempt.
    """
    _clear(artifact.url, artifact.manifest, lambda: left, say)


def _clear(url: str, manifest: dict[str, Any], left: Callable[[], set[str]], say: Callable[[str], object]) -> None:
    try:
        for tree in (WORK, *(left() - folders_of(manifest))):
            storage.delete_tree(storage.join(url, tree))
        _clear_strays(url, manifest)
        storage.sweep(url)
    except (OSError, storage.StorageError) as error:  # the artifact stands all the same
        say(f"{manifest['stage']}: not all could be cleared, which the same command does again: {error}\n")


def _clear_strays(url: str, manifest: dict[str, Any]) -> None:
    """Files in folders that attempts share which are not the artifact's: another attempt's, or damaged ones."""
    named = {entry[PLACE] for entry in manifest["outputs"].values() if PLACE in entry}
    for folder in folders_of(manifest) - {manifest["folder"]}:
        for name in storage.list_files(storage.join(url, folder)):
            if f"{folder}/{name}" not in named:
                storage.delete(storage.join(url, folder, name))


def leftovers(url: str) -> set[str]:
    """Folders of attempts that were killed in the middle of their uploads, and of the result that stands.

    No manifest of a retired result names them. Asked before a stage's own work begins, so that a process that runs
    beside it and uploads later is not robbed.
    """
    names = storage.list_files(url)
    try:
        kept = [storage.read_json(storage.join(url, name)) for name in names if name.startswith(RETIRED)]
        retired = {folder for manifest in kept for folder in folders_of(manifest)}
    except (storage.StorageError, FileNotFoundError, AttributeError, KeyError, TypeError):
        return set()  # a damaged one does not say which folder is its result's: better all are kept
    return {name.partition("/")[0] for name in names if name.startswith(OUT)} - retired
