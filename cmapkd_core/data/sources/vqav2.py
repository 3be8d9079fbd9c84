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
from cmapkd_core.data.annotations import a_list, json_items, number, required, value_of
from cmapkd_core.data.files import find, picture, place
from cmapkd_core.data.order import split_of
from cmapkd_core.data.rows import BadQuestion, BadRow, Item, LazyRow, Question, Row, listed
from cmapkd_core.data.sources.coco import coco_files
from cmapkd_core.data.texts import BadValueError, answer, text
from cmapkd_core.errors import InputError

PARTS = {"train2014": "", "val2014": "test"}  # folder of the pictures -> split; "" is decided by val_share
QUESTIONS = "v2_OpenEndedQuestions_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"
_OTHER = "they are not of one release, download both again"
LICENCE = "VQAv2: CC-BY 4.0; pictures of COCO under Flickr's terms, each with the licence of its photographer"


@dataclass
class _Picture:
    number: int
    folder: str
    split: str
    questions: list[Question | BadQuestion] = field(default_factory=list)


_Answers = tuple[tuple[str, ...], str, str]  # of all who were asked; answer_type, question_type


def vqav2_rows(config: DataConfig) -> Iterable[Item]:
    """One row a picture with all its questions and no caption; entries that belong to no picture come last.

    Raises:
        InputError: a file is not there or broken, or questions and annotations do not fit together.
    """
    url = place(config)
    wanted = {part: split for part, split in PARTS.items() if not config.splits or _wanted(split, config)}
    pictures = [one for part, split in wanted.items() for one in _part(config, part, split)]
    return listed(pictures, lambda entry: entry if isinstance(entry, BadRow) else _row(url, entry))


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


def _part(config: DataConfig, part: str, split: str) -> list[_Picture | BadRow]:
    """The pictures of train2014 or val2014 in the order of their first questions."""
    way_out = "unpack the questions and annotations of visualqa.org there"
    names = [prefix + name.format(part) for name in (QUESTIONS, ANNOTATIONS) for prefix in ("", "annotations/")]
    asked, answered = find(config, names[:2], way_out), find(config, names[2:], way_out)
    answers, strays = _annotations(answered, split)
    unasked = dict.fromkeys(answers)
    pictures: dict[int, _Picture] = {}
    readable = not strays  # else what lacks its other half is a bad row, and not a sign of another release
    for at, item in enumerate(json_items(asked, "questions.item"), start=1):
        value, image, question = required(item, ("question_id", "image_id", "question"), asked)
        one, of_picture = _number_or_why(value, "question_id"), _number_or_why(image, "image_id")
        if isinstance(one, int):
            unasked.pop(one, None)
            if one not in answers and readable:
                raise InputError(f"{asked}: question {one} has no annotation in {answered}: {_OTHER}")
        readable = readable and isinstance(one, int)
        if isinstance(of_picture, int):
            side = split or split_of(f"coco:{of_picture}", config.val_share, 0.0)
            entry = pictures.setdefault(of_picture, _Picture(of_picture, part, side))
            entry.questions.append(_question(at, one, question, answers))
        else:
            strays.append(BadRow(f"(question {at} of {part})", of_picture, split))
    if unasked and readable:
        raise InputError(
            f"{answered}: {len(unasked)} annotations have no question in {asked}, such as {next(iter(unasked))}: "
            f"{_OTHER}"
        )
    lost = (BadRow(f"(annotation of question {one})", f"{asked} has no such question", split) for one in unasked)
    return [*pictures.values(), *strays, *lost]


def _number_or_why(value: Any, name: str) -> int | str:
    """The number, or why it is none."""
    try:
        return number(value, name)
    except BadValueError as error:
        return str(error)


def _question(at: int, one: int | str, words: Any, answers: dict[int, _Answers | str]) -> Question | BadQuestion:
    """The `at`th question of the file, `one` its number or why it has none."""
    if isinstance(one, str):
        return BadQuestion(f"number {at} of the file", one)
    answered = answers.get(one, "it has no annotation")
    if isinstance(answered, str):
        return BadQuestion(one, answered)
    try:
        return Question(one, text(words, "question"), *answered)
    except BadValueError as error:
        return BadQuestion(one, str(error))


def _annotations(url: str, split: str) -> tuple[dict[int, _Answers | str], list[BadRow]]:
    """By question_id the answers or what is wrong with them; and what belongs to no question."""
    answers: dict[int, _Answers | str] = {}
    strays: list[BadRow] = []
    for at, annotation in enumerate(json_items(url, "annotations.item"), start=1):
        (value,) = required(annotation, ("question_id",), url)
        try:
            one = number(value, "question_id")
            if one in answers:
                raise BadValueError(f"duplicate question_id: an earlier annotation has {one}")
            answers[one] = _answers(annotation, url)
        except BadValueError as error:
            strays.append(BadRow(f"(annotation {at})", str(error), split))
    return answers, strays


def _answers(annotation: dict[str, Any], url: str) -> _Answers | str:
    """What was answered, or why that cannot be used."""
    given, kind, opening = required(annotation, ("answers", "answer_type", "question_type"), url)
    try:
        raw = [value_of(one, "answer", f"answer {at}") for at, one in enumerate(a_list(given, "answers"), start=1)]
        answers = tuple(answer(one, f"answer {at} of {len(raw)}") for at, one in enumerate(raw, start=1))
        return answers, text(kind, "answer_type"), text(opening, "question_type")
    except BadValueError as error:
        return str(error)
