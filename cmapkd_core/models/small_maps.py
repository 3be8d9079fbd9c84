"""Depthwise convolutions of maps no larger than their kernel, as upper blocks of small towers have, trained on a CPU.

oneDNN has no kernel of its own for the gradient of such weights where it pads by itself, and falls back to a matrix
product a channel; of a map that was padded before it has one. Values and gradients are the same but for the order of
additions. Of an EfficientNet-Lite0's update at 64 px (64 pictures, one thread) the fallback was half of the
convolutions' time: `python benchmarks/small_maps.py`, 656 ms of CPU an update against 493.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


class PaddedFirst(nn.Conv2d):
    """A depthwise convolution that pads small maps before it, where a CPU trains its weights."""

    @override
    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h', w'], as torch's."""
        if not self._falls_back(maps):
            return super().forward(maps)
        down, right = _padding(self)
        padded = F.pad(maps, (right, right, down, down))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _falls_back(self, maps: Tensor) -> bool:
        small = maps.shape[-2] <= self.kernel_size[0] or maps.shape[-1] <= self.kernel_size[1]
        return small and self.training and self.weight.requires_grad and maps.device.type == "cpu"


def pad_first(module: nn.Module) -> None:
    """Make `PaddedFirst` of torch's own depthwise convolutions in `module` that pad with zeros, in place.

    Parameters, their names and hooks stay: it is the class of the same object that changes.
    """
    for part in module.modules():
        if type(part) is nn.Conv2d and part.groups == part.in_channels > 1 and _pads(part):
            part.__class__ = PaddedFirst


def _pads(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and any(conv.padding)


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(conv.padding, str)  # see _pads
    return conv.padding[0], conv.padding[1]
