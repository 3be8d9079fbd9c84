"""R2: the visual pyramid as the paper writes it, and as this package computes it, forward and backward.

    python benchmarks/pyramid.py --batch 16 --rounds 7

Literal: every lateral is resized to its level first and made by a 1x1 convolution there, the level above is upsampled
to it, and a 3x3 convolution smooths the sum at full size; pooled levels are means of the maps. Both forms have the same
weights, the taps of ViT-B/16, and the gradients of maps and of pooled levels; they are equal to fp32 before anything
is timed. By turns in one process of one thread; the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cmapkd_core.config import VISION_LEVELS
from cmapkd_core.models.pyramid import VisualPyramid, resize

GOAL = "3"
Maps = dict[str, Tensor]


def literal(pyramid: VisualPyramid, taps: list[Tensor]) -> tuple[Maps, Maps]:
    """Maps and pooled levels with no shortcut."""
    maps: Maps = {}
    above: Tensor | None = None
    for name, tap in reversed([*zip(VISION_LEVELS, taps, strict=True)]):
        size = pyramid.sizes[name]
        normed = rearrange(pyramid.norms[name](rearrange(tap, "b c h w -> b h w c")), "b h w c -> b c h w")
        linear = pyramid.laterals[name]
        lateral = F.conv2d(resize(normed, size), linear.weight[:, :, None, None], linear.bias)
        if above is not None:
            lateral = pyramid.smooths[name](lateral + F.interpolate(above, size=(size, size), mode="nearest"))
        maps[name] = above = lateral
    return maps, {name: x.mean(dim=(2, 3)) for name, x in maps.items()}


def ours(pyramid: VisualPyramid, taps: list[Tensor]) -> tuple[Maps, Maps]:
    """As in training."""
    return pyramid(taps, VISION_LEVELS)


FORMS: dict[str, Callable[[VisualPyramid, list[Tensor]], tuple[Maps, Maps]]] = {"literal": literal, "ours": ours}


class Bench:
    """A pyramid, taps with a gradient, and what comes back from the losses."""

    def __init__(self, batch: int, grid: int, channels: int, width: int) -> None:
        torch.manual_seed(0)
        self.pyramid = VisualPyramid((channels,) * 4, grid, width)
        self.taps = [torch.randn(batch, channels, grid, grid).requires_grad_() for _ in VISION_LEVELS]
        with torch.no_grad():
            maps, pooled = literal(self.pyramid, self.taps)
        self.pulls = [torch.randn_like(x) for x in (*maps.values(), *pooled.values())]
        self.wanted = [*self.taps, *self.pyramid.parameters()]

    def step(self, form: str) -> list[Tensor]:
        """Maps, pooled levels, and the gradients of taps and weights."""
        for leaf in self.wanted:
            leaf.grad = None
        maps, pooled = FORMS[form](self.pyramid, self.taps)
        outputs = [table[name] for table in (maps, pooled) for name in reversed(VISION_LEVELS)]
        torch.autograd.backward(outputs, self.pulls)
        return [*outputs, *(leaf.grad for leaf in self.wanted if leaf.grad is not None)]


def require_equal(bench: Bench) -> float:
    """Both forms give the same, to fp32; the largest difference of a map."""
    differences = []
    for one, other in zip(bench.step("ours"), bench.step("literal"), strict=True):
        apart = float((one - other).detach().abs().max() / other.detach().abs().max())
        assert apart <= 2e-5, (one.shape, apart)
        differences.append(apart)
    return max(differences)


def operations(bench: Bench, form: str) -> float:
    """GFLOP of a step, 2 a multiply and add."""
    with FlopCounterMode(display=False) as counter:
        bench.step(form)
    return float(counter.get_total_flops()) / 1e9


def timed(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU by form, one of each a round; the first round warms up."""
    by_form: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(rounds + 1):
        for name in FORMS:
            since = time.process_time()
            bench.step(name)
            by_form[name].append(time.process_time() - since)
    return {name: values[1:] for name, values in by_form.items()}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--batch", type=int, default=16)
    cli.add_argument("--grid", type=int, default=14)
    cli.add_argument("--channels", type=int, default=768)
    cli.add_argument("--width", type=int, default=256)
    cli.add_argument("--rounds", type=int, default=7)
    return cli


def main() -> None:
    """Check, measure and print."""
    args = parser().parse_args()
    torch.set_num_threads(1)
    difference = require_equal(Bench(2, args.grid, args.channels, args.width))
    bench = Bench(args.batch, args.grid, args.channels, args.width)
    seconds = timed(bench, args.rounds)
    counts = {name: operations(bench, name) / args.batch for name in FORMS}
    ratio = statistics.median(a / b for a, b in zip(seconds["literal"], seconds["ours"], strict=True))
    print(f"equal to {difference:.0e} of the largest element")
    print(f"{'':28}{'literal':>10}{'ours':>10}{'literal / ours':>16}{'goal':>7}")
    middle = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    print(f"{f'ms at {args.batch} pictures':28}{middle['literal']:10.0f}{middle['ours']:10.0f}{ratio:16.2f}{GOAL:>7}")
    counted = counts["literal"] / counts["ours"]
    print(f"{'GFLOP a picture':28}{counts['literal']:10.2f}{counts['ours']:10.2f}{counted:16.2f}")


if __name__ == "__main__":
    main()
