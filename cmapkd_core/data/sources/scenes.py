"""Generated pictures of one or two coloured shapes with captions that are true of them, for tests."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

from cmapkd_core.config import DataConfig
from cmapkd_core.data.rows import BadRow, Row

SIDE = 64  # pixels
DEFAULT_SIZE = 256
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 139, 60),
    "blue": (40, 80, 210),
    "yellow": (245, 205, 40),
    "purple": (130, 50, 150),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
# how the first shape lies to the second, its opposite, and the centres of both as shares of the side
RELATIONS = {
    "left of": ("right of", (0.27, 0.5), (0.73, 0.5)),
    "above": ("below", (0.5, 0.27), (0.5, 0.73)),
}


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one thing in the middle, or the first in a relation to the second."""

    number: int
    first: str  # colour and shape
    second: str = ""
    relation: str = ""  # a row of RELATIONS

    def captions(self) -> tuple[str, ...]:
        """Two texts that are true of it."""
        if not self.second:
            return f"a {self.first}", f"one {self.first} on a plain background"
        opposite, _, _ = RELATIONS[self.relation]
        return f"a {self.first} {self.relation} a {self.second}", f"a {self.second} {opposite} a {self.first}"

    def row(self, image: bytes) -> Row:
        """The picture with its captions."""
        key, captions = f"scene-{self.number:06d}", self.captions()
        return Row(key, image, captions, class_name=self.first, group=captions[0], licence="CC0-1.0")


def scene_rows(config: DataConfig) -> Iterator[Row | BadRow]:
    """`config.size` scenes (0: DEFAULT_SIZE), always the same ones; scenes of equal content share a group."""
    for number in range(config.size or DEFAULT_SIZE):
        scene, image = draw_scene(number)
        yield scene.row(image)


def draw_scene(number: int) -> tuple[Scene, bytes]:
    """Scene `number` and its picture as PNG; every fourth has one thing alone."""
    draw = random.Random(f"scene {number}")
    image = Image.new("RGB", (SIDE, SIDE), (draw.randrange(225, 256),) * 3)
    first, second = _thing(draw), _thing(draw)
    if number % 4 == 0:
        scene = Scene(number, first)
        _paint(image, first, (0.5, 0.5), draw)
    else:
        scene = Scene(number, first, second, draw.choice(sorted(RELATIONS)))
        _, here, there = RELATIONS[scene.relation]
        _paint(image, first, here, draw)
        _paint(image, second, there, draw)
    file = io.BytesIO()
    image.save(file, "PNG")
    return scene, file.getvalue()


def _thing(draw: random.Random) -> str:
    return f"{draw.choice(sorted(COLOURS))} {draw.choice(SHAPES)}"


def _paint(image: Image.Image, thing: str, centre: tuple[float, float], draw: random.Random) -> None:
    """One shape of 22..28 px around `centre`, moved by up to 3 px."""
    colour, shape = thing.split()
    fill, pen = COLOURS[colour], ImageDraw.Draw(image)
    x, y = (SIDE * share + draw.uniform(-3, 3) for share in centre)
    r = draw.uniform(11, 14)
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
    else:
        pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=fill)
        pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=fill)
