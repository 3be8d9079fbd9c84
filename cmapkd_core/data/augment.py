"""CLIP's augmentation, rendered for several models at once.

Resampling is torch's antialiased bicubic on uint8: on one core 2.5 (72 px) to 4 (500 px) times faster than
Pillow's, from which CLIP and open_clip take theirs, and within 2 of 255 grey levels of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_RATIO = (math.log(3 / 4), math.log(4 / 3))
_ATTEMPTS = 10

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class View:
    """How one model wants its pictures: side length in pixels, mean and deviation of channels in 0..1."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


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
    image: Image.Image, sizes: Sequence[int], scale: tuple[float, float], generator: torch.Generator
) -> list[Tensor]:
    """One random crop rendered at each of `sizes`: uint8 [3, size, size] each."""
    left, top, right, bottom = crop_box(image.width, image.height, scale, generator)
    crop = _pixels(image)[:, top:bottom, left:right]
    return [_resize(crop, size, size) for size in sizes]


def eval_pixels(image: Image.Image, size: int) -> Tensor:
    """Shortest side to `size`, centre crop: uint8 [3, size, size], as open_clip evaluates."""
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return _resize(_pixels(image), height, width)[:, top : top + size, left : left + size]


def _pixels(image: Image.Image) -> Tensor:
    """uint8 [3, h, w]; the channels lie together in memory, which torch's fast resampling wants."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _resize(pixels: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]


def normalise(pixels: Tensor, view: View) -> Tensor:
    """uint8 [..., 3, h, w] to float of the same shape, (x / 255 - mean) / std."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (view.mean, view.std))
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / (255 * std)).sub_(mean / std)


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
    pixels = train_pixels(image, [view.size for view in views], scale, generator)
    return [normalise(array, view) for array, view in zip(pixels, views, strict=True)]


def eval_view(image: Image.Image, view: View) -> Tensor:
    """Float [3, size, size] of the resized and centre-cropped picture; no randomness."""
    return normalise(eval_pixels(image, view.size), view)
