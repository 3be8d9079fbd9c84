"""R7: bytes of a crop in a store of the teacher's levels beside its full maps, and what each form does to the terms.

    python benchmarks/stored.py --pairs 64
    python benchmarks/stored.py --teacher runs/demo/teacher/KEY --shards runs/demo/prepare/KEY

Bytes: of ViT-L/14 beside ViT-B/16, on torch's meta device. A naive store holds P2..P5 in half precision, on the
teacher's own grid of 16 or on the student's of 14. Terms: of the demo's pretrained pair on pairs of its pictures, with
levels as they were drawn and a student as it begins, or with what a run has fitted and trained. Relative differences
from the running teacher's, and the cosine of the gradient by all parameters of the student. Near: the intra term of a
student whose maps are the teacher's with noise, a hundredth apart, where the same error weighs most. Scales: the
largest relative difference of a level's distance, for students so far apart, with a scale for less or more of the
laterals.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cmapkd_core.catalog import LEVEL_CODES, load
from cmapkd_core.config import ALL_LEVELS, METHOD, VISION_LEVELS, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.losses.intra import map_distance
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.build import build, load_model
from cmapkd_core.models.frozen_teacher import LevelTargets, Teacher, diagonal_prior
from cmapkd_core.models.pyramid import VisualPyramid, level_sizes
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.method_io import METHOD_STATE, common_grid, load_method_state, load_teacher
from cmapkd_core.stages.training import train_loader

sys.path.insert(0, str(Path(__file__).parent))  # where it is read as a module
from step import on_meta

GOALS = {"float16": "8.5", "int8": "17"}
TERMS = ("intra", "align", "relation")
Coded = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
CODES: dict[str, Coded] = {name: load("code of levels", name, LEVEL_CODES) for name in LEVEL_CODES}


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes."""
    return sum(x.numel() * x.element_size() for x in tensors.values())


def full_maps(grid: int, width: int) -> int:
    """Bytes of P2..P5 in half precision."""
    return sum(side * side for side in level_sizes(grid).values()) * width * 2


def show_bytes() -> None:
    """Of a crop."""
    teacher, student, width = on_meta("ViT-L-14"), on_meta("ViT-B-16"), resolve("paper").pyramid.width
    own, common = teacher.spec.vision_grids[0], common_grid(student)
    with torch.device("meta"):
        pyramid = VisualPyramid(teacher.spec.vision_widths, common, width)
        shapes = zip(teacher.spec.vision_widths, teacher.spec.vision_grids, strict=True)
        laterals = pyramid.laterals_of([torch.empty(1, w, side, side) for w, side in shapes], VISION_LEVELS)
    naive = full_maps(own, width), full_maps(common, width)
    print(
        f"ViT-L/14 beside ViT-B/16, a crop: full maps {naive[0] / 1024:.1f} KiB at {own}, "
        f"{naive[1] / 1024:.1f} at {common}"
    )
    print(f"{'stored as':12}{'KiB':>8}{f'at {own} /':>9}{'goal':>7}{f'at {common} /':>9}")
    for name, coded in CODES.items():
        count = size(coded(laterals))
        print(f"{name:12}{count / 1024:8.1f}{naive[0] / count:9.2f}{GOALS[name]:>7}{naive[1] / count:9.2f}")


class Pair:
    """A teacher with its levels, a method around a student, and a batch of their pairs."""

    def __init__(self, args: argparse.Namespace, root: str) -> None:
        shards = args.shards or prepare.run(Request("demo", root, overrides=f"data.size={4 * args.pairs}"))
        self.recipe: Recipe = resolve("demo", "no_alsn", f"optim.batch={args.pairs}")
        torch.manual_seed(0)
        opened = Artifact.open(args.student) if args.student else None
        student = load_model(opened.fetch_folder("model")) if opened else build(self.recipe.student, 0, None)
        self.teacher = self._teacher(args.teacher, common_grid(student))
        self.method: Method = load("method", METHOD, METHODS)(self.recipe, student, self.teacher)
        if opened:
            load_method_state(self.method, opened.fetch(METHOD_STATE))
        sides = {"student": side_of(student), "teacher": side_of(self.teacher.backbone)}
        stream = train_loader(
            self.recipe, open_shards(Artifact.open(shards)), sides, batch=args.pairs, fraction=1.0, seed=0
        )
        self.batch: Batch = next(stream.batches(0, 1))

    def _teacher(self, url: str, grid: int) -> Teacher:
        if url:
            return load_teacher(Artifact.open(url), grid, self.recipe.pyramid.width)
        backbone = build(self.recipe.teacher, 0, None)
        return Teacher(backbone, LevelTower(backbone.spec, grid, self.recipe.pyramid.width), diagonal_prior())

    def outputs(self) -> dict[str, Tensor]:
        """What is coded and stored of the batch."""
        images, tokens = self.batch.images["teacher"], self.batch.tokens["teacher"]
        return self.teacher.image_outputs(images, ALL_LEVELS) | self.teacher.text_outputs(tokens, ALL_LEVELS)

    def terms(self, targets: LevelTargets) -> dict[str, tuple[float, Tensor]]:
        """Each term, and its gradient by the student's parameters."""
        terms = self.method.eval()(self.batch, targets, self.recipe.schedule.fine, 1).terms
        params = [p for p in self.method.parameters() if p.requires_grad]
        by_term = {}
        for name in TERMS:
            given = torch.autograd.grad(terms[name], params, retain_graph=True, allow_unused=True)
            by_term[name] = float(terms[name].detach()), torch.cat([x.flatten() for x in given if x is not None])
        return by_term


def near(maps: dict[str, Tensor], noise: float = 0.14) -> dict[str, Tensor]:
    """Maps [B,W,h,h] with noise of a share of each vector's length."""
    draw = torch.Generator().manual_seed(0)
    return {
        n: x + noise * x.pow(2).mean(1, keepdim=True).sqrt() * torch.randn(x.shape, generator=draw)
        for n, x in maps.items()
    }


def intra(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> float:
    """The maps' mean distance."""
    return float(torch.stack([map_distance(student[n], teacher[n]).mean() for n in teacher]).mean())


def in_8_bits(x: Tensor, alike: tuple[int, ...], steps: int = 0) -> Tensor:
    """Laterals [B,W,h,h] as they come back with a scale for all along the axes `alike`.

    Args:
        steps: of a scale to its double; 0: any scale.
    """
    scale = x.abs().amax(alike, keepdim=True) / 127
    if steps:
        scale = (steps * scale.log2()).ceil().div(steps).exp2()
    return (x / scale).round() * scale


SCALES: dict[str, tuple[tuple[int, ...], int]] = {
    "level of a crop": ((1, 2, 3), 0),
    "channel of a batch": ((0, 2, 3), 0),
    "channel of a crop": ((2, 3), 0),
    "vector": ((1,), 0),
    "vector, 2^(1/4)": ((1,), 4),
    "vector, 2": ((1,), 1),
}


def show_scales(pair: Pair) -> None:
    """By what has a scale of its own."""
    pyramid, laterals = pair.teacher.levels.pyramid, {n: pair.outputs()[n] for n in VISION_LEVELS}
    exact, _ = pyramid.merge(laterals, VISION_LEVELS)
    students = [near(exact, noise) for noise in (0.2, 0.5, 1.5)]
    distances = [{n: float(map_distance(one[n], exact[n]).mean()) for n in exact} for one in students]
    print(f"{'a scale for a':20}" + "".join(f"{max(own.values()):10.3f}" for own in distances))
    for name, (alike, steps) in SCALES.items():
        coded, _ = pyramid.merge({n: in_8_bits(x, alike, steps) for n, x in laterals.items()}, VISION_LEVELS)
        worst = [
            max(abs(float(map_distance(one[n], coded[n]).mean()) / own[n] - 1) for n in exact)
            for one, own in zip(students, distances, strict=True)
        ]
        print(f"{name:20}" + "".join(f"{x:10.1e}" for x in worst))


def show_terms(pair: Pair) -> None:
    """Relative differences and cosines."""
    outputs = pair.outputs()
    exact = pair.teacher.cached_targets(outputs, ALL_LEVELS)
    images, tokens = pair.batch.images["teacher"], pair.batch.tokens["teacher"]
    live = pair.teacher.targets(images, tokens, ALL_LEVELS)
    for name in VISION_LEVELS:
        assert torch.allclose(live.levels.maps[name], exact.levels.maps[name], atol=1e-4), f"another {name}"
    expected, student = pair.terms(live), near(exact.levels.maps)
    distance = intra(student, exact.levels.maps)
    values = ", ".join(f"{name} {value:.4f}" for name, (value, _) in expected.items())
    print(f"{len(pair.batch.keys)} pairs: {values}, near {distance:.4f}")
    print(f"{'stored as':12}" + "".join(f"{name:>12}{'cosine':>10}" for name in TERMS) + f"{'near':>12}{'bound':>9}")
    for name, coded in CODES.items():
        targets = pair.teacher.cached_targets(coded(outputs), ALL_LEVELS)
        by_term, line = pair.terms(targets), f"{name:12}"
        for term, (value, gradient) in by_term.items():
            cosine = torch.nn.functional.cosine_similarity(gradient.double(), expected[term][1].double(), dim=0)
            line += f"{value / expected[term][0] - 1:12.1e}{float(cosine):10.6f}"
        bound = "1e-3" if name == "float16" else "1e-2"
        print(f"{line}{intra(student, targets.levels.maps) / distance - 1:12.1e}{bound:>9}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--pairs", type=int, default=64)
    cli.add_argument("--teacher", default="", help="artifact of stage teacher, recipe demo; else levels as drawn")
    cli.add_argument("--student", default="", help="artifact of a training stage, recipe demo; else as it begins")
    cli.add_argument("--shards", default="", help="artifact of stage prepare; else some of the demo's pictures")
    return cli


def main() -> None:
    """Count, measure and print."""
    args = parser().parse_args()
    show_bytes()
    with tempfile.TemporaryDirectory() as root:
        pair = Pair(args, root)
        show_terms(pair)
        show_scales(pair)


if __name__ == "__main__":
    main()
