"""The parts of a data set joined, after it is certain that they are of one source as it is now."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from cmapkd_core.data.copies import forget
from cmapkd_core.data.joined_parts import EntangledError, JoinedPart, join_parts
from cmapkd_core.engine.runtime import StopRequest
from cmapkd_core.errors import InputError
from cmapkd_core.fields import differences
from cmapkd_core.fingerprints import fingerprint
from cmapkd_core.progress import Progress
from cmapkd_core.stages.artifact import Artifact, look
from cmapkd_core.stages.bodies.written_rows import until_stopped, write_rows
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.identities import Paths, changed
from cmapkd_core.stages.parts import AGAIN, PartOf

_SHARDS = 4  # at a time, at least: a disk or a network is waited for


def write_joined(context: Context, stop: StopRequest, parts: Sequence[PartOf], paths: Paths) -> dict[str, int]:
    """The data set of all parts into `context.out`.

    Raises:
        InputError: a part is missing or of something else; or as `write_shards`.
        Interrupted: `stop` was asked.
    """
    config = context.recipe.data
    opened = [_opened(part, paths) for part in parts]
    joined: list[JoinedPart] = []
    before = 0
    for artifact in opened:
        if not config.size or before < config.size:
            release = forget if "://" in artifact.url else _keep
            limit = {"limit": config.size} if config.size else {}
            joined.append(JoinedPart(artifact.fetch, release, before, **limit))
            before += joined[-1].rows_read
    total = sum(len(rows) for part in joined for rows in part.rows.values())
    context.say(f"prepare: joins {total} pictures of {len(parts)} parts\n")
    show = Progress(context.say, "prepare", total, "pictures")
    progress = until_stopped(stop, show, "prepare was asked to stop after {} pictures; all parts are kept")
    try:
        return join_parts(joined, context.out, config, progress, max(_SHARDS, context.recipe.runtime.workers))
    except EntangledError as entangled:
        context.say(f"prepare: {entangled}, so all rows are read here and the parts are not used\n")
        shutil.rmtree(context.out)
        return write_rows(context, stop)


def _keep(path: object) -> None:
    """A shard of a part that lies here is no copy."""


def _opened(part: PartOf, paths: Paths) -> Artifact:
    """The part's artifact.

    Raises:
        InputError: it is missing, of another recipe, number or stage, or its source has changed since it was made.
    """
    where = f"part {part.number} of {part.of} ({part.url})"
    artifact = look(part.url)
    if artifact is None:
        raise InputError(f"{where} is not there, or was joined and deleted: {AGAIN}")
    made = artifact.manifest
    if made["stage"] != part.stage or made["fingerprint"] != fingerprint(part.fields):
        what = [f"stage: {part.stage} -> {made['stage']}"] if made["stage"] != part.stage else []
        lines = "\n  ".join(what + differences(made["fields"], part.fields))
        raise InputError(f"{where} is another one than is wanted:\n  {lines}\n{AGAIN}")
    differ, gone = changed(made["files"], paths)
    if differ or gone or set(made["files"]) != set(paths):
        why = "; ".join([*differ, *gone]) or f"it was made from {', '.join(made['files']) or 'no folder'}"
        raise InputError(f"{where} is of rows that are no longer those of the source: {why}: {AGAIN}")
    return artifact
