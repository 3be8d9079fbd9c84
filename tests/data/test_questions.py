"""Questions on their way into a data set and out of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cmapkd_core import storage
from cmapkd_core.config import DataConfig
from cmapkd_core.data.augment import View
from cmapkd_core.data.layout import QUESTIONS
from cmapkd_core.data.loader import Side, TrainLoader
from cmapkd_core.data.rows import Question, Row
from cmapkd_core.data.shards import NoQuestionsError, ShardSet
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.verdict import TooManyBadError
from cmapkd_core.data.writer import write_shards
from cmapkd_core.errors import InputError
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare as prepare_stage
from cmapkd_core.stages.artifact import Artifact

Make = Callable[..., bytes]
Prepare = Callable[..., ShardSet]


def question(
    number: int, text: str = "what is it?", answers: tuple[str, ...] = ("a net",) * 10, **more: str
) -> Question:
    return Question(number, text, answers, **more)


def asked(picture: Make, *questions: Question, key: str = "k", shade: int = 0, split: str = "train") -> Row:
    return Row(key, picture(colour=(shade, 0, 0)), (), split=split, questions=questions)


def quarantine(shards: ShardSet) -> list[dict[str, object]]:
    return [json.loads(line) for line in (Path(shards.url) / "quarantine.jsonl").read_text().splitlines()]


# ---- stored and read back -------------------------------------------------------------------------


def test_questions_come_back_by_split_in_the_order_of_the_pictures(picture: Make, prepare: Prepare) -> None:
    first = question(7, " how\nmany  nets? ", ("2", "two", ""), answer_type="number", question_type="how many")
    shards = prepare(
        [
            asked(picture, first, question(2**40), key="a"),
            asked(picture, question(5), key="b", shade=1, split="test"),
            Row("c", picture(colour=(2, 0, 0)), ("no question",), split="train"),
            asked(picture, question(1), key="d", shade=3),
        ],
        samples_per_shard=1,
    )
    found = shards.questions("train").to_pylist()
    assert [(row["key"], row["number"]) for row in found] == [("a", 7), ("a", 2**40), ("d", 1)]
    assert found[0] == {
        "split": "train",
        "key": "a",
        "number": 7,
        "text": "how many nets?",
        "answers": ["2", "two", ""],  # as people gave them: one has said nothing
        "answer_type": "number",
        "question_type": "how many",
    }
    assert shards.questions("test")["number"].to_pylist() == [5]
    assert [shards.question_count(split) for split in ("train", "val", "test")] == [3, 0, 1]


def test_more_questions_than_a_row_group_holds(picture: Make, prepare: Prepare) -> None:
    rows = [asked(picture, *(question(6000 * i + n) for n in range(6000)), key=f"k{i}", shade=i) for i in range(4)]
    assert prepare(rows).questions("train")["number"].to_pylist() == list(range(24_000))


def test_a_data_set_without_questions_has_no_sign_of_them(picture: Make, prepare: Prepare) -> None:
    shards = prepare([Row("a", picture(), ("c",), split="train")])
    assert not (Path(shards.url) / QUESTIONS).exists()
    assert "questions" not in (Path(shards.url) / "shards.json").read_text()
    with pytest.raises(NoQuestionsError, match="split 'train' .* has no questions.*easy_vqa, scenes_vqa, vqav2"):
        shards.questions("train")


def test_an_unknown_split_names_the_nearest(picture: Make, prepare: Prepare) -> None:
    with pytest.raises(InputError, match="did you mean 'test'"):
        prepare([asked(picture, question(1))]).questions("tset")


def test_the_same_rows_give_the_same_table(picture: Make, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards([asked(picture, question(1))], tmp_path / name, DataConfig(), lambda seen: None)
    assert (tmp_path / "a" / QUESTIONS).read_bytes() == (tmp_path / "b" / QUESTIONS).read_bytes()


def test_a_damaged_or_missing_table_is_refused(picture: Make, prepare: Prepare) -> None:
    shards = prepare([asked(picture, question(1))])
    path = Path(shards.url) / QUESTIONS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"questions\.parquet does not match shards\.json"):
        shards.questions("train")
    path.unlink()
    with pytest.raises(InputError, match=r"lacks its questions\.parquet"):
        shards.questions("train")


def test_questions_on_s3_are_read_the_same(picture: Make, prepare: Prepare, s3_root: str, tmp_path: Path) -> None:
    local = prepare([asked(picture, question(1), question(2))])
    url = storage.join(s3_root, "shards")
    for path in Path(local.url).iterdir():
        storage.put(path, storage.join(url, path.name))
    there = ShardSet.open(url, tmp_path / "s3cache")
    assert there.questions("train").equals(local.questions("train"))


# ---- bad questions --------------------------------------------------------------------------------

BAD = [
    (question(-1), "number -1 is not in"),
    (question(2**63), "is not in 0..2^63-1"),
    (question(11, " \n"), "question is missing or empty"),
    (question(12, answers=()), "answer is missing or empty"),
    (question(13, answers=("", " ")), "answer is missing or empty"),
    (question(14, answer_type="yesno"), "answer_type 'yesno' is none of yes/no, number, other"),
    (question(15, "half \ud800 pair"), "no valid Unicode"),
    (question(100), "duplicate number"),
    (question(0), "duplicate number"),
]


def test_every_bad_question_is_counted_and_listed_with_its_reason(picture: Make, tmp_path: Path) -> None:
    good = asked(picture, *(question(number) for number in range(30)), key="good")
    mixed = asked(picture, question(100), *(bad for bad, _ in BAD), key="mixed", shade=1)
    config = DataConfig(quarantine_bound=0.5)
    counts = write_shards([good, mixed], tmp_path / "out", config, lambda seen: None)
    assert (counts["used"], counts["quarantined"]) == (2, 0)
    assert (counts["questions"], counts["bad_questions"]) == (31, len(BAD))
    shards = ShardSet.open(str(tmp_path / "out"), tmp_path / "cache")
    listed = quarantine(shards)
    assert [(entry["row"], entry["key"], entry["question"]) for entry in listed] == [
        (2, "mixed", bad.number) for bad, _ in BAD
    ]
    for entry, (_, reason) in zip(listed, BAD, strict=True):
        assert reason in str(entry["reason"])


def test_a_row_without_caption_and_good_question_is_bad(picture: Make, prepare: Prepare) -> None:
    good = [asked(picture, question(number), key=f"k{number}", shade=number) for number in range(4)]
    shards = prepare([*good, asked(picture, question(9, ""), key="bad", shade=9)], quarantine_bound=0.3)
    (entry,) = quarantine(shards)
    assert entry == {
        "row": 5,
        "key": "bad",
        "reason": "no caption, and no good question: question 9: question is missing or empty",
    }
    assert shards.manifest["quarantined"] == 1


def test_the_numbers_of_a_bad_row_stay_free(picture: Make, prepare: Prepare) -> None:
    broken = Row("broken", b"no picture", (), split="train", questions=(question(1),))
    shards = prepare([broken, asked(picture, question(1))], quarantine_bound=0.5)
    assert shards.questions("train")["key"].to_pylist() == ["k"]


def test_too_many_bad_questions_stop_the_stage(picture: Make, prepare: Prepare) -> None:
    with pytest.raises(
        TooManyBadError, match=r"2 of 4 questions cannot be used(.|\n)* 2 x k, question 3: answer is missing"
    ):
        prepare([asked(picture, question(1), question(2), *(question(n, answers=()) for n in (3, 4)))])


# ---- pictures without captions ---------------------------------------------------------------------


def test_a_set_of_questions_cannot_train_a_student_and_says_so(picture: Make, prepare: Prepare) -> None:
    shards = prepare([asked(picture, question(n), key=f"k{n}", shade=n) for n in range(3)])
    side = Side(View(8, (0.5,) * 3, (0.5,) * 3), lambda texts: None)  # type: ignore[arg-type, return-value]
    settings = {"rank": 0, "world": 1, "seed": 0, "fraction": 1.0, "crop_scale": (0.9, 1.0), "workers": 0}
    with pytest.raises(InputError, match="3 of 3 pictures of split 'train' have no caption, such as k0.*task vqa"):
        TrainLoader(shards, {"student": side}, batch=2, max_pixels=1000, quarantine_bound=0.0, **settings)  # type: ignore[arg-type]


def test_captions_are_required_of_every_picture(picture: Make, prepare: Prepare) -> None:
    with_caption = Row("a", picture(), ("c",), split="train")
    shards = prepare(
        [with_caption, asked(picture, question(1), shade=1), asked(picture, question(2), key="v", split="val")]
    )
    with pytest.raises(InputError, match="1 of 2 pictures of split 'train' have no caption, such as k:"):
        shards.require_captions("train")
    shards.require_captions("test")  # nothing is there


# ---- the stage ------------------------------------------------------------------------------------


def test_prepare_counts_questions_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = prepare_stage.run(Request("tiny", str(tmp_path), data="scenes_vqa"))
    artifact = Artifact.open(url)
    metrics = artifact.manifest["metrics"]
    rows = list(open_rows(DataConfig(source="scenes_vqa", size=96)))
    assert metrics["questions"] == sum(len(row.questions) for row in rows if isinstance(row, Row))
    assert metrics["bad_questions"] == 0
    assert QUESTIONS in artifact.files()
    assert f"prepare: {metrics['questions']:.0f} questions (" in capsys.readouterr().out
