"""A depthwise convolution that pads small maps first is torch's own: values, gradients, names and what it leaves alone.

What would make these fail: an order of the paddings, a stride or a bias that is lost; a convolution of another kind
that is changed too; padding where nothing is trained.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cmapkd_core.config import ModelConfig
from cmapkd_core.models.build import build
from cmapkd_core.models.small_maps import PaddedFirst, pad_first


@pytest.mark.parametrize("padding", [2, (1, 0), (0, 2)])
@pytest.mark.parametrize("stride", [1, (2, 1)])
@pytest.mark.parametrize("side", [(3, 4), (4, 2), (9, 9)])
def test_values_and_gradients_are_torchs(
    padding: int | tuple[int, int], stride: int | tuple[int, int], side: tuple[int, int]
) -> None:
    conv = nn.Conv2d(6, 6, (3, 2), stride=stride, padding=padding, groups=6).double()
    maps = torch.randn(2, 6, *side, dtype=torch.float64, requires_grad=True)
    leaves = [maps, *conv.parameters()]
    wanted = conv(maps)
    pull = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, leaves, pull)
    names = list(conv.state_dict())
    pad_first(conv)
    assert type(conv) is PaddedFirst
    made = conv(maps)
    torch.testing.assert_close(made, wanted)
    torch.testing.assert_close(torch.autograd.grad(made, leaves, pull), gradients)
    assert list(conv.state_dict()) == names


def padded(conv: nn.Conv2d, side: int, *, training: bool = True, trained: bool = True) -> bool:
    """Whether the map is padded by an operation of its own, as the graph of its gradient says."""
    conv.train(training).requires_grad_(trained)
    made = conv(torch.randn(1, conv.in_channels, side, side, requires_grad=True))
    assert made.grad_fn is not None
    return "ConstantPad" in str(made.grad_fn.next_functions[0][0])


def test_only_small_maps_whose_weights_are_trained_are_padded() -> None:
    conv = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    pad_first(conv)
    assert padded(conv, 4)
    assert padded(conv, 5)
    assert not padded(conv, 6)
    assert not padded(conv, 4, training=False)
    assert not padded(conv, 4, trained=False)


def test_other_convolutions_stay() -> None:
    others = nn.ModuleList(
        [
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.Conv2d(4, 4, 3, padding="same", groups=4),
            nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
        ]
    )
    pad_first(others)
    assert {type(part) for part in others} == {nn.Conv2d}


def test_a_timm_tower_has_them(tmp_path: Path) -> None:
    model = build(ModelConfig("lite0-minilm3", "random"), 0, tmp_path)
    assert any(isinstance(part, PaddedFirst) for part in model.model.visual.modules())
