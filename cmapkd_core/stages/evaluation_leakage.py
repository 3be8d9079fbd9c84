"""Whether a model was trained on what it is tested on, where it is tested on another data set than its own.

The gate of stage prepare compares within a data set and with those of `data.against`. A set that is only tested on is
prepared apart, often after the training, so stage evaluate compares too: the indices, and of pairs that look alike by
them the pictures, each read at its place in its shard.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from cmapkd_core import storage
from cmapkd_core.data.contact_sheet import Section
from cmapkd_core.data.layout import INDEX, LEAKAGE, LOOK_ALIKES, MANIFEST, SHEET
from cmapkd_core.data.leakage import (
    BOUND,
    SAME,
    HeldOut,
    LeakageError,
    alike_or_not,
    checks_of,
    find_pairs,
    first_of,
    lying,
    require_hashes,
    sections,
    training_pictures,
    write_sections,
)
from cmapkd_core.data.look_alikes import DIFFERENT, Pair, compared
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.execute import Context

NOTE = "leakage.json"


@dataclass(frozen=True)
class Behind:
    """What a model learned from. data: prepare artifacts by digest. unknown: URL -> why it cannot be looked at."""

    data: dict[str, Artifact] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


def behind(model: Artifact) -> Behind:
    """The data of a model, of the one that it started from and of its teacher, as their manifests name each other.

    All training pictures of them count, whatever `data.fraction`: the teacher was fitted on all.
    """
    if model.manifest["stage"] == "prepare":
        require_hashes(model.url, storage.read_json(str(model.fetch(MANIFEST))))
        return Behind({model.digest: model})
    result = Behind()
    for name, entry in model.manifest["inputs"].items():
        try:
            before = behind(model.source(name))
        except InputError as reason:
            before = Behind(unknown={entry["url"]: str(reason)})
        result = Behind(result.data | before.data, result.unknown | before.unknown)
    return result


def refuse_seen(context: Context, shards: ShardSet) -> dict[str, float]:
    """Compare the training pictures behind the stage's input `model` with the split that it is tested on.

    A data set is not compared with itself: stage prepare has done that. Where there is something to compare, NOTE says
    with what and how, and leakage.jsonl lists the pairs that were accepted.

    Returns:
        `leakage/pairs`; `leakage/pictures`, those of the split that were trained on; `leakage/unknown`, inputs behind
        the model that could not be looked at. {} where there was nothing to compare.

    Raises:
        LeakageError: there are such pictures, and `evaluate.leakage_action` does not allow them.
        InputError: the data that the model was trained on, or the tested data set, cannot be compared.
    """
    if not {"model", "shards"} <= set(context.inputs):
        return {}
    tested, known = context.inputs["shards"], behind(context.inputs["model"])
    _check_known(context, known)
    others = [one for digest, one in known.data.items() if digest != tested.digest]
    if not others and not known.unknown:
        return {}
    require_hashes(tested.url, shards.manifest)
    parts, checked = _compared(context, shards, others)
    write_sections(context.out, parts)
    pairs = [pair for part in parts if part.heading.startswith(SAME) for pair in part.pairs]
    look_alikes = sum(len(part.pairs) for part in parts) - len(pairs)
    if look_alikes:
        context.say(f"evaluate: {look_alikes} pairs look alike and differ in colour or detail: {LOOK_ALIKES}\n")
    if pairs:
        if context.recipe.evaluate.leakage_action == "refuse":
            raise _refusal(context, pairs)
        context.say(
            f"evaluate: {_count(pairs)} of the pictures were trained on, which evaluate.leakage_action allows\n"
        )
    counts = {"pairs": len(pairs), "pictures": _count(pairs), "unknown": len(known.unknown)}
    note = {"compared": checked, "bound": BOUND, "finer_bound": DIFFERENT, "look_alikes": look_alikes}
    note |= {**counts, "unknown": known.unknown}
    (context.out / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
    return {f"leakage/{name}": float(count) for name, count in counts.items()}


def _count(pairs: list[Pair]) -> int:
    """Tested pictures."""
    return len({pair.held_out for pair in pairs})


def _check_known(context: Context, known: Behind) -> None:
    model, config = context.inputs["model"].url, context.recipe.evaluate
    for reason in known.unknown.values():
        context.say(
            f"evaluate: not everything that {model} learned from is compared with split {config.split}: {reason}\n"
        )
    if known.unknown and not known.data and config.leakage_action == "refuse":
        raise InputError(
            f"what {model} was trained on cannot be compared with split {config.split}: "
            f"{'; '.join(known.unknown.values())}. Bring it back, or evaluate without knowing: "
            "--set evaluate.leakage_action=allow"
        )


def _compared(context: Context, shards: ShardSet, others: list[Artifact]) -> tuple[list[Section], dict[str, list[str]]]:
    """The pairs of all data sets, and what each was checked by."""
    tested = HeldOut(shards.table(context.recipe.evaluate.split), context.inputs["shards"].url, shards.url)
    source = context.inputs["shards"].manifest["fields"]["data.source"]
    parts: list[Section] = []
    checks: dict[str, list[str]] = {}
    for one in others:
        chosen = checks_of(context.recipe.data.leakage, source, one.manifest["fields"]["data.source"])
        index = one.fetch(INDEX)
        pairs = [pair for part in training_pictures(index) for pair in find_pairs(part, [tested], chosen)]
        train, held = lying(index, one.file_url(INDEX).rpartition("/")[0]), {tested.url: tested.pictures}
        parts += sections(compared(pairs, train, held), train, held, one.url)
        checks[one.url] = list(chosen)
    return parts, checks


def _refusal(context: Context, pairs: list[Pair]) -> LeakageError:
    kept, side_by_side = (storage.join(context.workdir, name) for name in (LEAKAGE, SHEET))
    storage.put(context.out / LEAKAGE, kept)
    storage.put(context.out / SHEET, side_by_side)
    tested, split = context.inputs["shards"].url, context.recipe.evaluate.split
    return LeakageError(
        f"{context.inputs['model'].url} was trained on {_count(pairs)} pictures of split {split} of {tested}, "
        f"where its results would not count:\n{first_of(pairs)}\n"
        f"Train without them: --set data.against={tested} --set data.leakage_action=drop\n"
        "Or accept them, which trains nothing again and which the evaluation's manifest then says: "
        "--set evaluate.leakage_action=allow\n"
        "data.leakage_action is not read here: the model has seen them and the split stays as it is published, so "
        "nothing can be dropped\n"
        f"{alike_or_not(pairs)}"
        f"Side by side: {side_by_side}\nEvery pair: {kept}"
    )
