"""Rows of a source into shards, going on after the finished ones of an attempt that was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cmapkd_core import storage
from cmapkd_core.data.part_notes import Notes, PartNotes
from cmapkd_core.data.prepare_resume import SavedShards, SourceChangedError
from cmapkd_core.data.rows import Partition
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.writer import write_shards
from cmapkd_core.engine.runtime import StopRequest
from cmapkd_core.errors import Interrupted
from cmapkd_core.progress import Progress
from cmapkd_core.stages.execute import Context

_EVERY = 50  # rows between two progress lines


def saved_shards(context: Context) -> SavedShards:
    """The finished shards of earlier attempts."""
    return SavedShards(storage.join(context.workdir, f"shards-{context.identity}"))


def write_rows(context: Context, stop: StopRequest, part: Partition | None = None) -> dict[str, int]:
    """All rows, or those of a part, into shards in `context.out`; anew where an earlier attempt was of other rows.

    Raises:
        TooManyBadError, InputError: as `write_shards`.
        Interrupted: `stop` was asked.
    """
    config, workers, who = context.recipe.data, context.recipe.runtime.workers, _called(part)
    saved = saved_shards(context)
    for url in saved.damaged:
        context.say(f"{who}: {url} is not what an earlier attempt saved: its shard is made again\n")
    if saved.count():
        context.say(f"{who}: going on after {saved.count()} pictures in finished shards of an earlier attempt\n")
    try:
        rows = open_rows(config, part)
        show = Progress(context.say, who, len(rows), "rows", before=saved.count(), every=_EVERY)
        with _notes(context, part) as notes:
            progress = until_stopped(
                stop, show, f"{who} was asked to stop after {{}} rows; its finished shards are kept"
            )
            return write_shards(rows, context.out, config, progress, workers=workers, saved=saved, notes=notes)
    except SourceChangedError as changed:
        context.say(f"{who}: nothing of the earlier attempt can be gone on with ({changed}): starting anew\n")
        saved.clear()
        shutil.rmtree(context.out)
        return write_rows(context, stop, part)
    finally:
        saved.wait()


def _called(part: Partition | None) -> str:
    return f"prepare-part-{part.number}" if part else "prepare"


@contextmanager
def _notes(context: Context, part: Partition | None) -> Iterator[Notes | None]:
    if part is None:
        yield None
    else:
        with PartNotes(context.out) as notes:
            yield notes


def until_stopped(stop: StopRequest, show: Callable[[int], object], message: str) -> Callable[[int], None]:
    """`show` of how much is done, which raises Interrupted once `stop` is asked; `message` says after how much."""

    def progress(done: int) -> None:
        if stop.asked:
            raise Interrupted(message.format(done))
        show(done)

    return progress
