"""VQAv2: questions about COCO's pictures, with ten answers each.

    v2_OpenEndedQuestions_mscoco_train2014_questions.json    443,757 questions about 82,783 pictures
    v2_mscoco_train2014_annotations.json
    v2_OpenEndedQuestions_mscoco_val2014_questions.json      214,354 about 40,504
    v2_mscoco_val2014_annotations.json
    train2014/COCO_train2014_000000000009.jpg, val2014/..    or the same pictures as COCO names them in 2017

train2014 is trained on, but for a share of data.val_share of its pictures that is split val; val2014 is split test.
The questions of test2015 are not read: their answers are not public, only the challenge's server scores them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cmapkd_core.config import DataConfig
from cmapkd_core.data.files import find, json_items, picture, place, required
from cmapkd_core.data.order import split_of
from cmapkd_core.data.rows import Item, LazyRow, Question, Row, listed
from cmapkd_core.data.sources.coco import coco_files
from cmapkd_core.errors import InputError

PARTS = {"train2014": "", "val2014": "test"}  # folder of the pictures -> split; "" is decided by val_share
QUESTIONS = "v2_OpenEndedQuestions_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"
LICENCE = "VQAv2: CC-BY 4.0; pictures of COCO under Flickr's terms, each with the licence of its photographer"


@dataclass
class _Picture:
    number: int
    folder: str
    split: str
    questions: list[Question] = field(default_factory=list)


def vqav2_rows(config: DataConfig) -> Iterable[Item]:
    """One row a picture with all its questions and no caption.

    Raises:
        InputError: a file is not there or broken, or questions and annotations do not fit together.
    """
    url = place(config, "the questions' and annotations' JSON files, train2014/ and val2014/")
    wanted = {part: split for part, split in PARTS.items() if not config.splits or _wanted(split, config)}
    pictures = [one for part, split in wanted.items() for one in _part(config, part, split)]
    return listed(pictures, lambda entry: _row(url, entry))


def _wanted(split: str, config: DataConfig) -> bool:
    return bool({split} & set(config.splits)) if split else bool({"train", "val"} & set(config.splits))


def _row(url: str, entry: _Picture) -> LazyRow:
    row = Row(
        f"coco-{entry.number}",
        b"",
        (),
        split=entry.split,
        licence=LICENCE,
        questions=tuple(entry.questions),
        origins=(f"coco:{entry.number}",),
    )
    return LazyRow(row, picture(url, *coco_files(entry.number, entry.folder)))


def _part(config: DataConfig, part: str, split: str) -> list[_Picture]:
    """The pictures of train2014 or val2014 in the order of their first questions."""
    way_out = "unpack the questions and annotations of visualqa.org there"
    names = [prefix + name.format(part) for name in (QUESTIONS, ANNOTATIONS) for prefix in ("", "annotations/")]
    asked, answered = find(config, names[:2], way_out), find(config, names[2:], way_out)
    answers = {}
    for annotation in json_items(answered, "annotations.item"):
        (number,) = required(annotation, ("question_id",), answered)
        answers[number] = _answers(annotation, answered)
    pictures: dict[int, _Picture] = {}
    for item in json_items(asked, "questions.item"):
        number, image, text = required(item, ("question_id", "image_id", "question"), asked)
        if number not in answers:
            raise InputError(f"{asked}: question {number} has no annotation in {answered}: they are not of one release")
        side = split or split_of(f"coco:{image}", config.val_share, 0.0)
        entry = pictures.setdefault(image, _Picture(image, part, side))
        entry.questions.append(Question(number, text, *answers.pop(number)))
    if answers:
        raise InputError(
            f"{answered}: {len(answers)} annotations have no question in {asked}, such as {next(iter(answers))}"
        )
    return list(pictures.values())


def _answers(annotation: dict[str, Any], url: str) -> tuple[tuple[str, ...], str, str]:
    """The answers of all who were asked, answer_type, question_type."""
    given, kind, opening = required(annotation, ("answers", "answer_type", "question_type"), url)
    return tuple(str(required(one, ("answer",), url)[0]) for one in given), str(kind), str(opening)
