"""Generated pictures of one or two coloured shapes with captions that are true of them, for tests."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

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


def scene_rows(config: DataConfig) -> Iterator[Row | BadRow]:
    """`config.size` scenes (0: DEFAULT_SIZE), always the same ones; scenes of equal content share a group."""
    for number in range(config.size or DEFAULT_SIZE):
        yield _scene(number)


def _scene(number: int) -> Row:
    draw = random.Random(f"scene {number}")
    image = Image.new("RGB", (SIDE, SIDE), (draw.randrange(225, 256),) * 3)
    first, second = _thing(draw), _thing(draw)
    if number % 4 == 0:
        _paint(image, first, (0.5, 0.5), draw)
        captions: tuple[str, ...] = (f"a {first}", f"one {first} on a plain background")
    else:
        relation = draw.choice(sorted(RELATIONS))
        opposite, here, there = RELATIONS[relation]
        _paint(image, first, here, draw)
        _paint(image, second, there, draw)
        captions = (f"a {first} {relation} a {second}", f"a {second} {opposite} a {first}")
    file = io.BytesIO()
    image.save(file, "PNG")
    return Row(f"scene-{number:06d}", file.getvalue(), captions, class_name=first, group=captions[0], licence="CC0-1.0")


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
