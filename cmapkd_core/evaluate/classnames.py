"""What the classes of a data set are called in prompts, where its own names are no words.

Formats of a file: JSON `{"n01440764": ["tench", "Tinca tinca"], "n01443537": "goldfish"}`, or text with a line
`CLASS<tab>NAME[<tab>NAME ..]` a class. A class of several names is the mean over the prompts of all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from timm.data.imagenet_info import ImageNetInfo

from cmapkd_core.catalog import IMAGENET
from cmapkd_core.data.texts import checked, shown
from cmapkd_core.errors import InputError
from cmapkd_core.fields import nearest
from cmapkd_core.storage import read_bytes

Names = tuple[str, ...]
_SHOWN = 3  # classes named in an error message


def load_class_names(source: str, classes: Sequence[str]) -> list[Names]:
    """The names of each class, in the order of `classes`; names of other classes in `source` are not used.

    Args:
        source: "": the classes are their own names. "imagenet": classes are WordNet ids (n01440764) and are called
            as in open_clip's list. Else a file (path or s3://).

    Raises:
        InputError: no such file, one that cannot be read as above, or a class without a name in it.
    """
    if not source:
        return [(name,) for name in classes]
    known = imagenet_names() if source == IMAGENET else _read(source)
    missing = [name for name in classes if name not in known]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", .." if len(missing) > _SHOWN else "")
        way_out = "they must be WordNet ids such as n01440764" if source == IMAGENET else "add them to it"
        raise InputError(
            f"evaluate.classes={source} has no name for {len(missing)} of the {len(classes)} classes ({shown}): "
            f"{way_out}, or leave evaluate.classes empty to use the classes' own names"
        )
    return [known[name] for name in classes]


def imagenet_names() -> dict[str, Names]:
    """WordNet id -> name of the 1000 classes: timm's sorted ids beside open_clip's names in the same order."""
    ids = ImageNetInfo("imagenet-1k").label_names()
    return {number: (name,) for number, name in zip(ids, IMAGENET_CLASSNAMES, strict=True)}


def _read(source: str) -> dict[str, Names]:
    try:
        text = read_bytes(source).decode()
    except FileNotFoundError:
        hint = nearest(source, (IMAGENET,))
        raise InputError(f"evaluate.classes={source} is no file: {hint}") from None
    except UnicodeDecodeError:
        raise InputError(f"evaluate.classes={source} is not UTF-8 text: give a line CLASS<tab>NAME a class") from None
    entries = _from_json(source, text) if source.endswith(".json") else _from_lines(source, text)
    by_set: dict[str, Names] = {}
    for name, names in entries:
        if name in by_set:
            raise InputError(f"evaluate.classes={source} names class '{name}' twice: keep one entry")
        if not names or not all(isinstance(n, str) and n.strip() for n in names):
            raise InputError(f"evaluate.classes={source}: class '{name}' needs one name or more, each a text")
        where = f"evaluate.classes={source}: a name of class '{shown(name)}'"
        by_set[name] = tuple(" ".join(checked(n, where).split()) for n in names)
    return by_set


def _from_json(source: str, text: str) -> Iterable[tuple[str, Sequence[str]]]:
    try:
        entries = json.loads(text, object_pairs_hook=list)  # keeps a key that stands twice
    except (ValueError, RecursionError) as error:
        raise InputError(f"evaluate.classes={source} is no JSON ({error})") from error
    if not text.lstrip().startswith("{"):
        raise InputError(f'evaluate.classes={source} is no JSON object: write {{"class": "name", ..}}')
    return [(name, names if isinstance(names, list) else [names]) for name, names in entries]


def _from_lines(source: str, text: str) -> Iterable[tuple[str, Sequence[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        name, tab, names = line.partition("\t")
        if line.strip() and not tab:
            raise InputError(f"evaluate.classes={source}, line {number}: '{line}' has no tab: CLASS<tab>NAME")
        if tab:
            yield name.strip(), names.split("\t")
