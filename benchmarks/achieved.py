"""R8: floating point operations a second of a training step, by those of a matrix product of the same run.

    python benchmarks/achieved.py --batch 4 --rounds 3

ViT-B/16 at its real size in fp32, one thread, CPU seconds; of whole updates: forward, backward, clipping, AdamW. Beside
open_clip's plain step stand ours without a teacher and in joint training with the levels of ViT-L/14 stored. Operations
are those that torch counts (matrix products, convolutions, attention), so what else a step does lowers its share. By
turns, the median of the ratios to the product of the same round. First both plain steps are shown to have one loss and
one gradient. On a GPU `make gpu` has the same ratio, in the type that is trained in.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import on_meta
from cmapkd_core.catalog import load
from cmapkd_core.config import ALL_LEVELS, TEXT_LEVELS, ModelConfig, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.engine.loop import freeze_all_but
from cmapkd_core.engine.optim import Optimiser, trainable
from cmapkd_core.engine.passes import weighted_total
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.build import build
from cmapkd_core.models.frozen_teacher import Teacher, diagonal_prior
from cmapkd_core.recipes import resolve

GOAL = "0.80"
SIDE = 2048  # of the matrices of the product


class Bench:
    """One student, a batch of noise, and the steps that are taken with it."""

    def __init__(self, batch: int) -> None:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            self.student = build(ModelConfig("ViT-B-16", "random"), 0, Path(folder)).train()
        self.size = f"optim.batch={batch}"
        tokens = torch.randint(1, 49000, (batch, 77))
        tokens[:, -1] = 49407  # captions as long as the context
        images = torch.randn(batch, 3, 224, 224)
        self.batch = Batch([], torch.arange(batch), {"student": images}, {"student": tokens}, [])
        self.steps: dict[str, Callable[[], None]] = {
            "open_clip, plain": self.plain(),
            "ours, no teacher": self.ours(resolve("paper", "finetune", self.size)),
            "ours, joint, stored": self.ours(resolve("paper", "none", self.size)),
        }

    def plain(self) -> Callable[[], None]:
        """An update as open_clip's trainer takes it."""
        model, loss = self.student.model, ClipLoss()
        adamw = torch.optim.AdamW(model.parameters(), lr=1e-9, betas=(0.9, 0.98), eps=1e-6, fused=True)

        def step() -> None:
            adamw.zero_grad()
            plain_loss(model, loss, self.batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()

        return step

    def ours(self, recipe: Recipe) -> Callable[[], None]:
        """An update of phase fine; rates are so small that the student stays the one that it is."""
        teacher = self.teacher(recipe) if METHODS[recipe.method.name].teacher else None
        method: Method = load("method", recipe.method.name, METHODS)(recipe, self.student, teacher).train()
        phase, weights = recipe.schedule.fine, recipe.method.weights.within(recipe.schedule.fine)
        groups, levels = trainable(method.groups(phase), phase), method.active(phase)
        chosen = [p for params in groups.values() for p in params]
        optimiser = Optimiser(groups, phase, recipe.optim, steps=10**9, scaled=False)
        cached = stored(len(self.batch.index), teacher) if teacher else {}

        def step() -> None:
            freeze_all_but(method, chosen)
            optimiser.set_rates(0)
            targets = teacher.cached_targets(cached, levels) if teacher else None
            weighted_total(method(self.batch, targets, phase, 1).terms, weights).backward()
            optimiser.clip()
            optimiser.update()

        return step

    def teacher(self, recipe: Recipe) -> Teacher:
        """ViT-L/14 without its towers' numbers, which a stored teacher never reads."""
        backbone = on_meta("ViT-L-14")
        backbone.model.logit_scale = nn.Parameter(torch.tensor(4.6))
        levels = LevelTower(backbone.spec, self.student.spec.vision_grids[2], recipe.pyramid.width)
        return Teacher(backbone, levels, diagonal_prior())


def plain_loss(model: nn.Module, loss: ClipLoss, batch: Batch) -> Tensor:
    """open_clip's, of the student alone: a scalar."""
    image, text, scale = model(batch.images["student"], batch.tokens["student"])
    result: Tensor = loss(image, text, scale)
    return result


def stored(batch: int, teacher: Teacher) -> dict[str, Tensor]:
    """Noise of the form of what a store keeps, by name."""
    width, sizes = teacher.levels.pyramid.laterals["P2"].out_features, teacher.levels.pyramid.sizes
    grid = teacher.levels.pyramid.grid
    shapes = {name: (min(grid, size), min(grid, size)) for name, size in sizes.items()} | dict.fromkeys(TEXT_LEVELS, ())
    tensors = {name: torch.randn(batch, width, *shapes[name]).half() for name in ALL_LEVELS}
    embeddings = {name: torch.randn(batch, teacher.backbone.spec.embed_dim) for name in ("image", "text")}
    return tensors | {name: F.normalize(x, dim=-1) for name, x in embeddings.items()}


def require_equal(bench: Bench) -> None:
    """Both plain steps have the same loss and gradients."""
    recipe, model = resolve("paper", "finetune", bench.size), bench.student.model
    method: Method = load("method", recipe.method.name, METHODS)(recipe, bench.student, None)
    params = [p for name, p in model.named_parameters() if "logit" not in name]
    totals = (
        method(bench.batch, None, recipe.schedule.fine, 1).terms["task"],
        plain_loss(model, ClipLoss(), bench.batch),
    )
    assert torch.allclose(*totals, rtol=1e-5), totals
    for one, other in zip(*(torch.autograd.grad(total, params) for total in totals), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-12)


def product() -> float:
    """FLOP/s of a matrix product."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    since = time.process_time()
    for _ in range(3):
        a @ b
    return 3 * 2 * SIDE**3 / (time.process_time() - since)


def measured(bench: Bench, rounds: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """FLOP of each step, and its FLOP/s by the product's, one of each a round; the first round warms up and counts."""
    flop: dict[str, float] = {}
    by_step: dict[str, list[float]] = {name: [] for name in bench.steps}
    for name, step in bench.steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        flop[name] = float(counter.get_total_flops())
    for _ in range(rounds):
        for name, step in bench.steps.items():
            gemm, since = product(), time.process_time()
            step()
            by_step[name].append(flop[name] / (time.process_time() - since) / gemm)
    return flop, by_step


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--batch", type=int, default=4)
    cli.add_argument("--rounds", type=int, default=3)
    return cli


def main() -> None:
    """Check, measure and print."""
    args = parser().parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.batch)
    require_equal(bench)
    flop, by_step = measured(bench, args.rounds)
    print(f"{'':24}{'GFLOP a pair':>14}{'of the product':>16}{'goal':>8}")
    for name, shares in by_step.items():
        goal = GOAL if name.startswith("ours") else ""
        print(f"{name:24}{flop[name] / args.batch / 1e9:14.1f}{statistics.median(shares):16.2f}{goal:>8}")


if __name__ == "__main__":
    main()
