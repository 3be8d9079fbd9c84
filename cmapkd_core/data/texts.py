"""The one reader of texts: what is no text is refused with a reason, and what only looks like one is read.

Tools that make data sets write Python's spelling of a value where a text should be. The rules, of captions, questions,
answers and classes of every source alike:

- A list that is spelled (`['a dog', 'one dog']` as Python, NumPy or JSON write it) is read as that list where several
  texts may stand, and refused where one stands. What only begins like one is refused, not guessed at.
- null, nan, a text of white space and the spellings of MISSING are a missing value. A caption that is the one word
  "None" or "nan" is lost with them: the same word from a column with gaps is far more frequent. `none` and `Nan` are
  words. Of ten people one may have said nothing (""), but an answer of null or "None" makes its question a bad one: the
  official accuracy reads "none" as the number 0 and would score it.
- White space of every kind becomes single blanks where a text is stored, and U+FEFF goes. Other control characters
  (C0 with NUL, DEL, C1), U+FFFD (what was left of bytes in another encoding), halves of surrogate pairs, and signs that
  turn the direction of writing (they show a reader another text than is stored) are refused.
- A text of more than LONGEST signs is refused: it is a file in the place of a text.
- One bad caption of several makes the picture a bad row whose reason says which: what is wrong with one entry is seldom
  wrong with it alone. Regions of Visual Genome are entries of their own, and each a bad row of its own.
- Bytes are UTF-8, or UTF-8, UTF-16 or UTF-32 with a byte order mark; nothing is replaced.
"""

from __future__ import annotations

import ast
import codecs
import json
import math
import re
import reprlib
import warnings
from typing import Any

from cmapkd_core.errors import InputError

MISSING = ("None", "nan", "NaN", "NaT", "<NA>", "null", "NULL")  # as Python, NumPy, pandas, JSON and SQL print it
LONGEST = 20_000  # signs of one text: ten pages; models read its first 77 tokens
MOST = 10 * LONGEST  # signs of several texts that one value spells
_MARKS = (  # byte order marks; UTF-32's begin with UTF-16's
    *((mark, "UTF-32") for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    *((mark, "UTF-16") for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)
_BOM = "\ufeff"
_REPLACED = "\ufffd"
_TURNING = r"\u202a-\u202e\u2066-\u2069"  # embeddings, overrides, isolates; Arabic and Hebrew texts have mere marks
# Control characters but those that str.split takes for white space; signs that turn; then what no text has.
_STRANGE = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
    rf"{_TURNING}\ufffd-\uffff\ud800-\udfff]"
)
_TURNS = re.compile(f"[{_TURNING}]")

_QUOTED = r"""u?'(?:[^'\\]|\\.)*+'|u?"(?:[^"\\]|\\.)*+\""""
_ITEM = rf"(?:np\.str_\((?:{_QUOTED})\)|{_QUOTED}|None|nan|null)"
_LIST = re.compile(rf"\[\s*+{_ITEM}(?:(?:\s*+,\s*+|\s++){_ITEM})*+\s*+(?:,\s*+)?\]", re.DOTALL)
_ITEMS = re.compile(rf"({_QUOTED})|None|nan|null", re.DOTALL)
_BYTES = re.compile(r"""b(['"]).*\1""", re.DOTALL)
_LIKE_A_LIST = re.compile(r"\[[\[\s]*+(?:u?['\"]|np\.str_\(|(?:None|nan|null)\s*+[,\]])|array\(\[")
_NO_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 60


class BadValueError(InputError):
    """A value that makes its row a bad one; the message is the reason."""


def shown(value: Any) -> str:
    """A value for a message: short, and without a sign that a terminal would obey."""
    if value is None:
        return "null"
    return (
        printable(_SHOWN.repr(value))
        if not isinstance(value, str)
        else printable(value[:60] + "..." * (len(value) > 60))
    )


def printable(text: str) -> str:
    """A text with escapes in place of what cannot be printed."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def missing(value: Any) -> bool:
    """True of null and nan, of a text of white space, and of a missing value's spelling."""
    if isinstance(value, str):
        return (bare := value.replace(_BOM, "").strip()) == "" or bare in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def text(value: Any, name: str) -> str:
    """`value` where it is a text; its white space is kept.

    Args:
        name: what it is, for the reason: "question", "caption 2 of 5".

    Raises:
        BadValueError: it is missing, no text, the spelling of a list, or has signs that no text has.
    """
    if missing(value):
        word = value.replace(_BOM, "").strip() if isinstance(value, str) else ""
        hint = f": it is the word {word}" if word else ": nan" if isinstance(value, float) else ""
        raise BadValueError(f"{name} is missing or empty{hint}")
    if not isinstance(value, str):
        raise BadValueError(f"{name} is no text: {shown(value)}")
    if _spelled(_short(value, name), name) is not None:
        raise BadValueError(f"{name} is no text but spells a list: {shown(value)}")
    if _BYTES.fullmatch(value.strip()):
        raise BadValueError(f"{name} is no text but spells bytes: {shown(value)}")
    return checked(value, name)


def _short(value: str, name: str) -> str:
    """Before anything looks at it closely, which takes time that grows with it."""
    if len(value) > LONGEST:
        raise BadValueError(f"{name} has {len(value)} signs, more than {LONGEST}: {shown(value)}")
    return value


def texts(value: Any, name: str = "caption") -> tuple[str, ...]:
    """The texts of a value that may be one, a list of them, or JSON's, Python's or NumPy's spelling of such a list.

    Raises:
        BadValueError: there is none, or one of them cannot be used; the message says which.
    """
    if isinstance(value, str) and len(value) <= MOST and (spelled := _spelled(value, name)) is not None:
        value = spelled
    if not isinstance(value, list | tuple):
        return (text(value, name),)
    if not value:
        raise BadValueError(f"{name} is missing or empty")
    names = [name] if len(value) == 1 else [f"{name} {at} of {len(value)}" for at in range(1, len(value) + 1)]
    return tuple(text(one, label) for one, label in zip(value, names, strict=True))


def answer(value: Any, name: str) -> str:
    """`text`, or "" of a person who said nothing.

    Raises:
        BadValueError: as of `text`; null is no answer.
    """
    if isinstance(value, str) and not value.replace(_BOM, "").strip():
        return ""
    return text(value, name)


def optional(value: Any, name: str) -> str:
    """`text`, or "" where it is missing."""
    return "" if missing(value) else text(value, name)


def checked(value: str, name: str) -> str:
    """A text without U+FEFF.

    Raises:
        BadValueError: it is too long, or has a control character, U+FFFD, or what is no Unicode.
    """
    value = _short(value, name).replace(_BOM, "")
    match = _STRANGE.search(value)
    if match is None:
        return value
    sign = f"U+{ord(match[0]):04X}"
    around = shown(value[max(match.start() - 20, 0) : match.end() + 20])
    if match[0] == _REPLACED:
        raise BadValueError(f"{name} has {sign}, left by a reader that took another encoding for UTF-8: {around}")
    if match[0] > _REPLACED or "\ud800" <= match[0] <= "\udfff":
        raise BadValueError(f"{name} is no valid Unicode, it has {sign}: {around}")
    if _TURNS.match(match[0]):
        raise BadValueError(f"{name} has {sign}, which turns the direction of writing: {around}")
    raise BadValueError(f"{name} has the control character {sign}: {around}")


def encoding_of(data: bytes) -> str:
    """What the first bytes of a file say that it is: UTF-8 where they say nothing."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), "UTF-8")


def decoded(data: bytes, name: str) -> str:
    """The text of a file in UTF-8, with a byte order mark or without, or in UTF-16 or UTF-32 with one.

    Raises:
        BadValueError: it is neither; the message names encoding, byte and line.
    """
    encoding = encoding_of(data)
    try:
        return data.decode(encoding).removeprefix(_BOM)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadValueError(f"{name} is not {encoding} ({error.reason} at byte {error.start}, line {line})") from None


def json_object(written: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadValueError: it is none, or has a name twice.
    """
    try:
        value = json.loads(written, object_pairs_hook=_once)
    except BadValueError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadValueError(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadValueError("no JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise BadValueError(f"{next(shown(name) for name in names if names.count(name) > 1)} stands twice in it")
    return values


def _spelled(value: str, name: str) -> Any:
    """The list or dictionary that a text spells; None of a plain text.

    Raises:
        BadValueError: it begins like a list of texts and cannot be read.
    """
    bare = value.replace(_BOM, "").strip()
    if not bare.startswith(("[", "(", "{", "array([")):
        return None
    for read in (json.loads, _python_list, _literal):
        try:
            parsed = read(bare)
        except _NO_LITERAL:
            continue
        if isinstance(parsed, list | tuple | dict | set):
            return parsed
    if _LIKE_A_LIST.match(bare):
        raise BadValueError(f"{name} begins like a list of texts and cannot be read as one: {shown(bare)}")
    return None


def _literal(bare: str) -> Any:
    """What Python's own reader makes of a list, tuple or dictionary with texts in it; never by running anything."""
    if "'" not in bare and '"' not in bare:
        raise ValueError("no text in it")
    with warnings.catch_warnings():  # of "\d", or a bracket behind a text
        warnings.simplefilter("ignore")
        return ast.literal_eval(bare)


def _python_list(bare: str) -> list[Any]:
    """What `str` makes of a list or NumPy array of texts: 'a' 'b' are two, where Python's own reader joins them."""
    if not _LIST.fullmatch(bare):
        raise ValueError("another spelling")
    return [ast.literal_eval(match[1]) if match[1] else None for match in _ITEMS.finditer(bare)]
