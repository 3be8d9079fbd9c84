"""What the leakage gate's second comparison tells apart, of pictures that the perceptual hash puts together.

    python benchmarks/look_alikes.py                 # two minutes
    python benchmarks/look_alikes.py --copies 20     # faster

Copies: emoji, generated scenes, drawn shapes and pieces of scikit-learn's two photographs, each changed as copies are.
Different: all pairs of emoji, of scenes and of shapes that hash alike; among the emoji and the scenes are some that a
person takes for the same (a gesture of a man and of a person; scenes that differ by a few pixels). A line has how many
there were that hash alike, and how many of them are called the same at each bound.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterable, Iterator
from itertools import product

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from cmapkd_core.config import DataConfig
from cmapkd_core.data.images import decode
from cmapkd_core.data.inspection import perceptual_hash
from cmapkd_core.data.leakage import BOUND
from cmapkd_core.data.look_alikes import DIFFERENT, difference, thumbnail
from cmapkd_core.data.rows import BadRow, LazyRow
from cmapkd_core.data.sources import open_rows

BOUNDS = (16, 24, 32, 40, 48, 56, 64)
COLOURS = ("crimson", "royalblue", "seagreen", "purple", "darkorange", "black", "teal", "hotpink")
Picture = Image.Image


def jpeg(image: Picture, quality: int) -> Picture:
    """As a JPEG of this quality has it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def scaled(image: Picture, factor: float) -> Picture:
    """Of another size."""
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def cropped(image: Picture, share: float) -> Picture:
    """Without this share of each side."""
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((x, y, image.width - x, image.height - y))


def hue(image: Picture, degrees: float) -> Picture:
    """With colours turned."""
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] += np.uint8(round(degrees * 256 / 360))
    return Image.fromarray(pixels, "HSV").convert("RGB")


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "JPEG 30": lambda image: jpeg(image, 30),
    "JPEG 60": lambda image: jpeg(image, 60),
    "JPEG 95": lambda image: jpeg(image, 95),
    "half the size": lambda image: scaled(image, 0.5),
    "3/4 of the size": lambda image: scaled(image, 0.75),
    "twice the size": lambda image: scaled(image, 2),
    "half, then JPEG 50": lambda image: jpeg(scaled(image, 0.5), 50),
    "cropped by 2 %": lambda image: cropped(image, 0.02),
    "cropped by 5 %": lambda image: cropped(image, 0.05),
    "brighter by 10 %": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "contrast + 10 %": lambda image: ImageEnhance.Contrast(image).enhance(1.1),
    "colour + 30 %": lambda image: ImageEnhance.Color(image).enhance(1.3),
    "hue + 11 degrees": lambda image: hue(image, 11),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


def of_source(name: str, most: int = 0) -> Iterator[Picture]:
    """The pictures of a source that carries its data."""
    for item in open_rows(DataConfig(source=name, size=most)):
        row = item.load() if isinstance(item, LazyRow) else item
        if not isinstance(row, BadRow):
            yield decode(row.image, 10**8)


def shapes() -> Iterator[Picture]:
    """Plain drawings, each in all colours."""
    drawn: list[Callable[[ImageDraw.ImageDraw, str], None]] = [
        lambda draw, colour: draw.ellipse((24, 24, 104, 104), fill=colour),
        lambda draw, colour: draw.rectangle((24, 24, 104, 104), fill=colour),
        lambda draw, colour: draw.polygon([(64, 20), (110, 108), (18, 108)], fill=colour),
        lambda draw, colour: (
            draw.rectangle((30, 36, 90, 104), fill=colour),
            draw.arc((80, 48, 112, 92), -90, 90, fill=colour, width=8),
        ),
        lambda draw, colour: (
            draw.ellipse((20, 40, 90, 88), fill=colour),
            draw.polygon([(84, 64), (112, 40), (112, 88)], fill=colour),
        ),
        lambda draw, colour: (
            draw.rectangle((34, 60, 94, 108), fill=colour),
            draw.polygon([(24, 60), (64, 20), (104, 60)], fill=colour),
        ),
    ]
    for draw, colour in product(drawn, COLOURS):
        image = Image.new("RGB", (128, 128), "white")
        draw(ImageDraw.Draw(image), colour)
        yield image


def pieces() -> Iterator[Picture]:
    """Of two photographs."""
    from sklearn.datasets import load_sample_images

    for pixels in load_sample_images().images:
        photo = Image.fromarray(pixels)
        for x, y in product(range(0, photo.width - 159, 97), range(0, photo.height - 159, 89)):
            yield photo.crop((x, y, x + 160, y + 160))


def alike(one: int | None, other: int | None) -> bool:
    """Whether the gate's perceptual check puts two hashes together."""
    return one is not None and other is not None and (one ^ other).bit_count() <= BOUND


def line(name: str, distances: Iterable[float], of: int | None = None) -> None:
    """Print how many of the pairs are called the same at each bound, in percent."""
    values = np.array(list(distances))
    shares = [f"{100 * (values <= bound).mean():7.1f}" if len(values) else "      -" for bound in BOUNDS]
    print(f"{name:28}{len(values):6}{'' if of is None else f' of {of}':9}{''.join(shares)}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--copies", type=int, default=150, help="pictures of each kind that are copied")
    return cli


def main() -> None:
    """Print both tables."""
    most = parser().parse_args().copies
    kinds = {"emoji": list(of_source("emoji")), "scenes": list(of_source("scenes", 400))}
    kinds |= {"shapes": list(shapes()), "photographs": list(pieces())}
    print(f"bound on the difference; the gate's is {DIFFERENT:g}{'':4}{''.join(f'{bound:7}' for bound in BOUNDS)}")
    print("copies: percent called the same")
    chosen = [image for images in kinds.values() for image in _some(images, most)]
    chosen = [image for image in chosen if perceptual_hash(image) is not None]
    for name, change in CHANGES.items():
        pairs = [(image, change(image)) for image in chosen]
        pairs = [pair for pair in pairs if alike(*map(perceptual_hash, pair))]
        line(f"  {name}", (difference(*map(thumbnail, pair)) for pair in pairs), len(chosen))
    print("different pictures: percent called the same")
    for name, images in kinds.items():
        hashes = [perceptual_hash(image) for image in images]
        thumbs = [thumbnail(image) for image in images]
        alike_pairs = ((i, j) for i in range(len(images)) for j in range(i) if alike(hashes[i], hashes[j]))
        line(f"  {name}", (difference(thumbs[i], thumbs[j]) for i, j in alike_pairs))


def _some(images: list[Picture], most: int) -> list[Picture]:
    places = np.random.default_rng(0).choice(len(images), min(most, len(images)), replace=False)
    return [images[place] for place in sorted(places)]


if __name__ == "__main__":
    main()
