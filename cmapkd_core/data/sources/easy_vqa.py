"""easy-VQA (Zhou 2019, MIT): one coloured shape a picture, 64 px, from the package `easy-vqa`; no captions.

A question has one answer there. It is stored ten times, which is how the official accuracy reads an answer that
everybody gives; ten people were not asked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from cmapkd_core.config import DataConfig
from cmapkd_core.data.order import hash64, split_of
from cmapkd_core.data.rows import BadRow, Question, Row
from cmapkd_core.errors import InputError

LICENCE = "easy-VQA, Victor Zhou, MIT"
PERSONS = 10
_THING = re.compile(r"\b(circle|rectangle|triangle|black|blue|brown|gray|green|red|teal|yellow)\b( shape)?")


def easy_vqa_rows(config: DataConfig) -> Iterator[Row | BadRow]:
    """5,000 pictures with 48,248 questions, in an order that mixes the package's own splits.

    `data.val_share` of its training pictures are held out for validation; its test pictures are the test split.

    Raises:
        InputError: the package is not installed.
    """
    try:
        package = import_module("easy_vqa")
    except ModuleNotFoundError:
        raise InputError("data.source=easy_vqa needs `pip install easy-vqa`") from None
    asked: dict[str, list[Question]] = defaultdict(list)
    parts = (("train", package.get_train_questions()), ("test", package.get_test_questions()))
    for number, (key, text, answer) in enumerate(
        (f"{part}-{image:04d}", text, answer)
        for part, lists in parts
        for text, answer, image in zip(*lists, strict=True)
    ):
        asked[key].append(question(number, text, answer))
    paths = {"train": package.get_train_image_paths(), "test": package.get_test_image_paths()}
    for key in sorted(asked, key=lambda key: hash64(key, "easy vqa order")):
        part, _, image = key.partition("-")
        split = "test" if part == "test" else split_of(key, config.val_share, 0.0)
        data = Path(paths[part][int(image)]).read_bytes()
        yield Row(key, data, (), group=key, split=split, licence=LICENCE, questions=tuple(asked[key]))


def question(number: int, text: str, answer: str) -> Question:
    """One of the package's questions in VQAv2's terms."""
    answer_type = "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"
    return Question(number, text, (answer,) * PERSONS, answer_type, question_type(text))


def question_type(text: str) -> str:
    """The question with a blank for the thing that it is about, such as "what color is the ...?"."""
    return _THING.sub("...", text)
