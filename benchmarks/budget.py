"""What training takes on GPUs that are not here: memory by tensor and seconds a step, computed from the real models.

    python benchmarks/budget.py --gpus 8 --memory 32 --peak 125 --batch 32 256
    python benchmarks/budget.py --suite core table4 terms --seeds 5

Nothing is measured. FLOPs are counted as in benchmarks/step.py. Activations are the storages that autograd keeps for a
backward pass of ViT-B/16 with openai's activation under fp16 autocast, counted on fake tensors at two batch sizes;
their difference is what a pair takes. CUDA's own kernels may keep a little else for attention. Weights are counted.
Assumptions, in words: docs/gpus.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.step import Bench, on_meta
from cmapkd_core.catalog import load
from cmapkd_core.config import ALL_LEVELS, STAGE_PHASES
from cmapkd_core.data.loader import Batch
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models import tags
from cmapkd_core.models.architecture import read_architecture
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import Levels, LevelTower
from cmapkd_core.models.construct import construct
from cmapkd_core.models.frozen_teacher import LevelTargets, Teacher, diagonal_prior
from cmapkd_core.places import stage_url
from cmapkd_core.recipes import SUITES, resolve, row_overrides

TEACHER, STUDENT = "ViT-L-14", "ViT-B-16"
GIB, MIB = 2**30, 2**20
OVERHEAD = 0.6  # GiB: CUDA's context, the libraries' workspaces
FREE = 0.10  # of the rest, lost between the allocator's blocks
SHARES = (0.25, 0.35, 0.45)  # of the peak that a step reaches
STORED = "teacher_fit.views=4 teacher_fit.store=levels"  # of suites: the teacher runs once
BYTES = 28  # a parameter, that AdamW reads and writes: weight, gradient, two moments


@dataclass(frozen=True)
class Saved:
    """Bytes that a pair leaves for the backward pass: in the towers, and in levels and losses. inputs: of blocks."""

    towers: int
    rest: int
    inputs: int
    blocks: int


class Pair:
    """The paper's method around a real student, beside a teacher without numbers."""

    def __init__(self) -> None:
        self.student = with_openais_activation(STUDENT)
        backbone = on_meta(TEACHER)
        self.recipe = resolve("paper")
        levels = LevelTower(backbone.spec, self.student.spec.vision_grids[2], self.recipe.pyramid.width)
        self.teacher = Teacher(backbone, levels, diagonal_prior())
        made: Method = load("method", self.recipe.method.name, METHODS)(self.recipe, self.student, self.teacher)
        made.memory._held, made.amp = 1, torch.float16  # a number that fake tensors do not have
        self.method = made.train()

    def targets(self, batch: int) -> LevelTargets:
        """Of the shapes of a stored teacher's."""
        levels, width = self.teacher.levels, self.recipe.pyramid.width
        maps = {name: torch.randn(batch, width, size, size) for name, size in levels.pyramid.sizes.items()}
        vectors = {name: torch.randn(batch, width) for name in ALL_LEVELS}
        embeddings = (torch.randn(batch, self.teacher.backbone.spec.embed_dim) for _ in range(2))
        made = Levels(maps, vectors, dict(vectors))
        return LevelTargets(*embeddings, torch.tensor(100.0), torch.tensor(14.0), made, diagonal_prior())

    def saved(self) -> Saved:
        """What a pair keeps, by two batches of which one is a pair larger."""
        (towers, whole), (more_towers, more) = (self._kept(batch) for batch in (2, 3))
        spec, model = self.student.spec, self.student.model
        sides = {
            "image": (spec.vision_grids[0] ** 2 + 1, spec.vision_widths[0], len(model.visual.transformer.resblocks))
        }
        sides["text"] = (spec.context_length, spec.text_widths[0], len(model.transformer.resblocks))
        inputs = sum(4 * tokens * width * blocks for tokens, width, blocks in sides.values())
        rest = (more - more_towers) - (whole - towers)
        return Saved(more_towers - towers, rest, inputs, min(blocks for *_, blocks in sides.values()))

    def _kept(self, count: int) -> tuple[int, int]:
        """Bytes of all storages that autograd keeps of `count` pairs: of the towers, and of the whole forward pass."""
        kept: dict[int, Tensor] = {}
        plain, after = type(self.method).towers, []

        def pack(x: Tensor) -> Tensor:
            kept[x.untyped_storage()._cdata] = x
            return x

        def towers(batch: Batch) -> object:
            outputs = plain(self.method, batch)
            after.append(size_of(kept))
            return outputs

        self.method.towers = towers  # type: ignore[method-assign,assignment]
        with FakeTensorMode(allow_non_fake_inputs=True):
            images, tokens = torch.randn(count, 3, 224, 224), torch.zeros(count, 77, dtype=torch.long)
            batch = Batch([""] * count, torch.arange(count), {"student": images}, {"student": tokens}, [])
            with saved_tensors_hooks(pack, lambda x: x):
                self.method(batch, self.targets(count), self.recipe.schedule.fine, 1)
            return after[0], size_of(kept)


def size_of(kept: dict[int, Tensor]) -> int:
    """Bytes of their storages."""
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def with_openais_activation(name: str) -> Backbone:
    """As the recipe's tag has it: QuickGELU keeps more for the backward pass than GELU."""
    architecture = read_architecture(name, tags.facts_of(name, "openai"))
    return construct(name, architecture.config, architecture.files, seed=0)


def count(module: torch.nn.Module, matrices: bool = False) -> int:
    """Parameters; `matrices`: those alone that autocast makes a half copy of."""
    return sum(p.numel() for p in module.parameters() if p.dim() > 1 or not matrices)


def memory(pair: Pair, saved: Saved, batch: int, live: bool, checkpointed: bool) -> dict[str, float]:
    """GiB of a GPU by what they hold."""
    params, side = count(pair.method), pair.teacher
    maps = 4 * sum(pair.recipe.pyramid.width * size**2 for size in side.levels.pyramid.sizes.values())
    laterals = 326_144  # fp16, as stored: tests/models/test_pyramid.py
    block = saved.towers / saved.blocks
    towers = (saved.inputs + block) if checkpointed else saved.towers
    wide = pair.teacher.backbone.spec.vision_grids[0] ** 2 + 1
    width = pair.teacher.backbone.spec.vision_widths[0]
    # Its four taps in fp32, and of one block at a time the state and three half forms of the widest layer.
    running = wide * width * (4 * 4 + 4 + 3 * 4 * 2) if live else laterals
    sizes = {
        "weights of student, levels, ALSN (fp32)": 4 * params,
        "their gradients (fp32)": 4 * params,
        "DDP's buckets of gradients": 4 * params,
        "AdamW's two moments (fp32)": 8 * params,
        "half copies of matrices (autocast)": 2 * count(pair.method, matrices=True),
        "teacher: weights (fp32)": 4 * (count(side) if live else count(side.levels)),
        "teacher: at work" if live else "teacher: stored laterals (fp16)": batch * running,
        "teacher: maps of levels (fp32)": batch * maps,
        "student: activations of the towers": batch * towers,
        "student: levels and losses": batch * saved.rest,
    }
    return {name: size / GIB for name, size in sizes.items()}


def needed(parts: dict[str, float]) -> float:
    """GiB that a GPU has to have."""
    return sum(parts.values()) / (1 - FREE) + OVERHEAD


def operations(batch: int) -> dict[str, float]:
    """FLOP of a pair, by what is trained; utilities are measured as the recipe says."""
    bench, size = Bench(batch), f"optim.batch={batch}"
    paper = resolve("paper", "none", size)
    flops = {"plain CLIP": bench.step(resolve("paper", "finetune", size), "fine")}
    flops |= {name: bench.step(paper, name) for name in ("coarse", "medium", "fine")}
    measuring = bench.step(paper, "fine", 0)
    flops["joint, stored teacher"] = flops["fine"] + (measuring - flops.pop("fine")) / paper.selector.every
    live = bench.step(paper, "fine", live=True)
    flops["joint, live teacher"] = live + flops["joint, stored teacher"] - bench.step(paper, "fine")
    flops["joint, stored, checkpointed"] = flops["joint, stored teacher"] + flops["plain CLIP"] / 3
    return {name: flop / batch for name, flop in flops.items()}


def print_memory(pair: Pair, batches: list[int], available: float) -> None:
    """One table, a column for each batch and way."""
    ways = [(batch, live, kept) for batch in batches for live in (False, True) for kept in (False, True)]
    saved = pair.saved()
    columns = [memory(pair, saved, *way) for way in ways]
    heads = [f"{b}, {'live' if live else 'stored'}{', ckpt' if kept else ''}" for b, live, kept in ways]
    towers, rest = saved.towers / MIB, saved.rest / MIB
    print(f"a pair keeps {towers:.0f} MiB of activations in the towers, {rest:.1f} in levels and losses")
    print("| GiB of a GPU, pairs a GPU | " + " | ".join(heads) + " |\n|---|" + "---|" * len(heads))
    for name in dict.fromkeys(name for column in columns for name in column):
        print(f"| {name} | " + " | ".join(f"{c[name]:.2f}" if name in c else "" for c in columns) + " |")
    print("| all, with context and fragmentation | " + " | ".join(f"{needed(c):.1f}" for c in columns) + " |")
    fits = ["yes" if needed(c) <= available else "**no**" for c in columns]
    print(f"| fits {available:g} GB | " + " | ".join(fits) + " |")


def trainings(suite: str, seeds: int) -> Counter[tuple[str, int]]:
    """How often a suite of recipe calibrated with ALSN trains (a row of `operations`, epochs); equal stages once."""
    found = {}
    for row in SUITES[suite]:
        for seed in range(seeds):
            recipe = resolve("calibrated", row, row_overrides(row, f"{STORED} selector.kind=alsn"), seed)
            levels = "pyramid" in METHODS[recipe.method.name].groups
            for stage in ("warmup", "joint"):
                for phase in STAGE_PHASES[stage]:
                    name = "joint, stored teacher" if stage == "joint" else phase
                    epochs = getattr(recipe.schedule, phase).epochs
                    found[stage_url("", stage, recipe), phase] = (name if levels else "plain CLIP", epochs)
    return Counter(found.values())


def print_suites(args: argparse.Namespace) -> None:
    """GPU hours of whole suites: the students' trainings, and once the teacher's pass over the pictures."""
    flop, params, each = operations(args.counted), count(Pair().method), args.batch[0]
    steps, seconds = args.pairs // (each * args.gpus), BYTES * params / args.bandwidth / 1e9
    teacher = flop["joint, live teacher"] - flop["joint, stored teacher"]
    fit = resolve("calibrated", overrides=STORED).teacher_fit
    passes = fit.views + fit.pyramid.epochs
    print(
        "| suite | students | "
        + " | ".join(f"GPU hours at {100 * s:.0f} %" for s in SHARES)
        + " |\n|---|---|---|---|---|"
    )
    for suite in args.suite:
        runs = trainings(suite, args.seeds)
        hours = []
        for share in SHARES:
            rate = share * args.peak * 1e12
            total = sum(n * epochs * (each * flop[name] / rate + seconds) for (name, epochs), n in runs.items())
            hours.append(args.gpus * steps * (total + passes * each * teacher / rate) / 3600)
        students = len(SUITES[suite]) * args.seeds
        print(f"| {suite} | {students} | " + " | ".join(f"{h:.0f}" for h in hours) + " |")


def print_seconds(pair: Pair, args: argparse.Namespace) -> None:
    """Milliseconds a step by the share of the peak, and of what is no product."""
    flop, params = operations(args.counted), count(pair.method)
    update = BYTES * params / args.bandwidth / 1e9
    exchange = 2 * (args.gpus - 1) / args.gpus * 4 * params / args.link / 1e9
    heads = [f"{b} pairs at {100 * s:.0f} %" for b in args.batch for s in SHARES]
    print("\n| ms a step | GFLOP a pair | " + " | ".join(heads) + " |\n|---|---|" + "---|" * len(heads))
    for name, each in flop.items():
        times = [1e3 * (b * each / (s * args.peak * 1e12) + update) for b in args.batch for s in SHARES]
        print(f"| {name} | {each / 1e9:.0f} | " + " | ".join(f"{t:.0f}" for t in times) + " |")
    print(f"\nof it AdamW {1e3 * update:.1f} ms")
    print(f"beside it {args.gpus} GPUs sum their gradients in {1e3 * exchange:.0f} ms")
    stages = {
        "warm-up": (10, "medium"),
        "joint": (10, "joint, stored teacher"),
        "joint, live": (10, "joint, live teacher"),
    }
    batch = args.batch[0]
    steps = args.pairs // (batch * args.gpus)
    for stage, (epochs, name) in stages.items():
        hours = [epochs * steps * (batch * flop[name] / (s * args.peak * 1e12) + update) / 3600 for s in SHARES]
        print(
            f"{stage}, {epochs} epochs of {args.pairs} pairs, {batch} a GPU: "
            + " / ".join(f"{h:.2f}" for h in hours)
            + " h"
        )


def parser() -> argparse.ArgumentParser:
    """The command line; its defaults are a V100 SXM2's, eight of them, and COCO's training pictures."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--gpus", type=int, default=8)
    cli.add_argument("--memory", type=float, default=32, help="GiB of a GPU")
    cli.add_argument("--peak", type=float, default=125, help="TFLOP/s of half precision")
    cli.add_argument("--bandwidth", type=float, default=800, help="GB/s of a GPU's memory, as it is reached")
    cli.add_argument("--link", type=float, default=120, help="GB/s between GPUs, as it is reached")
    cli.add_argument("--batch", type=int, nargs="*", default=[32, 256], help="pairs a GPU")
    cli.add_argument("--pairs", type=int, default=113_287)
    cli.add_argument("--counted", type=int, default=32, help="pairs of the batch that FLOPs are counted on")
    cli.add_argument("--suite", nargs="*", default=[], choices=list(SUITES), help="GPU hours of these, and no more")
    cli.add_argument("--seeds", type=int, default=5, help="of each row of a suite")
    return cli


def main() -> None:
    """Compute and print."""
    args = parser().parse_args()
    if args.suite:
        print_suites(args)
        return
    pair = Pair()
    print_memory(pair, args.batch, args.memory)
    print_seconds(pair, args)


if __name__ == "__main__":
    main()
