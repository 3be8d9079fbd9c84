"""VQAv2's four JSON files, small."""

from collections.abc import Callable
from typing import Any

import pytest

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import BadRow, LazyRow, Question, Row
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.data.sources import open_rows
from cmapkd_core.errors import InputError

Publish = Callable[[dict[str, Any]], str]
Read = Callable[..., list[Row | BadRow]]
HEAD = {"info": {"version": "2.0"}, "license": {"name": "CC-BY 4.0"}, "data_type": "mscoco"}
ASKED = {9: 2, 25: 1}  # questions of each training picture


def questions(part: str, asked: dict[int, int]) -> dict[str, Any]:
    items = [
        {"image_id": image, "question": f"What is {at} in {image}?", "question_id": 1000 * image + at}
        for at in range(max(asked.values()))  # so that the questions of one picture do not stand together
        for image, count in asked.items()
        if at < count
    ]
    return HEAD | {"task_type": "Open-Ended", "data_subtype": part, "questions": items}


def annotations(part: str, asked: dict[int, int]) -> dict[str, Any]:
    items = [
        {
            "question_type": "what is",
            "multiple_choice_answer": "net",
            "answers": [
                {"answer": "net" if who < 7 else "a net", "answer_confidence": "yes", "answer_id": who}
                for who in range(1, 11)
            ],
            "image_id": question["image_id"],
            "answer_type": "other",
            "question_id": question["question_id"],
        }
        for question in reversed(questions(part, asked)["questions"])
    ]
    return HEAD | {"data_subtype": part, "annotations": items}


def files(train: dict[int, int] = ASKED) -> dict[str, Any]:
    parts = {"train2014": train, "val2014": {42: 3}}
    return {
        **{
            f"v2_OpenEndedQuestions_mscoco_{part}_questions.json": questions(part, asked)
            for part, asked in parts.items()
        },
        **{f"v2_mscoco_{part}_annotations.json": annotations(part, asked) for part, asked in parts.items()},
    }


def test_questions_of_a_picture_are_one_row(
    publish: Publish, read_source: Read, picture: Callable[..., bytes], prepare: Callable[..., ShardSet]
) -> None:
    images = {
        f"train2014/COCO_train2014_{number:012d}.jpg": picture(colour=(number, 0, 0), kind="JPEG") for number in ASKED
    }
    images |= {"val2017/000000000042.jpg": picture(colour=(0, 42, 0), kind="JPEG")}
    rows = read_source("vqav2", publish(files() | images), val_share=0.0)
    first, second, third = (row for row in rows if isinstance(row, Row))
    assert (first.key, first.split, first.origins, first.captions) == ("coco-9", "train", ("coco:9",), ())
    assert first.questions == tuple(
        Question(9000 + at, f"What is {at} in 9?", ("net",) * 6 + ("a net",) * 4, "other", "what is") for at in range(2)
    )
    assert (second.key, len(second.questions)) == ("coco-25", 1)
    assert (third.key, third.split, len(third.questions)) == ("coco-42", "test", 3)
    shards = prepare(rows)
    assert (shards.question_count("train"), shards.question_count("test")) == (3, 3)


def test_a_share_of_the_training_pictures_is_val(publish: Publish, read_source: Read) -> None:
    url = publish(files(dict.fromkeys(range(100, 140), 1)))
    everything = {row.key for row in read_source("vqav2", url, val_share=0.3)}
    val = {row.key for row in read_source("vqav2", url, val_share=0.3, splits="val")}
    test = {row.key for row in read_source("vqav2", url, val_share=0.3, splits="test")}
    train = {row.key for row in read_source("vqav2", url, val_share=0.3, splits="train")}
    assert test == {"coco-42"}
    assert 5 <= len(val) <= 20
    assert (train | val | test, len(train) + len(val) + len(test)) == (everything, 41)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v2_mscoco_val2014_annotations.json": None}, r"has no v2_mscoco_val2014_annotations\.json or annotations/"),
        (
            {"v2_mscoco_val2014_annotations.json": annotations("val2014", {42: 2})},
            "question 42002 has no annotation in .*: they are not of one release",
        ),
        (
            {"v2_mscoco_val2014_annotations.json": annotations("val2014", {42: 4})},
            "1 annotations have no question in .*, such as 42003",
        ),
        (
            {"v2_OpenEndedQuestions_mscoco_train2014_questions.json": annotations("train2014", ASKED)},
            "has no list 'questions', or nothing in it",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_named(
    publish: Publish, read_source: Read, change: dict[str, Any], message: str
) -> None:
    url = publish({name: content for name, content in (files() | change).items() if content is not None})
    with pytest.raises(InputError, match=message):
        read_source("vqav2", url)
    assert len(read_source("vqav2", publish(files()))) == 3  # downloaded again


def test_null_and_text_where_numbers_and_answers_should_be(
    publish: Publish, read_source: Read, picture: Callable[..., bytes], prepare: Callable[..., ShardSet]
) -> None:
    """An answer of null is a bad question: as the word None it would be taken for the number 0 and score."""
    train = dict.fromkeys(range(1, 9), 1)
    asked, answered = questions("train2014", train), annotations("train2014", train)
    by_number = {one["question_id"]: one for one in answered["annotations"]}
    asked["questions"][0]["question_id"] = "1000"
    asked["questions"][1]["question"] = None
    by_number[3000]["answers"][4]["answer"] = None
    by_number[4000]["answers"] = None
    by_number[5000]["answers"][0] = None
    asked["questions"][5]["image_id"] = None
    by_number[7000]["question_id"] = None
    rows = read_source(
        "vqav2",
        publish(
            {
                "v2_OpenEndedQuestions_mscoco_train2014_questions.json": asked,
                "v2_mscoco_train2014_annotations.json": answered,
            }
            | {f"train2014/COCO_train2014_{n:012d}.jpg": picture(colour=(n, 0, 0), kind="JPEG") for n in train}
        ),
        splits="train",
        val_share=0.0,
    )
    assert [
        row.questions[0].reason for row in rows if isinstance(row, Row) and row.key not in ("coco-1", "coco-8")
    ] == [
        "question is missing or empty",
        "answer 5 of 10 is missing or empty",
        "answers are no list: null",
        "answer 1 is no object: null",
        "it has no annotation",
    ]
    assert [row for row in rows if isinstance(row, BadRow)] == [
        BadRow("(annotation 2)", "question_id is no whole number: null"),
        BadRow("(question 6 of train2014)", "image_id is no whole number: null"),
    ]
    shards = prepare(rows, quarantine_bound=1.0)
    assert shards.questions("train")["number"].to_pylist() == [1000, 8000]
    assert (shards.manifest["seen"], shards.manifest["quarantined"]) == (9, 7)


def test_questions_and_annotations_twice_are_listed(publish: Publish, read_source: Read) -> None:
    asked, answered = questions("val2014", {42: 2}), annotations("val2014", {42: 2})
    asked["questions"].append(asked["questions"][0])
    answered["annotations"].append(answered["annotations"][0])
    names = ("v2_OpenEndedQuestions_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
    url = publish(dict(zip(names, (asked, answered), strict=True)))
    (row, stray) = open_rows(DataConfig(source="vqav2", url=url, splits=("test",)))
    assert isinstance(row, LazyRow)
    assert [question.number for question in row.row.questions] == [42000, 42001, 42000]  # the table lists the third
    assert stray == BadRow("(annotation 3)", "duplicate question_id: an earlier annotation has 42001", "test")
