from collections import Counter

import pytest

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import Question, Row
from cmapkd_core.data.sources import open_rows
from cmapkd_core.data.sources.scenes import Scene, draw_scene
from cmapkd_core.data.sources.scenes_vqa import questions_of
from cmapkd_core.evaluate.vqa_answers import accuracy


def read(source: str, size: int) -> list[Row]:
    return [row for row in open_rows(DataConfig(source=source, size=size)) if isinstance(row, Row)]


def most(question: Question) -> str:
    return Counter(question.answers).most_common(1)[0][0]


def test_pictures_and_captions_are_those_of_scenes() -> None:
    plain = [(row.key, row.image, row.captions, row.group) for row in read("scenes", 40)]
    assert [(row.key, row.image, row.captions, row.group) for row in read("scenes_vqa", 40)] == plain
    assert not any(row.questions for row in read("scenes", 40))


def test_questions_are_always_the_same_and_have_numbers_of_their_own() -> None:
    rows = read("scenes_vqa", 200)
    assert rows == read("scenes_vqa", 200)
    numbers = [question.number for row in rows for question in row.questions]
    assert len(numbers) == len(set(numbers))
    assert all(len(question.answers) == 10 for row in rows for question in row.questions)


def test_every_kind_is_asked_and_yes_is_no_better_a_guess_than_no() -> None:
    questions = [question for row in read("scenes_vqa", 400) for question in row.questions]
    assert {question.question_type for question in questions} == {
        "is there",
        "is the",
        "how many",
        "what colour",
        "where is",
    }
    said = Counter(most(question) for question in questions if question.answer_type == "yes/no")
    assert 0.4 < said["yes"] / said.total() < 0.6
    assert {most(question) for question in questions if question.answer_type == "number"} == {"0", "1", "2"}


def truth(scene: Scene, text: str) -> str:
    """What is right, from the scene and the question's words alone."""
    words = text.rstrip("?").split()
    things = [thing for thing in (scene.first, scene.second) if thing]
    if words[:2] == ["is", "there"]:
        return "yes" if " ".join(words[3:]) in things else "no"
    if words[:2] == ["is", "the"]:
        first, relation, second = " ".join(words[2:4]), " ".join(words[4:-3]), " ".join(words[-2:])
        return "yes" if (first, relation, second) == (scene.first, scene.relation, scene.second) else "no"
    if words[:2] == ["how", "many"]:
        return str(len(things) if words[2] == "shapes" else sum(thing.split()[0] == words[2] for thing in things))
    if words[:2] == ["what", "colour"]:
        (colour,) = {thing.split()[0] for thing in things if thing.endswith(words[-1])}
        return colour
    place = {"": ("middle",), "left of": ("left", "right"), "above": ("top", "bottom")}[scene.relation]
    return place[things.index(" ".join(words[3:]))]


@pytest.mark.parametrize("number", range(200))
def test_answers_are_true(number: int) -> None:
    scene, _ = draw_scene(number)
    for question in questions_of(scene):
        assert most(question) == truth(scene, question.text), question.text
        assert accuracy(most(question), question.answers) == 1.0
