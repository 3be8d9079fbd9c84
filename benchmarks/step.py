"""R1: floating point operations of a distillation step, in those of a plain CLIP step of the same student.

    python benchmarks/step.py --batch 256
    python benchmarks/step.py --batch 256 --tokens 40       # what is behind the longest caption is left off

The real ViT-L/14 and ViT-B/16 on torch's meta device, which has sizes and no numbers: what is counted are the matrix
products, convolutions and attention of forward and backward. Stored: the teacher's levels are read. Live: its towers
run too. A step of phase fine that measures utilities is counted with all pairs and with --measured of them; the mean
over --every steps is what joint training costs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cmapkd_core.catalog import load
from cmapkd_core.config import METHOD, Recipe, SelectorConfig
from cmapkd_core.data.loader import Batch
from cmapkd_core.engine.passes import weighted_total
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models.architecture import read_architecture
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.construct import construct
from cmapkd_core.models.frozen_teacher import Embeddings, Teacher, diagonal_prior
from cmapkd_core.recipes import resolve

CONTEXT = 77  # tokens, whatever a caption has, in the plain step
GOALS = {"joint, mean": "1.10", "live, fine": "2.45", "statistics": "0.50"}


def on_meta(name: str) -> Backbone:
    """A model without numbers."""
    with torch.device("meta"):
        architecture = read_architecture(name)
        return construct(name, architecture.config, architecture.files, seed=0).to("meta")


def pairs(size: int, sides: dict[str, Backbone], tokens: int) -> Batch:
    """`size` pairs, the longest of whose captions has so many tokens."""
    images = {n: torch.empty(size, 3, *(2 * [m.spec.image_size]), device="meta") for n, m in sides.items()}
    ids = {n: torch.zeros(size, tokens, dtype=torch.long, device="meta") for n in sides}
    return Batch([str(i) for i in range(size)], torch.arange(size), images, ids, [])


def operations(step: Callable[[], object]) -> float:
    """Of one call."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


class Bench:
    """Methods around the real pair of models, and a batch."""

    def __init__(self, batch: int, tokens: int = CONTEXT) -> None:
        self.teacher_model, self.student = on_meta("ViT-L-14"), on_meta("ViT-B-16")
        base = resolve("paper", "none", f"optim.batch={batch}")
        with torch.device("meta"):
            levels = LevelTower(self.teacher_model.spec, self.student.spec.vision_grids[2], base.pyramid.width)
            self.teacher = Teacher(self.teacher_model, levels, diagonal_prior())
        self.batch = pairs(batch, {"student": self.student, "teacher": self.teacher_model}, tokens)

    def method(self, recipe: Recipe) -> Method:
        """A row's method around the student."""
        with torch.device("meta"):
            made: Method = load("method", recipe.method.name, METHODS)(recipe, self.student, self.teacher)
        if recipe.method.name == METHOD:
            made.memory._held = 1  # a number that meta tensors do not have
        return made.train().requires_grad_(True)

    def stored(self, levels: tuple[str, ...]) -> Callable[[], Embeddings]:
        """The teacher's targets from what was stored once."""
        images, tokens = self.batch.images["teacher"], self.batch.tokens["teacher"]
        with torch.no_grad():
            cached: dict[str, Tensor] = self.teacher.image_outputs(images, levels)
            cached |= self.teacher.text_outputs(tokens, levels)
        return lambda: self.teacher.cached_targets(cached, levels)

    def live(self, levels: tuple[str, ...]) -> Callable[[], Embeddings]:
        """The teacher's targets from its towers."""
        images, tokens = self.batch.images["teacher"], self.batch.tokens["teacher"]
        return lambda: self.teacher.targets(images, tokens, levels)

    def step(self, recipe: Recipe, phase: str, number: int = 1, live: bool = False) -> float:
        """Forward and backward of a phase's step; `number` 0 measures utilities where the phase does."""
        method, plan = self.method(recipe), getattr(recipe.schedule, phase)
        levels, weights = method.active(plan), recipe.method.weights.within(plan)
        targets = (self.live if live else self.stored)(levels) if METHODS[recipe.method.name].teacher else lambda: None
        return operations(lambda: weighted_total(method(self.batch, targets(), plan, number).terms, weights).backward())

    def statistics(self, recipe: Recipe) -> float:
        """A batch of the pass at the end of warm-up."""
        method = self.method(recipe).eval()
        targets = self.stored(method.active(recipe.schedule.fine))
        return operations(lambda: method.statistics(self.batch, targets()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--batch", type=int, default=256)
    cli.add_argument("--every", type=int, default=SelectorConfig().every)
    cli.add_argument("--measured", type=float, default=SelectorConfig().measured)
    cli.add_argument("--tokens", type=int, default=CONTEXT, help="of the longest caption of a batch, in our steps")
    return cli


def main() -> None:
    """Count and print."""
    args = parser().parse_args()
    bench, size = Bench(args.batch, args.tokens), f"optim.batch={args.batch}"
    plain = Bench(args.batch).step(resolve("paper", "finetune", size), "fine")
    whole, some = (resolve("paper", "none", f"{size} selector.measured={share}") for share in (1.0, args.measured))
    flops = {phase: bench.step(whole, phase) for phase in ("coarse", "medium", "fine")}
    all_measured, some_measured = bench.step(whole, "fine", 0), bench.step(some, "fine", 0)
    means = [flops["fine"] + (x - flops["fine"]) / args.every for x in (all_measured, some_measured)]
    rows = {
        **flops,
        "fine, all pairs measured": all_measured,
        f"fine, {args.measured:g} of them": some_measured,
        "joint, mean, all pairs": means[0],
        "joint, mean": means[1],
        "live, fine": bench.step(whole, "fine", live=True),
        "statistics, all pairs": bench.statistics(whole),
        "statistics": args.measured * bench.statistics(whole),
    }
    print(f"plain CLIP step of ViT-B/16: {plain / args.batch / 1e9:.1f} GFLOP a pair")
    print(f"{'':28}{'/ plain':>9}{'goal':>8}")
    for name, count in rows.items():
        print(f"{name:28}{count / plain:9.3f}{GOALS.get(name, ''):>8}")


if __name__ == "__main__":
    main()
