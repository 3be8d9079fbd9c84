"""What each method costs: parameters that train and that answer queries, and the time of a step relative to kd.

    python benchmarks/methods.py --recipe demo --batch 32 --rounds 7 --threads 1

A step is what the loop does in the phase `fine`: the frozen teacher (where the method has one), the method's forward,
backward and update, on one batch of random pictures and captions. All methods take turns in every round, so that
what else the machine does falls on all of them; the median over the rounds is printed. With --stored the methods
that need no more of the teacher than can be cached are measured a second time with that (teacher_fit.views above 0,
teacher_fit.store=levels).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cmapkd_core.catalog import STORES, load
from cmapkd_core.config import Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.engine.loop import freeze_all_but
from cmapkd_core.engine.optim import Optimiser, trainable
from cmapkd_core.engine.passes import weighted_total
from cmapkd_core.engine.runtime import seed_everything
from cmapkd_core.evaluate.subject import count_parameters
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.build import build
from cmapkd_core.models.frozen_teacher import Embeddings, Teacher, diagonal_prior
from cmapkd_core.recipes import BASELINES, resolve

WORDS = ("a", "small", "red", "striped", "cat", "dog", "house", "boat", "under", "beside", "two", "of", "the", "on")
PHASES = ("coarse", "medium", "fine")
CLASSES = 100  # of promptkd_cls
STORED = ", stored"


def random_batch(student: Backbone, teacher: Backbone, size: int) -> Batch:
    """`size` pairs of noise and of captions of four to eleven words."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(len(WORDS), (size, 11), generator=generator).tolist()
    captions = [" ".join(WORDS[i] for i in row[: 4 + n % 8]) for n, row in enumerate(words)]
    sides = {"student": student, "teacher": teacher}
    images = {n: torch.randn(size, 3, *(2 * [m.spec.image_size]), generator=generator) for n, m in sides.items()}
    tokens = {n: m.tokenize(captions) for n, m in sides.items()}
    return Batch([str(i) for i in range(size)], torch.arange(size), images, tokens, [])


def make(recipe: Recipe, teacher: Teacher, cache: Path) -> Method:
    """The row's method around a fresh student, as the first stage makes it."""
    seed_everything(recipe.seed, rank=0)
    student = build(recipe.student, recipe.seed, cache)
    method: Method = load("method", recipe.method.name, METHODS)(recipe, student, teacher)
    for line in method.begin(teacher):
        print(f"{recipe.method.name}: {line}")
    return method.train()


def trained(method: Method) -> int:
    """Parameters that train in any phase; those of a selector train in the ALSN stage too."""
    schedule = method.recipe.schedule
    phases = [getattr(schedule, name) for name in PHASES]
    chosen = {
        id(p): p for phase in phases for params in trainable(method.groups(phase), phase).values() for p in params
    }
    return sum(p.numel() for p in chosen.values())


def stepper(method: Method, teacher: Teacher, batch: Batch, stored: bool = False) -> Callable[[int], None]:
    """One whole update of the phase `fine`; `stored`: the teacher's outputs are cached."""
    recipe, phase = method.recipe, method.recipe.schedule.fine
    groups = trainable(method.groups(phase), phase)
    freeze_all_but(method, [p for params in groups.values() for p in params])
    optimiser = Optimiser(groups, phase, recipe.optim, steps=100, scaled=False)
    weights = recipe.method.weights.within(phase)

    levels = method.active(phase)
    images, tokens = (side["teacher"] for side in (batch.images, batch.tokens))
    cached = {**teacher.image_outputs(images, levels), **teacher.text_outputs(tokens, levels)} if stored else {}

    def targets() -> Embeddings | None:
        if cached:
            return teacher.cached_targets(cached, levels)
        return teacher.targets(images, tokens, levels) if METHODS[recipe.method.name].teacher else None

    def step(number: int) -> None:
        optimiser.set_rates(number)
        optimiser.scaled(weighted_total(method(batch, targets(), phase, number).terms, weights)).backward()
        optimiser.clip()
        optimiser.update()

    return step


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--recipe", default="demo")
    cli.add_argument("--batch", type=int, default=32)
    cli.add_argument("--rounds", type=int, default=7)
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--stored", action="store_true")
    return cli


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    recipes = {row: resolve(args.recipe, row, f"optim.batch={args.batch}") for row in ["none", *BASELINES]}
    again = [row for row, r in recipes.items() if args.stored and METHODS[r.method.name].targets in STORES]
    recipes |= {f"{row}{STORED}": recipes[row] for row in again}
    rows = list(recipes)
    with tempfile.TemporaryDirectory() as folder:
        base = recipes["none"]
        backbone = build(base.teacher, base.seed, Path(folder))
        student = build(base.student, base.seed, Path(folder))
        levels = LevelTower(backbone.spec, student.spec.vision_grids[2], base.pyramid.width)
        teacher = Teacher(backbone, levels, diagonal_prior())
        teacher.classes = torch.nn.functional.normalize(torch.randn(CLASSES, backbone.spec.embed_dim), dim=-1)
        batch = random_batch(student, backbone, args.batch)
        methods = {row: make(recipe, teacher, Path(folder)) for row, recipe in recipes.items()}
    counts = {row: (trained(m), count_parameters(m.exported(teacher))) for row, m in methods.items()}
    steps = {row: stepper(method, teacher, batch, row.endswith(STORED)) for row, method in methods.items()}
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for number in range(args.rounds + 1):
        for row, step in steps.items():
            since = time.perf_counter()
            step(number)
            seconds[row].append(time.perf_counter() - since)
    print(f"\n{'':22}{'trained M':>10}{'image M':>9}{'text M':>8}{'s a step':>10}{'to kd':>8}")
    median = {row: statistics.median(values[1:]) for row, values in seconds.items()}  # the first one warms up
    reference = median["kd"]
    for row in rows:
        total, answers = counts[row]
        sizes = (total / 1e6, answers["parameters/image"] / 1e6, answers["parameters/text"] / 1e6)
        name = row.replace("none", "cmapkd")
        columns = f"{sizes[0]:10.2f}{sizes[1]:9.2f}{sizes[2]:8.2f}{median[row]:10.3f}{median[row] / reference:8.2f}"
        print(f"{name:22}{columns}")


if __name__ == "__main__":
    main()
