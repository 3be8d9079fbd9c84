"""What lies near a place where a person looked for an artifact and none is: words for a message.

A root has STAGE/KEY: who names the root, or a stage's folder, is one or two levels too high; a KEY was copied with a
digit too few; a name on the way is misspelled.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.stages.artifact import MANIFEST, Artifact, find, look

MODELS = ("export", "joint", "alsn", "warmup", "teacher")  # stages whose artifacts hold a model, the best first
TRAINED = MODELS[1:]  # those that stages can read it of
_STAGES = (*MODELS, "prepare", "evaluate", "levels")
_STAGES_OF = {  # by what a stage calls its input; any other can be of any stage
    "model": TRAINED,
    "init": ("joint", "alsn", "warmup"),
    "teacher": ("teacher",),
    "shards": ("prepare",),
    "evaluation": ("evaluate",),
}
_UP = 4  # levels from a file of a model in an artifact to its root
_ALIKE = 0.75  # keys are random digits, which are half alike by chance
_SHOWN = 4


def open_input(name: str, url: str) -> Artifact:
    """A stage's input.

    Raises:
        InputError: none is there; names those that are near.
        DamagedError: there is one, which cannot be used.
    """
    artifact = look(url)
    if artifact is None and (near := nearby(url, _STAGES_OF.get(name, _STAGES))):
        raise InputError(
            f"{url} has no {MANIFEST}: the stage that writes it has not finished; run it first, or give one that is "
            f"complete: {near}"
        )
    return artifact or Artifact.open(url)


def nearby(url: str, stages: Sequence[str]) -> str:
    """`did you mean ..?`, or the artifacts below or beside a place where none is; "" where nothing is to be named.

    Args:
        stages: whose artifacts can be meant, the first ones first.
    """
    place = storage.absolute(url).rstrip("/")
    try:
        return below(place, stages) or _beside(place, stages) or _misspelled(place)
    except InputError:  # a place that cannot be listed; the message that these words are for says what is wrong there
        return ""


def below(url: str, stages: Sequence[str]) -> str:
    """The artifacts below a root, or below a stage's folder; "" where there are none.

    Raises:
        InputError: it cannot be listed.
    """
    listed = _complete(storage.absolute(url).rstrip("/"), stages)
    return f"below it are {listed}" if listed else ""


def _beside(place: str, stages: Sequence[str]) -> str:
    above = place
    for _ in range(_UP):
        above = above.rpartition("/")[0]
        if above in ("", "s3:/"):
            break
        if _is_there(above):
            return f"did you mean {above}?"
        names = list(_names(above, stages))
        depth = names[0].count("/") + 1 if names else 0
        wanted = "/".join(place.removeprefix(f"{above}/").split("/")[:depth])
        for name in difflib.get_close_matches(wanted, names, cutoff=_ALIKE):
            if _is_there(storage.join(above, name)):
                return f"did you mean {storage.join(above, name)}?"
        if listed := _complete(above, stages):
            return f"there are {listed}"
    return ""


def _misspelled(place: str) -> str:
    """The path of this machine that has the nearest name in place of the first part that is missing."""
    if "://" in place or os.path.exists(place):
        return ""
    missing = next(path for path in reversed((Path(place), *Path(place).parents)) if not path.exists())
    if missing.parent.name in _STAGES:  # a key of another stage, or one that is not complete
        return ""
    for name in difflib.get_close_matches(missing.name, storage.folders(str(missing.parent)), cutoff=_ALIKE):
        return f"did you mean {missing.parent / name}?"
    return ""


def _complete(above: str, stages: Sequence[str]) -> str:
    """The first of the artifacts below a root, or below a stage's folder; "" where there are none."""
    urls = (storage.join(above, name) for name in _names(above, stages))
    complete = list(islice(filter(_is_there, urls), _SHOWN + 1))
    return ", ".join(map(_told_apart, complete[:_SHOWN])) + (", .." if len(complete) > _SHOWN else "")


def _told_apart(url: str) -> str:
    """With the method of what was trained: beside a student lies the one that was trained without a teacher."""
    made = find(url)
    method = made.manifest["fields"].get("method.name") if made else None
    return f"{url} (by {method})" if method else url


def _names(above: str, stages: Sequence[str]) -> Iterator[str]:
    """KEY below a stage's folder, STAGE/KEY below any other; whether they are complete is not looked at."""
    if above.rpartition("/")[2] in stages:
        yield from storage.folders(above)
        return
    for stage in stages:
        yield from (f"{stage}/{key}" for key in storage.folders(storage.join(above, stage)))


def _is_there(url: str) -> bool:
    return storage.exists(storage.join(url, MANIFEST))
