"""An update of a small image tower on a CPU: depthwise convolutions that pad small maps first, and torch's own.

    python benchmarks/small_maps.py --batch 64 --rounds 5

EfficientNet-Lite0 at 64 px, all trained, random weights, forward and backward, in one process of one thread. Values
and gradients are compared before anything is timed; seconds of CPU by turns, and the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from cmapkd_core.config import ModelConfig
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build
from cmapkd_core.models.small_maps import PaddedFirst

FORMS = {"torch's": nn.Conv2d, "padded first": PaddedFirst}


def step(backbone: Backbone, convolutions: list[nn.Conv2d], form: str, pictures: Tensor) -> Tensor:
    """The gradient of every weight of the image tower, one vector."""
    for part in convolutions:
        part.__class__ = FORMS[form]
    backbone.zero_grad()
    features = backbone.vision(pictures)
    assert features.raw is not None
    (features.raw.square().mean() + sum(tap.square().mean() for tap in features.taps)).backward()
    weights = backbone.model.visual.parameters()
    return torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--batch", type=int, default=64)
    cli.add_argument("--rounds", type=int, default=5)
    return cli


def main() -> None:
    """Check, measure and print."""
    args = parser().parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        backbone = build(ModelConfig("lite0-minilm3", "random"), 0, Path(cache)).train()
    convolutions: list[nn.Conv2d] = [part for part in backbone.modules() if isinstance(part, PaddedFirst)]
    pictures = torch.randn(args.batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, other = (step(backbone, convolutions, form, pictures) for form in FORMS)
    apart = float((one - other).norm() / one.norm())
    assert apart < 1e-4, apart
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(args.rounds):
        for form in FORMS:
            since = time.process_time()
            step(backbone, convolutions, form, pictures)
            seconds[form].append(time.process_time() - since)
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f"gradients equal to {apart:.0e} of their norm, {len(convolutions)} depthwise convolutions that pad")
    print(f"{'':24}" + "".join(f"{form:>14}" for form in FORMS) + f"{'ratio':>8}")
    middle = "".join(f"{1e3 * statistics.median(values):14.0f}" for values in seconds.values())
    print(f"{f'ms at {args.batch} pictures':24}{middle}{ratio:8.2f}")


if __name__ == "__main__":
    main()
