"""Stage prepare: pictures with captions from a source become checked, split, indexed shards.

    python -m cmapkd_core.stages.prepare --recipe paper --root s3://bucket/cmapkd --source coco:s3://bucket/coco

Decoding and hashing run in `runtime.workers` threads; finished shards are kept in the workdir, so that the same command
goes on after the last of them when the stage was stopped. No result depends on either.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable

from cmapkd_core import storage
from cmapkd_core.catalog import SOURCES
from cmapkd_core.config import DataConfig, Recipe
from cmapkd_core.data.layout import LEAKAGE, QUARANTINE
from cmapkd_core.data.leakage import LeakageError, gate
from cmapkd_core.data.prepare_resume import SavedShards, SourceChangedError
from cmapkd_core.data.shards import ShardSet, TooManyBadError, write_shards
from cmapkd_core.data.sources import open_rows
from cmapkd_core.engine.runtime import Interrupted, StopRequest
from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import declared, reads
from cmapkd_core.folders import reads_folder
from cmapkd_core.places import place
from cmapkd_core.progress import Progress, Say
from cmapkd_core.request import Request
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Context, execute
from cmapkd_core.stages.identities import Paths
from cmapkd_core.stages.shards import open_shards

_EVERY = 50  # rows between two progress lines


def run(request: Request, *, source: str = "") -> str:
    """Write the data set of the recipe; the artifact holds the files of `data.layout`.

    Args:
        source: SOURCE or SOURCE:URL, such as coco:s3://bucket/coco or emoji; the same as --data. All of its rows are
            read, or the first data.size of them where an override says so.

    Raises:
        InputError: what the source says of its input, too many bad rows, nothing to train on, training pictures that
            are held out here or in a data set of `data.against`.
    """
    if source and request.data not in ("", source):
        raise InputError(f"--source {source} and --data {request.data} name two data sets: leave one out")
    request = dataclasses.replace(request, data=request.data or source)
    recipe = request.resolved()
    fields = reads(recipe, "prepare")
    url = place(request.root, "prepare", fields)
    inputs = {f"against-{number}": other for number, other in enumerate(recipe.data.against)}
    may = declared(recipe, "prepare")
    return execute(
        request, "prepare", url=url, fields=fields, inputs=inputs, body=body, declared=may, paths=of_data(recipe)
    )


def of_data(recipe: Recipe) -> Paths:
    """The folder of the recipe's source; sources that carry their data have none.

    Here and not in given.py, which knows models: prepare loads none of their libraries.
    """
    return {"data.url": recipe.data.url} if reads_folder(recipe.data.source) and recipe.data.url else {}


def body(context: Context) -> dict[str, float]:
    """Shards into `context.out`; the counts are the metrics.

    When it fails for its rows, the list of those is kept in the workdir and the message says where.
    """
    config = context.recipe.data
    stop = StopRequest().listen()
    try:
        counts = _write(context, stop)
        stop.release()  # nobody looks while pictures are compared
        if stop.asked:
            raise Interrupted("prepare was asked to stop after its last row; its finished shards are kept")
        against = {url: open_shards(other) for url, other in zip(config.against, context.inputs.values(), strict=True)}
        counts = gate(context.out, config, against, counts)
    except (TooManyBadError, LeakageError) as error:
        name, what = (LEAKAGE, "pair") if isinstance(error, LeakageError) else (QUARANTINE, "bad row with its reason")
        kept = storage.join(context.workdir, name)
        storage.put(context.out / name, kept)
        if isinstance(error, LeakageError):  # every row is written; mended pictures have to be read again
            _saved(context).clear()
        raise type(error)(f"{error}\nEvery {what}: {kept}") from None
    finally:
        stop.release()
    for line in _summary(config, counts, ShardSet.open(str(context.out), context.scratch)):
        context.say(f"prepare: {line}\n")
    return {name: float(count) for name, count in counts.items()}


def _saved(context: Context) -> SavedShards:
    return SavedShards(storage.join(context.workdir, f"shards-{context.identity}"))


def _write(context: Context, stop: StopRequest) -> dict[str, int]:
    """All rows into shards, going on after an earlier attempt's; anew where that was of other rows."""
    config, workers = context.recipe.data, context.recipe.runtime.workers
    saved = _saved(context)
    for url in saved.damaged:
        context.say(f"prepare: {url} is not what an earlier attempt saved: its shard is made again\n")
    if saved.count():
        context.say(f"prepare: going on after {saved.count()} pictures in finished shards of an earlier attempt\n")
    try:
        rows = open_rows(config)
        progress = _progress(context.say, len(rows), saved.count(), stop)
        return write_shards(rows, context.out, config, progress, workers=workers, saved=saved)
    except SourceChangedError as changed:
        context.say(f"prepare: nothing of the earlier attempt can be gone on with ({changed}): starting anew\n")
        saved.clear()
        shutil.rmtree(context.out)
        return _write(context, stop)
    finally:
        saved.wait()


def _progress(say: Say, total: int, before: int, stop: StopRequest) -> Callable[[int], None]:
    """Says how many rows are done, `before` of them in an earlier attempt; `total` 0: of how many is not known."""
    show = Progress(say, "prepare", total, "rows", before=before, every=_EVERY)

    def progress(seen: int) -> None:
        if stop.asked:
            raise Interrupted(f"prepare was asked to stop after {seen} rows; its finished shards are kept")
        show(seen)

    return progress


def _summary(config: DataConfig, counts: dict[str, int], shards: ShardSet) -> list[str]:
    """What a reader should know of the data set before training on it."""
    splits = ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test"))
    lines = [f"{counts['used']} pictures ({splits}), {counts['captions']} captions, {counts['classes']} classes"]
    if counts["seen"] == config.size and not SOURCES[config.source].generated:
        lines.append(f"data.size={config.size} ended the source after so many rows; data.size=0 takes all of them")
    if "questions" in counts:
        asked = ", ".join(f"{shards.question_count(split)} {split}" for split in ("train", "val", "test"))
        lines.append(f"{counts['questions']} questions ({asked}), {counts['bad_questions']} bad ones")
    if counts["left_out"]:
        lines.append(f"{counts['left_out']} rows are of no split in data.splits={','.join(config.splits)}")
    if counts["leaks"]:
        done = "taken out of it" if counts["dropped"] else "left in it, as data.leakage_action=allow says"
        lines.append(f"{counts['leaks']} training pictures were also held out and are {done}: {LEAKAGE}")
    if counts["quarantined"]:
        lines.append(f"{counts['quarantined']} of {counts['seen']} rows are bad and listed in {QUARANTINE}")
    for split in ("val", "test"):
        if not counts[split]:
            lines.append(f"split {split} is empty: nothing can be evaluated on it")
            continue
        missing = [name for name, count in shards.class_counts(split).items() if not count]
        if missing:
            names = ", ".join(missing[:5]) + (", .." if len(missing) > 5 else "")
            lines.append(f"{len(missing)} of {counts['classes']} classes have no picture in split {split}: {names}")
    return lines


if __name__ == "__main__":
    sys.exit(main(run))
