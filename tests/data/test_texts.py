"""What is a text, what spells a list, and what stands for nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmapkd_core.data.annotations import json_items, number
from cmapkd_core.data.texts import BadValueError, answer, decoded, json_object, optional, text, texts

NAN = float("nan")


@pytest.mark.parametrize(
    "value",
    [
        ["a dog", "it's"],
        ("a dog", "it's"),
        str(["a dog", "it's"]),
        str(("a dog", "it's")),
        str(np.array(["a dog", "it's"])),
        str(np.array(["a dog", "it's"], dtype=object)),
        str(list(np.array(["a dog", "it's"]))),
        '["a dog", "it\'s"]',
        "[u'a dog', u\"it's\",]",
        "\ufeff ['a dog'\n \"it's\"]",
    ],
)
def test_a_list_is_read_in_every_spelling(value: Any) -> None:
    assert texts(value) == ("a dog", "it's")


@pytest.mark.parametrize(
    "value",
    [
        "[sic] a bracket",
        "[untitled]",
        "[a] and [b]",
        "(2019)",
        "(1, 2)",
        "(a) 'dog' \\d",
        "b'day cake",
        '("Untitled")',
        "{a}",
        "none",
        "Nan",
        "a 'b'",
        "[" * 9999,
    ],
)
def test_a_text_that_looks_a_little_like_a_list_stays_one(value: str) -> None:
    assert texts(value) == (value,)
    assert text(value, "question") == answer(value, "answer") == value


def test_numpys_long_arrays_and_escapes_are_read() -> None:
    long = [f"caption {at} of many" for at in range(40)]
    assert texts(str(np.array(long))) == tuple(long)  # over several lines, without commas
    assert texts(r'["\ud83d\ude00", "\u00e9"]') == ("😀", "é")  # JSON's, where Python's reader would take two halves


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "caption is missing or empty"),
        (NAN, "caption is missing or empty: nan"),
        ("  ", "caption is missing or empty"),
        ([], "caption is missing or empty"),
        ("[]", "caption is missing or empty"),
        ("[nan]", "caption is missing or empty"),
        ("None", "caption is missing or empty: it is the word None"),
        ("nan\n", "caption is missing or empty: it is the word nan"),
        ("<NA>", "caption is missing or empty: it is the word <NA>"),
        (7, "caption is no text: 7"),
        (True, "caption is no text: True"),
        ({"en": "x"}, "caption is no text: {'en': 'x'}"),
        ("{'en': 'x'}", "caption is no text: {'en': 'x'}"),
        ("[2019]", "caption is no text: 2019"),
        (["a", None, "b"], "caption 2 of 3 is missing or empty"),
        (str(["a", None]), "caption 2 of 2 is missing or empty"),
        (["a", "['b', 'c']"], "caption 2 of 2 is no text but spells a list: ['b', 'c']"),
        ([["a"], ["b"]], "caption 1 of 2 is no text: ['a']"),
        ("['a', 'b", "caption begins like a list of texts and cannot be read as one: ['a', 'b"),
        ("array(['a'], dtype=object)", "caption begins like a list of texts and cannot be read as one: array"),
        ("[" * 50 + "'a'", "caption begins like a list of texts and cannot be read as one: [[["),
        ("a\0b", r"caption has the control character U+0000: a\x00b"),
        ("a \u202egod", "caption has U+202E, which turns the direction of writing: a \\u202egod"),
        ("caf\x92", r"caption has the control character U+0092: caf\x92"),
        (["a", "caf\ufffd"], "caption 2 of 2 has U+FFFD, left by a reader that took another encoding for UTF-8: caf"),
        ("b'a dog'", "caption is no text but spells bytes: b'a dog'"),
        ("[b'a dog']", "caption is no text: b'a dog'"),
        ("half \ud800 pair", r"caption is no valid Unicode, it has U+D800: half \ud800 pair"),
    ],
)
def test_what_is_no_text_says_why(value: Any, reason: str) -> None:
    with pytest.raises(BadValueError) as caught:
        texts(value)
    assert str(caught.value).startswith(reason)


def test_a_byte_order_mark_goes_and_white_space_stays() -> None:
    assert text("\ufeffa\tdog \ufeff", "question") == "a\tdog "


def test_of_ten_people_one_may_have_said_nothing_but_not_null() -> None:
    """The official accuracy reads "none" as 0: as an answer, "None" of a gap in a table would score."""
    assert [answer(said, "answer") for said in ("none", "", " \ufeff\n", "no [sic]")] == ["none", "", "", "no [sic]"]
    for value in (None, NAN, "None", "nan", "null", 7, "['a']", "{}", "a\0"):
        with pytest.raises(BadValueError, match="^answer 3 of 10 "):
            answer(value, "answer 3 of 10")


def test_what_may_be_missing_is_nothing_then() -> None:
    assert [optional(value, "class") for value in (None, NAN, "None", " ", "mug")] == ["", "", "", "", "mug"]
    with pytest.raises(BadValueError, match="class is no text"):
        optional(["mug"], "class")


@pytest.mark.parametrize(("value", "wanted"), [(0, 0), (9.0, 9), ("9", 9), (" 262148000 ", 262148000), ("9.0", 9)])
def test_numbers_are_read_as_tables_spell_them(value: Any, wanted: int) -> None:
    assert number(value, "image_id") == wanted


@pytest.mark.parametrize(
    "value", [None, NAN, -1, "-1", 1.5, True, [9], {}, "", "nine", "9e1", float("inf"), 2**63, "9" * 5000]
)
def test_what_is_no_number_says_so(value: Any) -> None:
    with pytest.raises(BadValueError, match="image_id is no whole number: "):
        number(value, "image_id")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_are_read_with_and_without_a_mark(encoding: str) -> None:
    assert decoded("ключ".encode(encoding), "it") == "ключ"


def test_another_encoding_is_named_with_its_place() -> None:
    with pytest.raises(BadValueError, match=r"^a\.txt is not UTF-8 \(invalid .* at byte 5, line 2\)$"):
        decoded(b"a\ncaf\xe9\n", "a.txt")
    with pytest.raises(BadValueError, match=r"^a\.txt is not UTF-16 \(truncated data at byte 4, line 1\)$"):
        decoded("a".encode("utf-16") + b"b", "a.txt")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ('{"a": 1, "a": 2}', "a stands twice in it"),
        ("[1]", "no JSON object"),
        ('{"a": ', "no JSON: "),
        ("[" * 100_000, "no JSON: "),
    ],
)
def test_json_that_is_no_object_says_why(written: str, reason: str) -> None:
    with pytest.raises(BadValueError, match=reason):
        json_object(written)


@pytest.mark.parametrize("before", [0, 65_531, 65_536 - len('["'), 2**20 - 5])  # an escape that chunks cut
def test_half_a_pair_in_json_is_marked_and_a_whole_one_and_its_name_are_not(tmp_path: Path, before: int) -> None:
    """ijson makes "?" of it."""
    said = ["x" * before + "\ud800b", "\U0001f600", r"\ud800", "\udc00\ud83d", "\ud83d\U0001f600", r"\\" + "\ud800"]
    (tmp_path / "a.json").write_text(json.dumps(said))
    wanted = [one.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for one in said]
    assert list(json_items(str(tmp_path / "a.json"), "item")) == wanted
    assert sum("\ufffd" in one for one in wanted) == 4
