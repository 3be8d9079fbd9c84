"""Pictures of a batch on their way to the device: as bytes, once for all models that see the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cmapkd_core.data.augment import Rendering, View, normalise
from cmapkd_core.errors import InputError

Name = TypeVar("Name")


@dataclass(frozen=True)
class Rendered:
    """One crop of each of b pictures, each way. pixels: uint8 [b, 3, size, size]."""

    pixels: dict[Rendering, Tensor]

    def pinned(self) -> Rendered:
        """The same in pinned memory."""
        return Rendered(pinned(self.pixels))

    def normalised(self, views: Mapping[str, View], device: torch.device) -> dict[str, Tensor]:
        """Float [b, 3, size, size] on the device, by side; sides that want the same share it."""
        pixels = {way: tensor.to(device, non_blocking=True) for way, tensor in self.pixels.items()}
        wanted = {name: (view.rendering, view.mean, view.std) for name, view in views.items()}
        made = {wanted[name]: view for name, view in views.items()}
        images = {want: normalise(pixels[view.rendering], view) for want, view in made.items()}
        return {name: images[want] for name, want in wanted.items()}


def pinned(tensors: Mapping[Name, Tensor]) -> dict[Name, Tensor]:
    """Each in pinned memory, once also where several names share it."""
    once = {id(tensor): tensor for tensor in tensors.values()}
    copies = {number: tensor.pin_memory() for number, tensor in once.items()}
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}


def require_pixels(repack: int, views: Mapping[str, View], url: str) -> None:
    """Refuse training pictures that `data.repack` made smaller than a model sees.

    Raises:
        InputError: names the model and the way out.
    """
    for name, view in views.items():
        if repack and view.size > repack:
            raise InputError(
                f"the {name} wants {view.size} pixels a side and the training pictures of {url} were made smaller by "
                f"data.repack={repack}: run stage prepare with --set data.repack={view.size} or more, or with "
                "--set data.repack=0, which leaves them as they are"
            )
