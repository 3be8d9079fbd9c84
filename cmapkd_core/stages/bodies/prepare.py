"""What stage prepare does: rows of a source into shards, training pictures compared with those held out."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cmapkd_core import storage
from cmapkd_core.catalog import SOURCES
from cmapkd_core.config import DataConfig
from cmapkd_core.data.layout import LEAKAGE, LOOK_ALIKES, MANIFEST, PAIRS, QUARANTINE, SHEET
from cmapkd_core.data.leakage import LeakageError, gate
from cmapkd_core.data.pair_sheet import pair_sheet
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.texts import printable
from cmapkd_core.data.verdict import TooManyBadError
from cmapkd_core.engine.runtime import StopRequest
from cmapkd_core.errors import Interrupted
from cmapkd_core.stages.bodies.written_parts import write_joined
from cmapkd_core.stages.bodies.written_rows import saved_shards, write_rows
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.execute import Context
from cmapkd_core.stages.identities import Paths
from cmapkd_core.stages.parts import PartOf

NO_PATHS: Paths = {}


def body(context: Context, parts: Sequence[PartOf] = (), paths: Paths = NO_PATHS) -> dict[str, float]:
    """Shards into `context.out`; the counts are the metrics.

    When it fails for its rows, the list of those is kept in the workdir and the message says where.

    Args:
        parts: of the data set, which are joined; (): all rows are read here.
        paths: what they were made from, beside the recipe.
    """
    config = context.recipe.data
    stop = StopRequest().listen()
    try:
        counts = write_joined(context, stop, parts, paths) if parts else write_rows(context, stop)
        stop.release()  # nobody looks while pictures are compared
        if stop.asked:
            raise Interrupted("prepare was asked to stop after its last row; its finished shards are kept")
        against = {url: open_shards(other) for url, other in zip(config.against, context.inputs.values(), strict=True)}
        counts = gate(context.out, config, against, counts)
    except (TooManyBadError, LeakageError) as error:
        files = {QUARANTINE: "Every bad row with its reason"}
        if isinstance(error, LeakageError):  # every row is written; mended pictures have to be read again
            files = {SHEET: "Side by side", LEAKAGE: "Every pair"}
            saved_shards(context).clear()
        notes = [f"{what}: {_kept(context, name)}" for name, what in files.items()]
        raise type(error)("\n".join([str(error), *notes])) from None
    finally:
        stop.release()
    shards = ShardSet.open(str(context.out), context.scratch)
    (context.out / PAIRS).write_text(pair_sheet(shards), encoding="utf-8")
    _note_licences(context, shards)
    for line in _summary(config, counts, shards):
        context.say(f"prepare: {line}\n")
    return {name: float(count) for name, count in counts.items()}


def _note_licences(context: Context, shards: ShardSet) -> None:
    """Pictures by licence into shards.json, where the source gave any."""
    counts = shards.licences()
    if not any(counts):
        return
    storage.write_json(str(context.out / MANIFEST), shards.manifest | {"licences": counts})
    most, number = max(counts.items(), key=lambda one: one[1])
    more = f"; the {len(counts)} of them are in {MANIFEST}" if len(counts) > 1 else ""
    context.say(f"prepare: licence of {number} pictures: {printable(most)}{more}\n")


def _a_bad_row(folder: str) -> str:
    """The first one with its reason."""
    with storage.opened(storage.join(folder, QUARANTINE)) as file:
        entry = next(entry for entry in map(json.loads, file) if "question" not in entry)
    return printable(f"{entry['key']}: {entry['reason']}")


def _kept(context: Context, name: str) -> str:
    """URL of a file of the stage's output, copied where it stays although the stage fails."""
    kept = storage.join(context.workdir, name)
    storage.put(context.out / name, kept)
    return kept


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
    if alike := counts.get("look_alikes"):
        pairs = f"{alike} pairs" if alike > 1 else "a pair"
        lines.append(
            f"{pairs} of a training and a held-out picture look alike and differ in colour or detail, so they count as "
            f"different: {LOOK_ALIKES}, side by side in {SHEET}"
        )
    if counts["quarantined"]:
        bad = f"{counts['quarantined']} of {counts['seen']} rows {'is' if counts['quarantined'] == 1 else 'are'} bad"
        lines.append(f"{bad}, left out and listed in {QUARANTINE}, such as {_a_bad_row(shards.url)}")
    for split in ("val", "test"):
        if not counts[split]:
            lines.append(f"split {split} is empty: nothing can be evaluated on it")
            continue
        missing = [name for name, count in shards.class_counts(split).items() if not count]
        if missing:
            names = ", ".join(missing[:5]) + (", .." if len(missing) > 5 else "")
            lines.append(f"{len(missing)} of {counts['classes']} classes have no picture in split {split}: {names}")
    return lines
