"""What stage prepare does: rows of a source into shards, training pictures compared with those held out."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from cmapkd_core import storage
from cmapkd_core.catalog import SOURCES
from cmapkd_core.config import DataConfig
from cmapkd_core.data.layout import LEAKAGE, QUARANTINE
from cmapkd_core.data.leakage import LeakageError, gate
from cmapkd_core.data.prepare_resume import SavedShards, SourceChangedError
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.verdict import TooManyBadError
from cmapkd_core.data.writer import write_shards
from cmapkd_core.engine.runtime import StopRequest
from cmapkd_core.errors import Interrupted
from cmapkd_core.progress import Progress, Say
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.execute import Context

_EVERY = 50  # rows between two progress lines


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
