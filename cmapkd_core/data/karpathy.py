"""The JSON files of Andrej Karpathy's splits: dataset_coco.json and dataset_flickr30k.json.

    {"dataset": "coco", "images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "imgid": 0,
     "cocoid": 391895, "split": "test", "sentids": [770337, ..], "sentences": [{"raw": "A man ..", "tokens": [..],
     "imgid": 0, "sentid": 770337}, ..]}, ..]}

Of Flickr30K without filepath and cocoid. restval, COCO's 30,504 pictures of val2014 that are neither val nor test,
belongs to training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cmapkd_core.data.annotations import a_list, json_items, number, required, value_of
from cmapkd_core.data.texts import BadValueError, optional, shown, text, texts
from cmapkd_core.errors import InputError

SPLIT_OF = {"train": "train", "restval": "train", "val": "val", "test": "test"}
_NO_SPLIT = "it is in split"


@dataclass(frozen=True)
class KarpathyEntry:
    """One picture. number: its COCO id; -1 in other data sets. problem: why it cannot be used, "" if it can."""

    folder: str
    file: str
    number: int
    split: str
    captions: tuple[str, ...]
    problem: str = ""


def karpathy_entries(url: str) -> list[KarpathyEntry]:
    """All pictures in the order of the file.

    Raises:
        InputError: the file is not there, broken, of another format, or has an unknown split.
    """
    entries = [_entry(image, url) for image in json_items(url, "images.item")]
    if all(entry.problem.startswith(_NO_SPLIT) for entry in entries):
        raise InputError(
            f"{url}: {entries[0].file}: {entries[0].problem}: this is no file of Karpathy's splits, download it again"
        )
    return entries


def _entry(image: dict[str, Any], url: str) -> KarpathyEntry:
    """A picture; what could be read of it where a value is none."""
    file, split, sentences = required(image, ("filename", "split", "sentences"), url)
    entry = KarpathyEntry("", shown(file), -1, "", ())
    try:
        entry = replace(entry, number=number(image["cocoid"], "cocoid") if "cocoid" in image else -1)
        entry = replace(entry, file=text(file, "filename"), folder=optional(image.get("filepath"), "filepath"))
        side = text(split, "split")
        if side not in SPLIT_OF:
            raise BadValueError(f"{_NO_SPLIT} '{shown(side)}', which is none of {', '.join(SPLIT_OF)}")
        entry = replace(entry, split=SPLIT_OF[side])
        raw = [value_of(one, "raw", f"sentence {at}") for at, one in enumerate(a_list(sentences, "sentences"), 1)]
        return replace(entry, captions=texts(raw))
    except BadValueError as error:
        return replace(entry, problem=str(error))
