"""Which field of a captions file holds what: our names, and those that other tools write.

Hugging Face's image folders have `file_name` and `text`, open_clip's tables `filepath` and `title`. Another name is
taken where it is the only one of its kind, which is said; where two of a kind stand side by side nobody knows which
counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from cmapkd_core.data.texts import shown
from cmapkd_core.errors import InputError

log = logging.getLogger(__name__)

OTHER_NAMES = {
    "file": ("file_name", "filename", "filepath", "file_path", "image", "image_path", "path"),
    "caption": ("text", "texts", "title", "description"),
}
RIGHT = '{"file": "img/0001.jpg", "captions": ["a red mug on a desk"]}'
_SHOWN = 12  # names in a message


def fields_of(names: Iterable[str], place: str) -> dict[str, str]:
    """Name in the file -> our name, of the fields whose names differ; said where there are any.

    Args:
        names: all that stand in it.
        place: the file, for messages.

    Raises:
        InputError: there is no field for the file or for the captions, or more than one.
    """
    present = set(names)
    aliases = {}
    for field, others in OTHER_NAMES.items():
        if field in present or (field == "caption" and "captions" in present):
            continue
        taken = [name for name in others if name in present]
        if len(taken) > 1:
            raise InputError(f"{place} has {' and '.join(taken)}: rename the one that is meant to {field}")
        if not taken:
            raise InputError(_missing(field, present, place))
        aliases[taken[0]] = field
    if aliases:
        renaming = ", ".join(f"{alias} is the {field}" for alias, field in aliases.items())
        log.warning("%s: %s", place, renaming)
    return aliases


def renamed(record: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """The record by our names."""
    return {names.get(name, name): value for name, value in record.items()}


def _missing(field: str, present: set[str], place: str) -> str:
    listed = ", ".join(sorted(map(shown, present))[:_SHOWN]) or "none"
    what = "the picture's file" if field == "file" else "its captions"
    return (
        f"{place} has no field for {what}; it has {listed}. Name it {field} (or {', '.join(OTHER_NAMES[field])}), such "
        f"as {RIGHT}"
    )
