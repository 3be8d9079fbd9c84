"""Does another library give the same embeddings? The same inputs through both, and the largest difference.

Shapes: B batch, H image side, N context length, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmapkd_core.data.augment import View, eval_view
from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone

# Of unit embeddings. Rounding of a dozen float32 blocks gives up to 1e-6; a wrong activation or normalisation 1e-2.
TOLERANCE = 1e-4
TOWERS = ("image", "text")
NOISE = 16  # random images beside the real ones: values that no picture has
CHUNK = 16  # inputs a library gets at once
# Of 255, the mean of a picture. Libraries that resample alike differ by up to 0.4 of noise, by rounding and the order
# of passes; another interpolation gives 2 and more, another way to make a square 10 and more.
LEVELS = 1.0
_SHAPES = ((1.5, 1.0), (1.0, 2.0), (0.5, 0.5))  # of pictures of noise, in sides of the model's own square

# Captions that tokenizers and pooling rules trip over: nothing, nothing but signs, other scripts, more than fits.
HARD = (
    *("", " ", "!", "a", "ünïcödé naïve", "日本語の説明", "🦊 e\u0301", "don't it's I'LL 1234"),
    *("'quoted' & <b>fine</b>", "“curly” \u2014 it\u2019s &amp;", "a very long caption " * 60, "x" * 400, "!?" * 300),
)


class Inexpressible(Exception):
    """A format cannot hold this model; the message is the reason, which the card gives."""


class ParityError(InputError):
    """An export gives other embeddings than the student."""


@dataclass(frozen=True)
class Towers:
    """A model that another library has loaded.

    image: [B,3,H,H] normalised pixels -> unit [B,E]. text: int64 [B,N] -> unit [B,E]. tokenize: n captions -> [n,N].
    pixels: an RGB picture -> [3,H,H] normalised.
    """

    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    pixels: Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Probe:
    """What every library is given, and what the student itself makes of it.

    images: `pictures` as the student is evaluated on them, then random ones [n,3,H,H]. tokens: of `captions`, then of
    HARD, [m,N]. image, text: the student's unit embeddings of these, [n,E] and [m,E]. view: how it wants its pictures.
    """

    view: View
    pictures: list[Image.Image]
    captions: list[str]
    images: Tensor
    tokens: Tensor
    image: Tensor
    text: Tensor


@dataclass(frozen=True)
class Bound:
    """How far two sets of unit embeddings [n,E] are apart: largest absolute difference, smallest cosine."""

    max_difference: float
    min_cosine: float
    inputs: int

    @classmethod
    def of(cls, expected: Tensor, actual: Tensor) -> Bound:
        """The bound of embeddings [n,E] twice; raises ParityError for another shape, or values that are not finite."""
        if expected.shape != actual.shape or not bool(torch.isfinite(actual).all()):
            raise ParityError(f"embeddings {tuple(actual.shape)} against {tuple(expected.shape)}, or not finite")
        cosine = torch.cosine_similarity(expected.double(), actual.double(), dim=-1)
        return cls(float((expected - actual).abs().max()), float(cosine.min()), len(expected))

    def __str__(self) -> str:
        return f"max |difference| {self.max_difference:.1e}, min cosine {self.min_cosine:.7f} of {self.inputs}"


@torch.inference_mode()
def probe(backbone: Backbone, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Probe:
    """Real pictures and captions with random and difficult ones beside them, through the student."""
    view = View.of(backbone.identity.plain())
    noise = torch.randn(NOISE, 3, view.size, view.size, generator=torch.Generator().manual_seed(0))
    images = torch.cat([*(eval_view(picture, view)[None] for picture in pictures), noise])
    tokens = backbone.tokenize([*captions, *HARD])
    embedded = _chunked(backbone.encode_image, images), _chunked(backbone.encode_text, tokens)
    return Probe(view, list(pictures), list(captions), images, tokens, *embedded)


@torch.inference_mode()
def measure(towers: Towers, given: Probe) -> dict[str, Any]:
    """How a library agrees with the student, as plain values for parity.json.

    Returns:
        image, text: bounds on the same pixels and token ids, which have to hold. levels: how far the library's own
        pixels of the pictures and of noise are from the student's (`levels_apart`), which has to hold too.
        preprocessing: embeddings of the pictures by the library's own pixels; no bound is asked of these.
        captions_otherwise: those of the data
        whose embedding by the library's own tokenizer is another, by more than TOLERANCE.
    """
    report: dict[str, Any] = {
        "image": vars(Bound.of(given.image, _chunked(towers.image, given.images))),
        "text": vars(Bound.of(given.text, _chunked(towers.text, given.tokens))),
    }
    report["levels"] = levels_apart(towers, given)
    if given.pictures:
        pixels = torch.stack([towers.pixels(picture) for picture in given.pictures])
        report["preprocessing"] = vars(Bound.of(given.image[: len(pixels)], _chunked(towers.image, pixels)))
    if given.captions:
        actual = _chunked(towers.text, towers.tokenize(given.captions))
        differs = (given.text[: len(actual)] - actual).abs().amax(dim=-1) > TOLERANCE
        report["captions_otherwise"] = [given.captions[i] for i in differs.nonzero().flatten().tolist()]
    return report


def levels_apart(towers: Towers, given: Probe) -> float:
    """Largest mean difference of a picture's pixels, in grey levels of 255: of the pictures and of noise.

    A shift by one pixel is none: where a crop cannot lie in the middle, libraries round to either side.
    """
    view, random = given.view, np.random.default_rng(0)
    shapes = [tuple(max(8, round(view.size * side)) for side in shape) for shape in _SHAPES]
    noise = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in shapes]
    scale = 255 * torch.tensor(view.std).view(3, 1, 1)
    return max(
        _apart(towers.pixels(picture) * scale, eval_view(picture, view) * scale)
        for picture in (*given.pictures, *noise)
    )


def _apart(actual: Tensor, expected: Tensor) -> float:
    """Mean difference of pixels [3,H,H] twice, at the best of nine shifts by a pixel."""
    if actual.shape != expected.shape:
        raise ParityError(f"pixels {tuple(actual.shape)} against {tuple(expected.shape)}")
    inner, size = actual[:, 1:-1, 1:-1], expected.shape[-1] - 2
    shifted = (expected[:, y : y + size, x : x + size] for y in range(3) for x in range(3))
    return min(float((inner - other).abs().mean()) for other in shifted)


def check(name: str, report: dict[str, Any]) -> None:
    """Hold an export to the tolerance.

    Raises:
        ParityError: names the tower, or the pixels, and by how much.
    """
    if report["levels"] > LEVELS:
        raise ParityError(
            f"the {name} export prepares pictures otherwise than the student does: {report['levels']:.1f} grey levels "
            f"of 255 in the mean; allowed are {LEVELS:g}. Try the library versions that pyproject.toml asks for"
        )
    for tower in TOWERS:
        bound = Bound(**report[tower])
        if bound.max_difference > TOLERANCE:
            raise ParityError(
                f"the {name} export gives other {tower} embeddings than the student: {bound}; the tolerance is "
                f"{TOLERANCE:g}. Try the library versions that pyproject.toml asks for"
            )


def _chunked(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """[n,..] -> [n,E], a few at a time."""
    return torch.cat([encode(part).float() for part in inputs.split(CHUNK)])
