"""How a store keeps the teacher's levels: laterals in 16 bits, or all levels in 8 with a scale for each vector.

A vector is a level's W channels at one position, or a text level's only one: what the losses compare by its direction.
With a scale of its own a large one takes nothing from a small one beside it. Scales are powers of 2 ** (1 / 4), rounded
up: one is a byte, and takes at most a quarter of a bit from each channel (docs/decisions/0021).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cmapkd_core.config import ALL_LEVELS, VISION_LEVELS

SCALE = "/scale"  # behind a level's name: the logarithms of what its integers are multiplied with
_MOST = 127  # of an integer
_STEPS = 4  # from a scale to its double
_LEAST, _NOT_FINITE = -127, 127  # logarithms: of a vector of zeros, and of one that is not finite


def in_float16(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Laterals [b,W,h,h] in half precision, all else as it is."""
    return {name: x.half() if name in VISION_LEVELS else x for name, x in outputs.items()}


def in_int8(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Levels [b,W,..] as int8 [b,W,..] with the logarithms of their scales, int8 [b,..]; all else as it is."""
    coded: dict[str, Tensor] = {}
    for name, x in outputs.items():
        coded |= _coded(name, x.float()) if name in ALL_LEVELS else {name: x}
    return coded


def _coded(name: str, x: Tensor) -> dict[str, Tensor]:
    most = x.abs().amax(1)  # a NaN is the largest
    power = (_STEPS * (most / _MOST).log2()).ceil().clamp(_LEAST, _NOT_FINITE - 1)
    power = power.masked_fill(~most.isfinite(), _NOT_FINITE)
    codes = (x / _scale(power).unsqueeze(1)).round().nan_to_num(0).clamp(-_MOST, _MOST)
    return {name: codes.to(torch.int8), f"{name}{SCALE}": power.to(torch.int8)}


def decoded(stored: Mapping[str, Tensor], name: str) -> Tensor:
    """A level [b,W,..] in fp32, of what one of the above gave; NaN where a vector was not finite."""
    if f"{name}{SCALE}" not in stored:
        return stored[name].float()
    return stored[name].float() * _scale(stored[f"{name}{SCALE}"].float()).unsqueeze(1)


def as_floats(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What shows whether all of it was finite: tensors [..] that are floats, and the scales of those that are not."""
    scales = {name: _scale(x.float()) for name, x in stored.items() if name.endswith(SCALE)}
    return {name: x for name, x in stored.items() if x.is_floating_point()} | scales


def _scale(power: Tensor) -> Tensor:
    """2 ** (power / 4), of logarithms [..]."""
    return (power / _STEPS).exp2().masked_fill(power == _NOT_FINITE, torch.nan)
