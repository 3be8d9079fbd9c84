"""The visual pyramid: sizes, the folded convolution, what a level depends on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cmapkd_core.config import VISION_LEVELS
from cmapkd_core.models.pyramid import VisualPyramid, level_sizes, resize, smooth_upsampled

WIDTHS = (6, 6, 10, 12)


def taps(sides: tuple[int, ...], widths: tuple[int, ...] = WIDTHS, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, w, s, s, generator=generator) for w, s in zip(widths, sides, strict=True)]


def pyramid(grid: int, widths: tuple[int, ...] = WIDTHS) -> VisualPyramid:
    torch.manual_seed(1)
    return VisualPyramid(widths, grid, 8)


def plainly(module: VisualPyramid, given: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The definition, with no shortcut: resize every lateral to its level, upsample, add, smooth."""
    above = resize(module.lateral("P5", given[3]), module.sizes["P5"])
    maps = {"P5": above}
    for i in (2, 1, 0):
        name = VISION_LEVELS[i]
        size = module.sizes[name]
        lateral = resize(module.lateral(name, given[i]), size)
        above = maps[name] = module.smooths[name](lateral + F.interpolate(above, size=(size, size), mode="nearest"))
    return maps


@pytest.mark.parametrize("side", [1, 2, 5, 7])
def test_folded_convolution_equals_convolving_the_upsampled_map(side):
    torch.manual_seed(side)
    conv, x = nn.Conv2d(5, 5, 3, padding=1), torch.randn(3, 5, side, side)
    expected = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    found = smooth_upsampled(x, conv)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)  # borders included: the whole map is compared


def test_folded_convolution_has_the_gradient_of_the_plain_one():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 3, 3, requires_grad=True)
    pull = torch.randn(2, 4, 6, 6)
    wanted = torch.autograd.grad((conv(F.interpolate(x, scale_factor=2)) * pull).sum(), (x, *conv.parameters()))
    found = torch.autograd.grad((smooth_upsampled(x, conv) * pull).sum(), (x, *conv.parameters()))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("grid", "sizes"), [(14, (56, 28, 14, 7)), (7, (28, 14, 7, 3)), (4, (16, 8, 4, 2)), (1, (4, 2, 1, 1))]
)
def test_level_sizes_of_even_odd_and_smallest_grids(grid, sizes):
    assert tuple(level_sizes(grid).values()) == sizes
    maps = pyramid(grid)(taps((grid,) * 4), VISION_LEVELS)
    assert {name: m.shape for name, m in maps.items()} == {
        name: (2, 8, size, size) for name, size in zip(VISION_LEVELS, sizes, strict=True)
    }


@pytest.mark.parametrize(
    ("grid", "sides"),
    [(4, (4, 4, 4, 4)), (7, (7, 7, 7, 7)), (4, (32, 16, 8, 4)), (7, (16, 8, 4, 2)), (8, (1, 2, 4, 8))],
)
def test_every_way_to_a_level_is_the_definition(grid, sides):
    """ViT grids, convolutional strides 4/8/16/32 on an even and an odd grid, and strides the other way round."""
    module, given = pyramid(grid), taps(sides)
    expected, found = plainly(module, given), module(given, VISION_LEVELS)
    for name in VISION_LEVELS:
        assert torch.allclose(found[name], expected[name], atol=1e-4), name


@pytest.mark.parametrize("sides", [(6, 6, 6, 6), (3, 5, 2, 1), (9, 9, 9, 9)])
def test_taps_whose_size_fits_no_level_give_levels_of_the_right_size(sides):
    """Another model's grid: a small lateral is brought to half of its level, then doubled."""
    module, given = pyramid(4), taps(sides)
    found = module(given, VISION_LEVELS)
    assert {name: m.shape[-1] for name, m in found.items()} == level_sizes(4)
    constant = [tap.mean((2, 3), keepdim=True).expand_as(tap) for tap in given]
    for name, m in module(constant, VISION_LEVELS).items():
        inner = m[..., m.shape[-1] // 2, m.shape[-1] // 2]
        assert torch.allclose(
            inner, plainly(module, constant)[name][..., m.shape[-1] // 2, m.shape[-1] // 2], atol=1e-4
        )


@pytest.mark.parametrize("name", VISION_LEVELS)
def test_a_level_asked_for_alone_is_the_same_level(name):
    module, given = pyramid(4), taps((4, 4, 4, 4))
    alone = module(given, (name,))
    assert list(alone) == [name]
    assert torch.equal(alone[name], module(given, VISION_LEVELS)[name])


def test_resize_keeps_the_mean_when_shrinking_and_the_values_when_growing():
    x = torch.randn(2, 3, 6, 6)
    assert resize(x, 6) is x
    assert torch.allclose(resize(x, 3), F.avg_pool2d(x, 2))
    assert torch.equal(resize(x, 12)[..., ::2, 1::2], x)
    assert resize(x, 4).shape[-1] == 4
    constant = torch.full((1, 1, 5, 5), 3.0)
    assert torch.allclose(resize(constant, 7), torch.full((1, 1, 7, 7), 3.0))


@pytest.mark.parametrize("levels", [("P5",), ("P4", "P5"), ("P4",), ("P2",), ("P3", "P5"), VISION_LEVELS])
def test_used_names_exactly_the_parameters_that_get_a_gradient(levels):
    module = pyramid(4)
    maps = module(taps((4, 4, 4, 4)), levels)
    sum(m.square().sum() for m in maps.values()).backward()
    moved = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    used = {id(p) for p in module.used(levels)}
    assert moved == {name for name, p in module.named_parameters() if id(p) in used}


def test_taps_of_a_constant_picture_keep_finite_levels():
    module = pyramid(4)
    maps = module([torch.zeros(1, w, 4, 4) for w in WIDTHS], VISION_LEVELS)
    assert all(torch.isfinite(m).all() for m in maps.values())
