import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import Row
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.sources.easy_vqa import question, question_type

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "gray": (128, 128, 128),
    "black": (0, 0, 0),
    "brown": (165, 42, 42),
}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [row for row in open_rows(DataConfig(source="easy_vqa")) if isinstance(row, Row)]


def test_everything_that_the_package_has_is_there_once(rows: list[Row]) -> None:
    assert len(rows) == len({row.key for row in rows}) == len({row.image for row in rows}) == 5000
    numbers = [asked.number for row in rows for asked in row.questions]
    assert sorted(numbers) == list(range(38_575 + 9_673))
    assert {answer for row in rows for asked in row.questions for answer in asked.answers} >= {
        *COLOURS,
        "yes",
        "circle",
    }
    assert not any(row.captions for row in rows)


def test_its_test_pictures_are_the_test_split_and_a_share_of_the_others_is_held_out(rows: list[Row]) -> None:
    splits = Counter(row.split for row in rows)
    assert splits["test"] == 1000
    assert all((row.split == "test") == row.key.startswith("test-") for row in rows)
    assert 300 < splits["val"] < 500  # data.val_share is 0.1
    none = open_rows(DataConfig(source="easy_vqa", val_share=0.0))
    assert Counter(row.split for row in none if isinstance(row, Row)) == {"train": 4000, "test": 1000}


def test_a_part_of_it_has_all_splits(rows: list[Row]) -> None:
    part = list(open_rows(DataConfig(source="easy_vqa", size=200)))
    assert part == rows[:200]
    assert {row.split for row in rows[:200]} == {"train", "val", "test"}


def test_questions_are_about_their_own_picture(rows: list[Row]) -> None:
    checked = 0
    for row in rows[:300]:
        pixels = np.asarray(Image.open(io.BytesIO(row.image)).convert("RGB")).reshape(-1, 3)
        colours, counts = np.unique(pixels, axis=0, return_counts=True)
        shape = tuple(colours[counts.argsort()[-2]].tolist())  # the background is the largest
        for asked in row.questions:
            if "color" in asked.text:
                assert COLOURS[asked.answers[0]] == shape
                checked += 1
    assert checked > 200


def test_an_answer_is_stored_as_one_that_everybody_gives() -> None:
    asked = question(3, "is there not a teal shape in the image?", "no")
    assert (asked.number, asked.answers, asked.answer_type) == (3, ("no",) * 10, "yes/no")
    assert question(0, "how many?", "2").answer_type == "number"
    assert question(0, "what is the red shape?", "circle").answer_type == "other"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("what color is the shape?", "what color is the shape?"),
        ("what color is the circle?", "what color is the ...?"),
        ("is no brown shape present?", "is no ... present?"),
        ("does the image contain a rectangle?", "does the image contain a ...?"),
    ],
)
def test_a_question_type_has_a_blank_for_the_thing(text: str, kind: str) -> None:
    assert question_type(text) == kind
