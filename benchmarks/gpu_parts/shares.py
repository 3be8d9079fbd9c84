"""Where a step's time goes: waiting for the loader, teacher, student, losses, backward, update; by torch.profiler.

The package's loader with its workers, on generated pictures prepared for it. Each part is a range of the profiler that
ends when the device has done it, so shares add up; in training parts overlap and a step is shorter than their sum.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu_parts.machine import Machine
from benchmarks.gpu_parts.models import Pair
from benchmarks.gpu_parts.steps import LONG, plan_of
from benchmarks.gpu_parts.table import Line
from cmapkd_core.data.loader import TrainLoader
from cmapkd_core.engine.loop import freeze_all_but
from cmapkd_core.engine.optim import Optimiser, choose_precision, trainable
from cmapkd_core.engine.passes import weighted_total
from cmapkd_core.evaluate.embed import side_of
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards

SECTION = "shares"
PARTS = ("loader", "teacher", "student", "losses", "backward", "update")
WARM = 2


class Ranges:
    """Named parts of a step, each closed when the device has done it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def part(self, name: str, call: Callable[[], Any]) -> Any:
        """The call's result, its time under a name."""
        with record_function(name):
            result = call()
            self.machine.wait()
        return result


def loader_of(machine: Machine, pair: Pair, root: Path, size: int) -> TrainLoader:
    """Batches of drawn scenes, as many pictures as two epochs of a few batches want."""
    count, workers = (96, 0) if machine.tiny else (max(512, 2 * size), min(8, (os.cpu_count() or 2) - 1))
    recipe = pair.recipe("none", size)
    overrides = f"data.source=scenes data.size={count} data.val_share=0.05 data.test_share=0.05"
    url = prepare.run(Request("tiny", str(root), overrides=overrides))
    sides = {"student": side_of(pair.built[1]), "teacher": side_of(pair.built[0])}
    return TrainLoader(
        open_shards(Artifact.open(url)),
        sides,
        batch=size,
        rank=0,
        world=1,
        seed=0,
        fraction=1.0,
        crop_scale=recipe.data.crop_scale,
        workers=workers,
        max_pixels=recipe.data.max_pixels,
        quarantine_bound=recipe.data.quarantine_bound,
        device=machine.device,
    )


def stepper(machine: Machine, pair: Pair, loader: TrainLoader, size: int, steps: int) -> Iterator[None]:
    """Steps of joint training with a live teacher, in ranges."""
    recipe, ranges = pair.recipe("none", size), Ranges(machine)
    method, plan = pair.method(recipe), plan_of(recipe, "fine")
    pair.place_towers(True)
    method.amp = choose_precision(recipe.optim.precision, machine.device)
    groups, levels = trainable(method.groups(plan.phase), plan.phase), method.active(plan.phase)
    freeze_all_but(method, [p for params in groups.values() for p in params])
    optimiser = Optimiser(groups, plan.phase, recipe.optim, LONG, scaled=method.amp is torch.float16)
    towers = method.towers
    method.towers = lambda batch: ranges.part("student", lambda: towers(batch))  # type: ignore[method-assign]
    batches = loader.batches(0, steps)
    for number in range(steps):
        batch = ranges.part("loader", lambda: next(batches).to(machine.device))
        targets = ranges.part("teacher", lambda batch=batch: pair.targets(True, batch, levels))
        terms = ranges.part("losses", lambda b=batch, t=targets, n=number: method(b, t, plan.phase, n + 1).terms)
        ranges.part(
            "backward", lambda terms=terms: optimiser.scaler.scale(weighted_total(terms, plan.weights)).backward()
        )
        ranges.part("update", lambda: (optimiser.clip(), optimiser.update()))
        yield


def measured(machine: Machine, pair: Pair, root: Path, size: int, count: int) -> Iterator[Line]:
    """Share of each part, and how much of the time the device is at work at all."""
    steps = stepper(machine, pair, loader_of(machine, pair, root, size), size, WARM + count)
    for _ in range(WARM):
        next(steps)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if machine.cuda else [])]) as profiled:
        for _ in range(count):
            next(steps)
    averages = profiled.key_averages()
    # Of a range on the host alone: on a GPU the profiler has it a second time, as what the device did meanwhile.
    spent = {e.key: e.cpu_time_total for e in averages if e.key in PARTS and e.cpu_time_total}
    spent["losses"] -= spent["student"]  # towers run inside of the method's forward
    whole = sum(spent.values())
    for name in PARTS:
        yield Line(
            SECTION, name, f"{100 * spent[name] / whole:.0f} %", f"of {1e-3 * whole / count:.1f} ms, {size} pairs"
        )
    if machine.cuda:
        on_device = [e for e in averages if e.device_type is DeviceType.CUDA and not e.is_user_annotation]
        kernels = sum(e.self_device_time_total for e in on_device)
        yield Line(SECTION, "device at work", f"{100 * kernels / whole:.0f} %", "of the same time")
