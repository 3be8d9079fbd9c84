"""Words of others in Markdown: whatever a run, a class or a caption is called, it is shown and nothing else.

The Markdown of this project is read by KFP's UI, MLflow's and Hugging Face's, whose readers differ; all of them let
HTML through in part. So every sign that one of them could obey is escaped.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_WORD = r"[^\W_]"
# An underscore inside a word is none of emphasis, and & begins an entity before a letter or # alone.
# An interval of numbers in brackets is a link to nobody.
_INTERVAL = r"\[[-+.\d]+(?: to |, )[-+.\d]+\](?![(\[:])"
_SIGNS = re.compile(rf"{_INTERVAL}|[\\`*\[\]|~$]|(?<!{_WORD})_|_(?!{_WORD})|&(?=[#\w])|[<>]")
_START = re.compile(r"^(#|[-+=] |[-=]{3,}|\d+(?=[.)] ))")  # of a heading, a list, a rule
_TURNS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def plain(value: Any) -> Markdown:
    """The value in one line that shows it as it is; what cannot be seen is left out. Markdown stays what it is."""
    if isinstance(value, Markdown):
        return value
    text = _visible(str(value))
    text = _SIGNS.sub(_escaped, text)
    return Markdown(_START.sub(lambda match: f"{match[1]}\\" if match[1].isdigit() else "\\" + match[1], text))


def code(value: Any) -> Markdown:
    """The value as a code span, in which nothing is obeyed: behind more backticks than it has in a row."""
    text = _visible(str(value))
    if "|" in text:  # a table's cell ends there, also inside a code span
        return plain(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    room = " " if "`" in text else ""
    return Markdown(f"{fence}{room}{text}{room}{fence}") if text else Markdown("")


def without_turns(text: str) -> str:
    """The text without signs that turn the direction of writing: they would turn what stands beside it too."""
    return "".join(sign for sign in text if sign not in _TURNS)


def _escaped(match: re.Match[str]) -> str:
    return match[0] if len(match[0]) > 1 else _HTML.get(match[0], "\\" + match[0])


def _visible(text: str) -> str:
    """In one line, without control characters and signs that turn the direction of writing."""
    one_line = " ".join(text.split())
    return " ".join(
        "".join(sign for sign in one_line if unicodedata.category(sign) != "Cc" and sign not in _TURNS).split()
    )
