"""Words of captions, and the vocabulary that every model's caption decoder shares."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

SPECIAL = ("<start>", "<end>", "<unknown>")
START, END, UNKNOWN = range(len(SPECIAL))

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b")
_WORD = re.compile(r"n't|'(?:s|m|d|re|ve|ll)\b|\d+(?:[.,:/]\d+)+(?!\w)|\w+(?:['-]\w+)*")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation: "A man's T-shirt." -> a, man, 's, t-shirt.

    Clitics part and hyphens stay, as in the Penn Treebank tokenisation that the COCO tools use; most
    captions come out as theirs.
    """
    folded = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")
    return _WORD.findall(_CLITIC.sub(r" \1", folded))


@dataclass(frozen=True)
class Vocabulary:
    """Words by id; the first ids are those of SPECIAL. It follows from the training captions alone."""

    known: tuple[str, ...]

    @classmethod
    def of(cls, captions: Iterable[str], size: int) -> Vocabulary:
        """The `size` most frequent words; among equals the alphabet decides."""
        counts = Counter(word for caption in captions for word in words(caption))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(SPECIAL + tuple(ranked[:size]))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Inverse of `known`."""
        return {word: i for i, word in enumerate(self.known)}

    def __len__(self) -> int:
        return len(self.known)

    def encode(self, caption: str, length: int) -> list[int]:
        """At most `length` ids: the words, then END where it still fits."""
        ids = [self.ids.get(word, UNKNOWN) for word in words(caption)]
        return [*ids, END][:length]

    def decode(self, ids: Sequence[int]) -> str:
        """The words before the first END, with a blank between them."""
        sequence = list(ids)
        stop = sequence.index(END) if END in sequence else len(sequence)
        return " ".join(self.known[i] for i in sequence[:stop])

    def unknown(self, captions: Iterable[str]) -> float:
        """Share of the captions' words that are not in the vocabulary, in percent; 0 without words."""
        is_known = [word in self.ids for caption in captions for word in words(caption)]
        return 100 * is_known.count(False) / len(is_known) if is_known else 0.0
