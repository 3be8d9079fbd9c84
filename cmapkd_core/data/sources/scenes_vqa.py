"""The scenes of `scenes` with questions about them, true by construction: yes/no, counting, colour, position.

Ten answers to each, as ten people who all see the same but write it differently: "2" or "two", "left" or
"the left", which the official normalisation makes equal, "middle" or "in the middle", which it does not.
A source of its own, so that the files of `scenes` stay what they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import BadRow, Question, Row
from cmapkd_core.data.sources.scenes import COLOURS, DEFAULT_SIZE, RELATIONS, SHAPES, Scene, draw_scene

PERSONS = 10
_ROOM = 16  # question numbers that belong to one scene
_PLACES = {"left of": ("left", "right"), "above": ("top", "bottom")}  # of the first thing and of the second
_SECOND_WORDING = {"0": "none", "1": "one", "2": "two", **{p: f"the {p}" for p in ("left", "right", "top", "bottom")}}
_SECOND_WORDING |= {"middle": "in the middle", **{colour: f"{colour.capitalize()}." for colour in COLOURS}}

_Asked = tuple[str, str, str, str]  # question, answer, answer type, question type


def scene_vqa_rows(config: DataConfig) -> Iterator[Row | BadRow]:
    """The rows of `scenes`, captions and groups included, with three to eight questions each."""
    for number in range(config.size or DEFAULT_SIZE):
        scene, image = draw_scene(number)
        yield replace(scene.row(image), questions=tuple(questions_of(scene)))


def questions_of(scene: Scene) -> Iterator[Question]:
    """Questions about a scene, always the same ones."""
    draw = random.Random(f"questions {scene.number}")
    asked = [*_existence(scene, draw), *_counting(scene, draw), *_colours(scene), *_positions(scene)]
    for i, (text, answer, answer_type, question_type) in enumerate(asked):
        answers = _ten(answer, draw)
        yield Question(_ROOM * scene.number + i, text, answers, answer_type, question_type)


def _ten(answer: str, draw: random.Random) -> tuple[str, ...]:
    """Up to three of ten people use the second wording."""
    others = draw.randrange(4) if answer in _SECOND_WORDING else 0
    return (answer,) * (PERSONS - others) + (_SECOND_WORDING.get(answer, ""),) * others


def _things(scene: Scene) -> list[str]:
    return [thing for thing in (scene.first, scene.second) if thing]


def _existence(scene: Scene, draw: random.Random) -> Iterator[_Asked]:
    things = _things(scene)
    thing = draw.choice(things)
    if draw.random() < 0.5:
        thing = draw.choice([f"{c} {s}" for c in sorted(COLOURS) for s in SHAPES if f"{c} {s}" not in things])
    yield f"is there a {thing}?", "yes" if thing in things else "no", "yes/no", "is there"
    if scene.second and scene.first != scene.second:
        true = draw.random() < 0.5
        relation = scene.relation if true else RELATIONS[scene.relation][0]
        yield f"is the {scene.first} {relation} the {scene.second}?", "yes" if true else "no", "yes/no", "is the"


def _counting(scene: Scene, draw: random.Random) -> Iterator[_Asked]:
    things = _things(scene)
    yield "how many shapes are there?", str(len(things)), "number", "how many"
    colour = draw.choice(sorted(COLOURS)) if draw.random() < 0.5 else draw.choice(things).split()[0]
    count = sum(thing.startswith(colour) for thing in things)
    yield f"how many {colour} shapes are there?", str(count), "number", "how many"


def _colours(scene: Scene) -> Iterator[_Asked]:
    shapes = [thing.split()[1] for thing in _things(scene)]
    for thing in _things(scene):
        colour, shape = thing.split()
        if shapes.count(shape) == 1:
            yield f"what colour is the {shape}?", colour, "other", "what colour"


def _positions(scene: Scene) -> Iterator[_Asked]:
    if not scene.second:
        yield f"where is the {scene.first}?", "middle", "other", "where is"
    elif scene.first != scene.second:
        for thing, place in zip(_things(scene), _PLACES[scene.relation], strict=True):
            yield f"where is the {thing}?", place, "other", "where is"
