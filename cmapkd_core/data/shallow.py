"""JSON on its way to its reader, without what is nested deeper than any annotation.

A reader that names the place of every value (ijson) needs memory that grows with the square of the depth: 100,000
brackets, 200 KB, took all that a machine had. One such value must cost its row and not the file.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

DEEPEST = 64  # lists and objects in each other
_QUOTE, _BACKSLASH, _OPEN, _CLOSE = ord('"'), ord("\\"), ord("{"), ord("}")
_CASE = 0x20  # what "{" and "}" have more than "[" and "]"


class Readable(Protocol):
    """A binary file."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; b"" at the end."""
        ...


class Shallow:
    """A file of JSON in UTF-8, in which a list or object below DEEPEST others is `0` and blanks, of the same length."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._depth = 0
        self._in_text = self._escaped = False  # where the chunk before ended

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as of a file."""
        data = self._file.read(size)
        before, (places, steps) = self._depth, self._brackets(data)
        if not len(places):
            return b" " * len(data) if before > DEEPEST else data
        depths = before + np.cumsum(steps)
        self._depth = int(depths[-1])
        if max(before, int(depths.max())) <= DEEPEST:
            return data
        starts = places[(steps > 0) & (depths == DEEPEST + 1)].tolist()
        ends = places[(steps < 0) & (depths == DEEPEST)].tolist()
        return _blanked(data, starts, ends, before > DEEPEST)

    def _brackets(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Where brackets stand outside of texts, [n], and 1 of each that opens, -1 of each that closes, [n]."""
        signs = np.frombuffer(data, np.uint8)
        quotes = self._quotes(data, signs)
        kinds = signs | _CASE
        places = np.flatnonzero((kinds == _OPEN) | (kinds == _CLOSE))
        outside = (np.searchsorted(quotes, places) + self._in_text) % 2 == 0
        self._in_text = bool((len(quotes) + self._in_text) % 2)
        places = places[outside]
        return places, np.where(kinds[places] == _OPEN, 1, -1)

    def _quotes(self, data: bytes, signs: np.ndarray) -> np.ndarray:
        """Where texts begin and end, [n]: the quotes without an odd number of backslashes before them; signs [m]."""
        quotes = np.flatnonzero(signs == _QUOTE)
        after = quotes[(quotes > 0) & (signs[quotes - 1] == _BACKSLASH)].tolist()
        meant = [at for at in after if self._odd(data, at)] + ([0] if self._escaped and data[:1] == b'"' else [])
        self._escaped = self._odd(data, len(data)) if data else self._escaped
        return np.setdiff1d(quotes, meant, assume_unique=True) if meant else quotes

    def _odd(self, data: bytes, end: int) -> bool:
        """Whether an odd number of backslashes stands before `end`."""
        start = end
        while start and data[start - 1] == _BACKSLASH:
            start -= 1
        return bool((end - start + (self._escaped and start == 0)) % 2)


def _blanked(data: bytes, starts: list[int], ends: list[int], inside: bool) -> bytes:
    """The data with `0` and blanks from each start to its end; inside: the first start was in an earlier chunk."""
    cut = bytearray(data)
    for start, end in zip([-1, *starts] if inside else starts, [*ends, len(data) - 1], strict=False):
        first = max(start, 0)
        cut[first : end + 1] = (b"0" if start >= 0 else b" ") + b" " * (end - first)
    return bytes(cut)
