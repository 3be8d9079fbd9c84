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
    """The definition, with no shortcut: taps of one size to g, every lateral to its level, upsample, add, smooth."""
    laterals = {n: module.lateral(n, t, t.shape[-1]) for n, t in zip(VISION_LEVELS, given, strict=True)}
    if len({tap.shape[-1] for tap in given}) == 1:
        laterals = {n: resize(x, module.grid) for n, x in laterals.items()}
    above = resize(laterals["P5"], module.sizes["P5"])
    maps = {"P5": above}
    for i in (2, 1, 0):
        name = VISION_LEVELS[i]
        size = module.sizes[name]
        lateral = resize(laterals[name], size)
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
    maps, _ = pyramid(grid)(taps((grid,) * 4), VISION_LEVELS)
    assert {name: m.shape for name, m in maps.items()} == {
        name: (2, 8, size, size) for name, size in zip(VISION_LEVELS, sizes, strict=True)
    }


@pytest.mark.parametrize(
    ("grid", "sides"),
    [
        *((4, (4,) * 4), (7, (7,) * 4), (14, (16,) * 4), (14, (7,) * 4), (7, (5,) * 4), (14, (2,) * 4), (6, (9,) * 4)),
        *((4, (32, 16, 8, 4)), (7, (16, 8, 4, 2)), (8, (1, 2, 4, 8))),
    ],
)
def test_every_way_to_a_level_is_the_definition(grid, sides):
    """ViT grids, another model's too; convolutional strides 4/8/16/32 on an even and an odd grid, and the other way."""
    module, given = pyramid(grid), taps(sides)
    expected, found = plainly(module, given), module(given, VISION_LEVELS)[0]
    for name in VISION_LEVELS:
        assert torch.allclose(found[name], expected[name], atol=1e-4), name


@pytest.mark.parametrize(
    ("grid", "sides"), [(4, (4,) * 4), (7, (7,) * 4), (14, (16,) * 4), (1, (1,) * 4), (7, (16, 8, 4, 2))]
)
def test_a_pooled_level_is_the_mean_of_its_map_and_so_is_its_gradient(grid, sides):
    """Borders and corners included: of a map of one position they are all that there is."""
    module, given = pyramid(grid), [tap.requires_grad_() for tap in taps(sides)]
    maps, pooled = module(given, VISION_LEVELS)
    wanted = [*given, *module.parameters()]
    for name in VISION_LEVELS:
        plain = maps[name].mean((2, 3))
        assert torch.allclose(pooled[name], plain, atol=1e-5), name
        pull = torch.randn(plain.shape)
        pairs = (
            torch.autograd.grad(x, wanted, pull, retain_graph=True, allow_unused=True) for x in (pooled[name], plain)
        )
        for ours, expected in zip(*pairs, strict=True):
            ours, expected = (torch.zeros(()) if x is None else x for x in (ours, expected))
            assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("sides", [(3, 5, 2, 1), (9, 6, 5, 3)])
def test_taps_whose_size_fits_no_level_give_levels_of_the_right_size(sides):
    """Strides of another model: a small lateral is brought to half of its level, then doubled."""
    module, given = pyramid(4), taps(sides)
    found, _ = module(given, VISION_LEVELS)
    assert {name: m.shape[-1] for name, m in found.items()} == level_sizes(4)
    constant = [tap.mean((2, 3), keepdim=True).expand_as(tap) for tap in given]
    for name, m in module(constant, VISION_LEVELS)[0].items():
        inner = m[..., m.shape[-1] // 2, m.shape[-1] // 2]
        assert torch.allclose(
            inner, plainly(module, constant)[name][..., m.shape[-1] // 2, m.shape[-1] // 2], atol=1e-4
        )


def bare(grid: int) -> VisualPyramid:
    """One channel, laterals that are the taps and no smoothing: a level is the sum of what came to it."""
    module = VisualPyramid((1,) * 4, grid, 1)
    for name in VISION_LEVELS:
        module.norms[name] = module.laterals[name] = nn.Identity()
    for conv in module.smooths.values():
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    return module


def shown(grid: int, sides: tuple[int, ...], name: str) -> tuple[list[float], torch.Tensor]:
    """One row of the level `name` where its own tap alone says something: x^2 at column x; and what is kept of it."""
    given = [torch.zeros(1, 1, s, s) for s in sides]
    i = VISION_LEVELS.index(name)
    given[i] += torch.arange(float(sides[i])) ** 2
    module = bare(grid)
    return module(given, VISION_LEVELS)[0][name][0, 0, 0].tolist(), module.laterals_of(given, VISION_LEVELS)[name]


def shrunk(values: list[float], size: int) -> list[float]:
    """By hand: a place of the smaller row is the mean of its neighbours under a triangle as wide as the step."""
    step = len(values) / size
    rows = [[max(0.0, 1 - abs(i - ((j + 0.5) * step - 0.5)) / step) for i in range(len(values))] for j in range(size)]
    return [sum(w * x for w, x in zip(row, values, strict=True)) / sum(row) for row in rows]


def doubled(values: list[float]) -> list[float]:
    return [x for x in values for _ in range(2)]


def test_taps_of_one_size_go_through_the_common_grid():
    """A teacher of 16x16 beside a student of 14x14, of 7x7 beside 14x14, and the student's own."""
    at_14 = shrunk([float(x * x) for x in range(16)], 14)
    found, kept = shown(14, (16,) * 4, "P3")
    assert found == pytest.approx(doubled(at_14), rel=1e-5)
    assert kept.shape == (1, 1, 14, 14)
    assert shown(14, (16,) * 4, "P2")[0] == pytest.approx(doubled(doubled(at_14)), rel=1e-5)
    positions = sum(shown(14, (16,) * 4, name)[1].numel() for name in VISION_LEVELS)
    assert positions * 256 * 2 == 326_144  # bytes a crop in a store of ViT-L/14 beside ViT-B/16, fp16
    at_7 = [(a + b) / 2 for a, b in zip(at_14[::2], at_14[1::2], strict=True)]
    assert shown(14, (16,) * 4, "P5")[0] == pytest.approx(at_7, rel=1e-5)
    found, kept = shown(14, (7,) * 4, "P4")
    assert found == doubled([0, 1, 4, 9, 16, 25, 36])
    assert kept.shape == (1, 1, 7, 7)  # its doubling is no news
    assert shown(14, (14,) * 4, "P3")[0] == doubled([float(x * x) for x in range(14)])


def test_taps_of_several_sizes_go_to_their_levels_at_once():
    """Convolutional towers: detail beyond the common grid is kept where the level has it."""
    sides = (56, 28, 14, 7)
    for name, side in zip(VISION_LEVELS, sides, strict=True):
        found, kept = shown(14, sides, name)
        assert found == [float(x * x) for x in range(side)], name
        assert kept.shape[-1] == side
    at_28 = shrunk([float(x * x) for x in range(32)], 28)
    assert shown(14, (64, 32, 16, 8), "P3")[0] == pytest.approx(at_28, rel=1e-5)


@pytest.mark.parametrize("name", VISION_LEVELS)
def test_a_level_asked_for_alone_is_the_same_level(name):
    module, given = pyramid(4), taps((4, 4, 4, 4))
    alone, _ = module(given, (name,))
    assert list(alone) == [name]
    assert torch.equal(alone[name], module(given, VISION_LEVELS)[0][name])


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
    maps, _ = module(taps((4, 4, 4, 4)), levels)
    sum(m.square().sum() for m in maps.values()).backward()
    moved = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    used = {id(p) for p in module.used(levels)}
    assert moved == {name for name, p in module.named_parameters() if id(p) in used}


def test_taps_of_a_constant_picture_keep_finite_levels():
    module = pyramid(4)
    maps, _ = module([torch.zeros(1, w, 4, 4) for w in WIDTHS], VISION_LEVELS)
    assert all(torch.isfinite(m).all() for m in maps.values())
