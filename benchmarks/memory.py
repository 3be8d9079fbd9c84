"""Peak memory and time of a distillation step: the whole batch at once, in parts, and with blocks that run again.

    python benchmarks/memory.py --batch 128 --parts 4

Method kd on a small student (256 wide, six layers and four, 112 pixels), its teacher's embeddings given. Each form runs
one step in a fresh process; memory is how far the resident memory rises above its level with model and pictures in it,
time is CPU seconds of a second step. First all forms are held to the gradient of the whole batch at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd_core.catalog import load
from cmapkd_core.config import ModelConfig, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.engine.finite import Buffers
from cmapkd_core.engine.optim import Optimiser, trainable
from cmapkd_core.engine.passes import passes_of
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.models.build import build
from cmapkd_core.models.frozen_teacher import Embeddings
from cmapkd_core.recipes import resolve

FORMS = {"at once": (False, False), "parts": (True, False), "again": (False, True), "both": (True, True)}
SMALL = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 112, "patch_size": 16, "width": 256, "layers": 6},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 4},
}
NAMES = {"at once": "at once", "parts": "in {} parts", "again": "blocks run again", "both": "{} parts, run again"}
GOALS = {"again": "< 0.5", "parts": "< 0.5"}


class Step:
    """Method kd on `batch` random pairs, in one of FORMS."""

    def __init__(self, form: str, batch: int, parts: int) -> None:
        in_parts, again = FORMS[form]
        recipe: Recipe = resolve("paper", "kd", f"optim.batch={batch} optim.accumulate={parts if in_parts else 1}")
        with tempfile.TemporaryDirectory() as cache:
            config = Path(cache, "small.json")
            config.write_text(json.dumps(SMALL))
            student = build(ModelConfig(str(config), "random"), 0, Path(cache))
        if again:
            student.checkpoint_blocks()
        self.method: Method = load("method", "kd", METHODS)(recipe, student, None).train()
        phase = recipe.schedule.fine
        plan = PhasePlan(0, "fine", phase, 1, recipe.method.weights.within(phase), recipe.optim, batch)
        self.optimiser = Optimiser(trainable(self.method.groups(phase), phase), phase, recipe.optim, 1, scaled=False)
        size = student.spec.image_size
        images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        tokens = student.tokenize([f"a picture of {n} cats" for n in range(batch)])
        self.batch = Batch([str(n) for n in range(batch)], torch.arange(batch), {"student": images},
                           {"student": tokens}, [])  # fmt: skip
        self.passes = passes_of(plan)(self.method, teacher_embeddings, plan, self.optimiser, Buffers(self.method))

    def run(self) -> dict[str, Tensor]:
        """The gradient by parameter, [..] each, which is cleared."""
        self.passes.run(self.batch, 0, False, lambda: None)
        gradients = {name: p.grad for name, p in self.method.named_parameters() if p.grad is not None}
        self.optimiser.adamw.zero_grad(set_to_none=True)
        return gradients


def teacher_embeddings(batch: Batch) -> Embeddings:
    """A teacher's embeddings of these pairs, whichever of them are asked for."""
    made = [torch.sin(batch.index[:, None] * torch.arange(1.0, 65.0) + side) for side in (0, 1)]
    image, text = (F.normalize(x, dim=-1) for x in made)
    return Embeddings(image, text, torch.tensor(50.0))


def resident(field: str) -> float:
    """MiB that this process has resident (VmRSS), or had at most since the mark was cleared (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def measured(form: str, args: argparse.Namespace) -> dict[str, float]:
    """MiB above the level before, and CPU seconds of the next step, in this process, which has done nothing else."""
    Step(form, 2, 2).run()  # what libraries set up once
    step = Step(form, args.batch, args.parts)
    Path("/proc/self/clear_refs").write_text("5")  # a model takes more while it is made
    before = resident("VmRSS")
    step.run()
    risen, since = resident("VmHWM") - before, time.process_time()
    step.run()
    return {"memory": risen, "seconds": time.process_time() - since}


def fresh(form: str, args: argparse.Namespace) -> dict[str, float]:
    """The same in a process of its own."""
    sizes = ["--batch", str(args.batch), "--parts", str(args.parts)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # or what was freed before counts, by chance
    command = [sys.executable, __file__, "--form", form, *sizes]
    process = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def require_equal() -> None:
    """Every form gives the gradient of the whole batch at once, to fp32."""
    expected = Step("at once", 4, 2).run()
    for form in FORMS:
        actual = Step(form, 4, 2).run()
        assert actual.keys() == expected.keys()
        for name, x in expected.items():
            difference = (actual[name] - x).norm() / x.norm().clamp_min(1e-12)
            assert difference < 1e-3, (form, name, float(difference))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--batch", type=int, default=128)
    cli.add_argument("--parts", type=int, default=4)
    cli.add_argument("--form", choices=FORMS, help="print only what this form takes")
    return cli


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    torch.set_num_threads(1)
    if args.form:
        print(json.dumps(measured(args.form, args)))
        return
    require_equal()
    whole = fresh("at once", args)
    print(f"{f'{args.batch} pairs':24}{'MiB':>8}{'of at once':>12}{'goal':>8}{'time':>8}")
    for form, name in NAMES.items():
        cost = whole if form == "at once" else fresh(form, args)
        shares = [cost[what] / whole[what] for what in ("memory", "seconds")]
        print(f"{name.format(args.parts):24}{cost['memory']:8.0f}{shares[0]:12.2f}{GOALS.get(form, ''):>8}"
              f"{shares[1]:8.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
