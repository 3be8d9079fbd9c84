"""CLIP's augmentation, rendered for several models at once, and its evaluation as each model's own config wants it.

Crops for training are resampled by torch's antialiased kernels on uint8: on one core 3 (72 px) to 4 (500 px) times
faster than the ones of Pillow that CLIP and open_clip use, and one grey level of 255 off in one pixel of 200; where
Pillow resamples columns first, up to 18 in one of 60 (both of noise). Evaluation takes open_clip's own way through
Pillow: its pixels are open_clip's bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmapkd_core.data.feed import room
from cmapkd_core.errors import BadImageError

if TYPE_CHECKING:
    from torchvision.transforms import Compose

_RATIO = (math.log(3 / 4), math.log(4 / 3))
_ATTEMPTS = 10

Box = tuple[int, int, int, int]
Rendering = tuple[int, str]  # side length in pixels, interpolation


@dataclass(frozen=True)
class View:
    """How one model wants its pictures.

    size: side length in pixels. mean, std: of the channels in 0..1. resize_mode: one of config.RESIZE_MODES, how a
    picture becomes a square where it is evaluated. interpolation: one of config.INTERPOLATIONS. fill: grey level 0..255
    of what `longest` adds. All of them are open_clip's `preprocess_cfg`.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill: int = 0

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> View:
        """The view of a model by what is recorded of it (models/identity.py)."""
        names = ("image_size", "mean", "std", "resize_mode", "interpolation", "fill_color")
        size, mean, std, mode, interpolation, fill = (recorded[name] for name in names)
        return cls(size, tuple(mean), tuple(std), mode, interpolation, fill)

    @property
    def rendering(self) -> Rendering:
        """What of it decides the pixels of a crop."""
        return self.size, _KERNELS[self.interpolation]


# What F.interpolate(.., antialias=True) calls; straight to where the pixels go they need two thirds of its time.
_RESAMPLED = {
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
}
# open_clip's names -> torch's. "random" is for training there; where it evaluates, that is bicubic.
_KERNELS = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}


def crop_box(width: int, height: int, scale: tuple[float, float], generator: torch.Generator) -> Box:
    """(left, top, right, bottom) of a random crop, by the rule of torchvision's RandomResizedCrop.

    The area is uniform in `scale`, the aspect ratio log-uniform in 3/4..4/3; after ten misses the
    largest central crop of an allowed ratio. Always the same number of draws.
    """
    low, high = scale
    for area, shape, x, y in torch.rand(_ATTEMPTS, 4, generator=generator).tolist():
        target = width * height * (low + (high - low) * area)
        ratio = math.exp(_RATIO[0] + (_RATIO[1] - _RATIO[0]) * shape)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, 3 / 4), 4 / 3)
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def train_pixels(
    image: np.ndarray,
    renderings: Sequence[Rendering],
    scale: tuple[float, float],
    generator: torch.Generator,
    into: Sequence[Tensor] = (),
) -> list[Tensor]:
    """One random crop rendered each way: uint8 [3, size, size] each, the channels of a pixel beside each other.

    The crop is squashed into the square, as open_clip trains every model whatever its `resize_mode`.

    Args:
        image: uint8 [height, width, 3].
        into: where they go, such as pictures of a `canvas`; new memory where nothing is given.
    """
    left, top, right, bottom = crop_box(image.shape[1], image.shape[0], scale, generator)
    crop = torch.from_numpy(np.ascontiguousarray(image[top:bottom, left:right])).permute(2, 0, 1)
    places = into or [canvas(1, size)[0] for size, _ in renderings]
    for (size, interpolation), place in zip(renderings, places, strict=True):
        resampled(crop, (size, size), interpolation, place)
    return list(places)


def resampled(
    image: Tensor, size: tuple[int, int], interpolation: str = "bicubic", into: Tensor | None = None
) -> Tensor:
    """F.interpolate(.., antialias=True) of uint8 [3, h, w] to `size`, height and width: into a place or a new one.

    Fast where the channels of a pixel lie beside each other, as in a `canvas`.
    """
    place = room(*size, 3).permute(2, 0, 1) if into is None else into
    _RESAMPLED[interpolation](image[None], size, False, out=place[None])
    return place


def canvas(count: int, size: int) -> Tensor:
    """Room for pictures: uint8 [count, 3, size, size], the channels of a pixel beside each other in memory."""
    return room(count, size, size, 3).permute(0, 3, 1, 2)


def eval_pixels(image: Image.Image, view: View) -> Tensor:
    """The picture as open_clip evaluates it, by its own code: uint8 [3, size, size].

    Raises:
        BadImageError: the picture is so thin that nothing of its short side would be left.
    """
    if view.resize_mode == "longest" and min(image.size) * view.size < max(image.size) / 2:
        raise BadImageError(f"{image.width}x{image.height} pixels: too thin to be shown whole in {view.size} px")
    return _pixels(_to_square(view)(image))


@cache
def _to_square(view: View) -> Compose:
    """open_clip's transform without its last two steps, which make a normalised tensor."""
    from open_clip.transform import image_transform  # seconds, which stages without a model need not spend
    from torchvision.transforms import Compose

    whole = image_transform(
        view.size,
        is_train=False,
        resize_mode=view.resize_mode,
        interpolation=view.interpolation,
        fill_color=view.fill,
    )
    return Compose(whole.transforms[:-2])


_WORDS = {  # of each resize mode
    "shortest": "shortest side to {size} px, centre crop",
    "longest": "longest side to {size} px, the rest filled with grey level {fill}",
    "squash": "squashed to {size} x {size} px whatever its sides",
}


def in_words(view: View) -> str:
    """What evaluation does to a picture before it is normalised, for logs and the model card."""
    return f"{_WORDS[view.resize_mode].format(size=view.size, fill=view.fill)}, {view.rendering[1]}"


def _pixels(image: Image.Image) -> Tensor:
    """uint8 [3, h, w]; the channels lie together in memory, which torch's fast resampling wants."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def normalise(pixels: Tensor, view: View) -> Tensor:
    """uint8 [..., 3, h, w] to float of the same shape, (x / 255 - mean) / std, on the same device."""
    factor, shift = _affine(view.mean, view.std, pixels.device)
    if pixels.device.type != "cpu" or pixels.dim() < 4:
        return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(factor).sub_(shift)
    out = torch.empty(pixels.shape)
    for place, picture in zip(out, pixels, strict=True):  # one after another stays in the cache: half the time
        torch.sub(picture.to(torch.float32).mul_(factor), shift, out=place)
    return out


@cache
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and shift [3, 1, 1] of a normalisation; kept on the device, so that no batch waits for them."""
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    return (1 / (255 * s)).to(device), (m / s).to(device)


def train_views(
    image: Image.Image, views: Sequence[View], scale: tuple[float, float], generator: torch.Generator
) -> list[Tensor]:
    """One random resized crop at every view's size, so that teacher and student see the same pixels.

    Args:
        image: RGB.
        views: one per model.
        scale: share of the picture's area that a crop keeps, lowest and highest.
        generator: all randomness comes from it.

    Returns:
        Float [3, size, size] per view, in order.
    """
    pixels = train_pixels(np.asarray(image), [view.rendering for view in views], scale, generator)
    return [normalise(array, view) for array, view in zip(pixels, views, strict=True)]


def eval_view(image: Image.Image, view: View) -> Tensor:
    """Float [3, size, size] of the picture as it is evaluated; no randomness."""
    return normalise(eval_pixels(image, view), view)
