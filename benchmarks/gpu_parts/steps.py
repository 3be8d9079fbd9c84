"""How fast is a step? The loop's own, of the real pair of models, beside open_clip's plain and distilling steps.

Ours is `run_phase` with all that it does at each step (checks, logs, the optimiser) and batches that lie on the device.
Theirs is the step of open_clip's trainer: autocast, ClipLoss or DistillClipLoss, AdamW; its captions fill the context.
Each has a turn of its own; what it takes is the mean over the measured steps, and FLOPs are counted on one of them.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from open_clip.loss import ClipLoss, DistillClipLoss
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_parts.machine import TYPES, Machine
from benchmarks.gpu_parts.models import Pair, phase_of
from benchmarks.gpu_parts.table import Line
from cmapkd_core.config import Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.engine.checkpoint import Checkpoints
from cmapkd_core.engine.loop import run_phase
from cmapkd_core.engine.passes import weighted_total
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.runtime import StopRequest
from cmapkd_core.engine.session import Session
from cmapkd_core.engine.targets_ahead import TargetsAhead
from cmapkd_core.methods.base import Method, precision
from cmapkd_core.models.compiled import compiled_blocks
from cmapkd_core.tracking import Tracker

SECTION = "step"
WARM = 3  # steps before those that count
GOALS = {"live": 2.45, "joint": 1.10}  # R1: FLOP of a step by those of a plain one
ROWS = {  # what: (row, phase, whether the teacher's towers run)
    "ours, no teacher": ("finetune", "fine", False),
    "ours, coarse": ("none", "coarse", False),
    "ours, medium": ("none", "medium", False),
    "ours, joint": ("none", "fine", False),
    "ours, joint, live teacher": ("none", "fine", True),
}
LONG = 1_000_000  # steps of a phase that is left before its end


class Enough(Exception):
    """As many steps as are wanted are done."""


@dataclasses.dataclass
class Endless:
    """A loader that gives one batch again and again, and knows when each was asked for."""

    batch: Batch
    machine: Machine
    count: int
    times: list[float] = dataclasses.field(default_factory=list)
    steps_per_epoch: int = LONG

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """`count` of them, then the end of the phase."""
        for number in range(self.count):
            self._ask(wait=number == WARM)
            yield dataclasses.replace(self.batch)
        self._ask(wait=True)
        raise Enough

    def _ask(self, wait: bool) -> None:
        if wait:  # where time begins and ends to count; else the host runs ahead of the device, as in training
            self.machine.wait()
        self.times.append(time.perf_counter())

    def reorder(self, turn: int) -> None:
        """There is one order."""

    def require_few_corrupt(self, corrupt: Mapping[str, str]) -> None:
        """There are none."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a step. flop: counted. peak: MiB, None where it is not known."""

    seconds: float
    flop: float
    peak: float | None


def plan_of(recipe: Recipe, name: str) -> PhasePlan:
    """A phase of one endless epoch."""
    phase = dataclasses.replace(phase_of(recipe, name), epochs=1)
    weights = recipe.method.weights.within(phase)
    return PhasePlan(0, name, phase, LONG, weights, recipe.optim, recipe.optim.batch)


def train_for(method: Method, loader: Any, targets: Callable[[Batch], Any], plan: PhasePlan, recipe: Recipe) -> None:
    """The package's loop, until the loader has had enough."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        checkpoints = Checkpoints(str(place / "work"), place, "gpu")
        tracker = Tracker.open("", run="gpu", stage="gpu", journal=place / "journal.jsonl", params={})
        stop = StopRequest().listen()
        try:
            given = ("gpu", [plan], checkpoints, tracker, lambda text: None, recipe.runtime, stop)
            with Session(*given) as session:
                run_phase(method, loader, targets, plan, session)
        except Enough:
            pass
        finally:
            stop.release()
            tracker.close(seconds=1)


def ours(pair: Pair, what: str, size: int, count: int, compiled: bool = False) -> Cost:
    """A step of the package's loop; `compiled`: as runtime.compile has it."""
    row, phase, live = ROWS[what]
    machine, recipe = pair.machine, pair.recipe(row, size)
    method, batch, plan = pair.method(recipe), pair.batch(size), plan_of(recipe, phase)
    levels = method.active(plan.phase)
    if row == "none" and not live:
        pair.place_towers(True)
        batch = dataclasses.replace(batch, cached=pair.stored(batch, levels))

    def targets(given: Batch) -> Any:
        return pair.targets(live, given, levels) if row == "none" else None

    pair.place_towers(live)
    machine.forget()
    loader = Endless(batch, machine, WARM + count)
    ahead = TargetsAhead(loader, targets, machine.device) if live and machine.cuda else None  # type: ignore[arg-type]
    with compiled_blocks([method.student]) if compiled else nullcontext():
        train_for(method, ahead or loader, ahead.targets if ahead else targets, plan, recipe)
    peak = machine.peak()

    def once() -> None:
        weighted_total(method(batch, targets(batch), plan.phase, 1).terms, plan.weights).backward()

    return Cost((loader.times[-1] - loader.times[WARM]) / count, operations(once), peak)


def operations(call: Callable[[], object]) -> float:
    """FLOP of one call, 2 a multiply and add; of what torch counts."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def peer(pair: Pair, size: int, count: int, distil: bool) -> Cost:
    """A step as open_clip's trainer takes it, of the same student; `distil`: with the same teacher beside it."""
    machine, kind = pair.machine, TYPES.get(pair.precision)
    model = pair.method(pair.recipe("finetune", size)).student.model
    pair.place_towers(distil)
    batch = pair.batch(size, whole=True)
    images, tokens = batch.images, batch.tokens
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=kind is torch.float16)
    loss: Any = DistillClipLoss() if distil else ClipLoss()

    def autocast() -> AbstractContextManager[object]:
        return precision(machine.device.type, kind) if kind else nullcontext()

    def total() -> torch.Tensor:
        with autocast():
            image, text, scale = outputs(model, images["student"], tokens["student"])
            if not distil:
                return loss(image, text, scale)
            with torch.no_grad():
                known = outputs(pair.teacher.backbone.model, images["teacher"], tokens["teacher"])
            return sum(loss(image, text, scale, *known))

    def step() -> None:
        optimiser.zero_grad()
        scaler.scale(total()).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimiser)
        scaler.update()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    machine.forget()
    for _ in range(WARM):
        step()
    seconds = machine.seconds(step, count)
    return Cost(seconds, operations(lambda: total().backward()), machine.peak())


def outputs(model: Any, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit embeddings [b,E] of both and the scale, as open_clip's trainer asks for them."""
    image, text = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
    return image, text, model.logit_scale.exp()


def measured(pair: Pair, sizes: list[int], count: int) -> Iterator[Line]:
    """Each step at each batch size, beside the plain one and a matrix product of this run."""
    machine = pair.machine
    gemm = machine.gemm(pair.precision)
    yield Line(SECTION, f"matrix product, {pair.precision}", f"{gemm / 1e12:.4g} TFLOP/s")
    for size in sizes:
        plain: Cost | None = None
        turns: dict[str, Callable[[], Cost]] = {
            "open_clip, plain": lambda size=size: peer(pair, size, count, distil=False),
            "open_clip, distilling": lambda size=size: peer(pair, size, count, distil=True),
            **{what: lambda what=what, size=size: ours(pair, what, size, count) for what in ROWS},
        }
        if not machine.tiny:  # compiling takes longer than all the rest there
            turns["ours, joint, compiled"] = lambda size=size: ours(pair, "ours, joint", size, count, compiled=True)
        for what, turn in turns.items():
            try:
                cost = turn()
            except torch.OutOfMemoryError:
                yield Line(SECTION, f"{what}, {size} pairs", "does not fit into memory")
                continue
            finally:
                gc.collect()
                machine.forget()
            plain = plain or cost
            yield shown(machine, what, size, cost, plain, gemm)


def shown(machine: Machine, what: str, size: int, cost: Cost, plain: Cost, gemm: float) -> Line:
    """A step's line, and what it is held to; speed is of nothing at tiny sizes."""
    ratio, rate = cost.seconds / plain.seconds, cost.flop / cost.seconds
    memory = "" if cost.peak is None else f", {cost.peak / 1024:.1f} GiB"
    text = f"{1e3 * cost.seconds:.1f} ms, {size / cost.seconds:.0f} pairs/s, {rate / 1e12:.3g} TFLOP/s{memory}"
    counted = cost.flop / plain.flop
    beside = f"{ratio:.2f} of a plain step ({counted:.2f} in FLOP), {100 * rate / gemm:.0f} % of the product"
    bound = next((goal for word, goal in GOALS.items() if word in what), None)
    if machine.tiny or bound is None:
        return Line(SECTION, f"{what}, {size} pairs", text, beside)
    return Line(SECTION, f"{what}, {size} pairs", text, beside, f"<= {bound:.2f} in FLOP", counted <= bound)
