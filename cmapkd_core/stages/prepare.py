"""Stage prepare: pictures with captions from a source become checked, split, indexed shards."""

from __future__ import annotations

import sys
import time

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.layout import QUARANTINE
from cmapkd_core.data.shards import ShardSet, TooManyBadError, write_shards
from cmapkd_core.data.sources import open_rows
from cmapkd_core.fingerprints import reads
from cmapkd_core.places import place
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.common import Context, Request, execute

_EVERY = 50  # rows between two progress lines


def run(request: Request) -> str:
    """Write the data set of the recipe; the artifact holds the files of `data.layout`.

    Raises:
        InputError: what the source says of its input, too many bad rows, nothing to train on.
    """
    fields = reads(request.resolved(), "prepare")
    url = place(request.root, "prepare", fields)
    return execute(request, "prepare", url=url, fields=fields, inputs={}, body=body)


def body(context: Context) -> dict[str, float]:
    """Shards into `context.out`; the counts are the metrics.

    When it fails for its rows, the quarantine list is kept in the workdir and the message says where.
    """
    config = context.recipe.data
    started = time.monotonic()

    def progress(seen: int) -> None:
        if seen % _EVERY == 0:
            context.say(f"prepare: {seen} rows, {seen / (time.monotonic() - started):.0f} rows/s")

    try:
        counts = write_shards(open_rows(config), context.out, config, progress)
    except TooManyBadError as error:
        kept = storage.join(context.workdir, QUARANTINE)
        storage.put(context.out / QUARANTINE, kept)
        raise TooManyBadError(f"{error}\nEvery bad row with its reason: {kept}") from None
    for line in _summary(config, counts, ShardSet.open(str(context.out), context.scratch)):
        context.say(f"prepare: {line}\n")
    return {name: float(count) for name, count in counts.items()}


def _summary(config: DataConfig, counts: dict[str, int], shards: ShardSet) -> list[str]:
    """What a reader should know of the data set before training on it."""
    splits = ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test"))
    lines = [f"{counts['used']} pictures ({splits}), {counts['captions']} captions, {counts['classes']} classes"]
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
    if config.fraction < 1:
        lines.append(f"students train on {round(counts['train'] * config.fraction)} of the {counts['train']} pairs")
    return lines


if __name__ == "__main__":
    sys.exit(main(run))
