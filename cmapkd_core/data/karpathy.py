"""The JSON files of Andrej Karpathy's splits: dataset_coco.json and dataset_flickr30k.json.

    {"dataset": "coco", "images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "imgid": 0,
     "cocoid": 391895, "split": "test", "sentids": [770337, ..], "sentences": [{"raw": "A man ..", "tokens": [..],
     "imgid": 0, "sentid": 770337}, ..]}, ..]}

Of Flickr30K without filepath and cocoid. restval, COCO's 30,504 pictures of val2014 that are neither val nor test,
belongs to training.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmapkd_core.data.files import json_items, required
from cmapkd_core.errors import InputError

SPLIT_OF = {"train": "train", "restval": "train", "val": "val", "test": "test"}


@dataclass(frozen=True)
class Entry:
    """One picture. number: its COCO id; -1 in other data sets."""

    folder: str
    file: str
    number: int
    split: str
    captions: tuple[str, ...]


def karpathy_entries(url: str) -> list[Entry]:
    """All pictures in the order of the file.

    Raises:
        InputError: the file is not there, broken, of another format, or has an unknown split.
    """
    return [_entry(image, url) for image in json_items(url, "images.item")]


def _entry(image: dict[str, object], url: str) -> Entry:
    file, split, sentences = required(image, ("filename", "split", "sentences"), url)
    if split not in SPLIT_OF:
        raise InputError(f"{url}: {file} is in split '{split}', which is none of {', '.join(SPLIT_OF)}")
    captions = tuple(str(required(sentence, ("raw",), url)[0]) for sentence in sentences)
    folder, number = str(image.get("filepath", "")), image.get("cocoid", -1)
    return Entry(folder, str(file), int(str(number)), SPLIT_OF[split], captions)
