"""Task efficiency: what a model costs to answer queries, per tower. It reads no data.

Measured is the way that answers a query: `encode_image` and `encode_text` of the exported model, so a method whose
answers need more than the student (PromptKD: a projector and the teacher's text tower) pays for it. Teacher, students
and baselines are compared by running the task on each of them; times hold for the device, the number of threads
and the state of the machine that the detail names.

Metrics: `{image,text}/{parameters, gflops, latency_ms/bN, throughput/bN}` with N images or captions a call,
`total/{parameters, gflops}` (one image and one caption), `peak_memory_mb`, `disk_mb` (1 MB = 10^6 bytes).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cmapkd_core import temporary
from cmapkd_core.config import EfficiencyConfig
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate import measure
from cmapkd_core.evaluate.subject import Evaluated, Subject, count_parameters
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import save_model

MB = 1e6


@dataclass(frozen=True)
class Tower:
    """One way into the joint space."""

    name: str  # image or text
    encode: Callable[[Tensor], Tensor]
    inputs: Callable[[int], Tensor]  # a batch of n
    parameters: int


def run_efficiency(subject: Subject) -> Evaluated:
    """Parameters, FLOPs, latency and throughput of each tower; peak memory and size on disk of the model.

    The detail names the device, threads, versions, the convention of the FLOPs and their tool, and has the
    quartiles of all timings.

    Raises:
        InputError: `evaluate.efficiency` measures nothing.
    """
    config, device = subject.config.efficiency, subject.device
    _check(config)
    backbone = subject.backbone
    weights = sum(x.numel() * x.element_size() for x in (*backbone.parameters(), *backbone.buffers()))
    metrics: dict[str, float] = {}
    detail: dict[str, Any] = {"environment": environment(device), "config": vars(config), "towers": {}}
    detail["flops"] = {"convention": measure.CONVENTION, "tool": measure.TOOL, "unit": "one image or one full caption"}
    towers = towers_of(backbone, device)
    for tower in towers:
        costs, timings = _tower(tower, config, device, weights, subject.say)
        metrics |= {f"{tower.name}/{name}": value for name, value in costs.items()}
        detail["towers"][tower.name] = {"input": list(tower.inputs(1).shape), "batches": timings}
    for name in ("parameters", "gflops"):
        metrics[f"total/{name}"] = sum(metrics[f"{tower.name}/{name}"] for tower in towers)
    metrics["disk_mb"] = disk_bytes(backbone) / MB
    peaks = [t["peak_memory_mb"] for tower in detail["towers"].values() for t in tower["batches"].values()]
    metrics |= {} if None in peaks else {"peak_memory_mb": max(peaks)}
    detail["memory"] = measure.memory_meaning(device) if None not in peaks else "this system keeps no mark of its peak"
    detail["metrics"] = dict(metrics)
    for line in summary(metrics, detail):
        subject.say(f"efficiency: {line}\n")
    return Evaluated(metrics, detail)


def towers_of(backbone: Backbone, device: torch.device) -> tuple[Tower, Tower]:
    """Both towers with the inputs they are measured on: noise, and a caption that fills the context.

    A CLIP text tower computes its whole context for every caption. A Hugging Face tower leaves padding off, so
    for it this is the longest caption and the upper bound.
    """
    size, counts = backbone.spec.image_size, count_parameters(backbone)
    tokens = backbone.tokenize(["a " * backbone.spec.context_length]).to(device)

    def noise(n: int) -> Tensor:
        return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)

    return (
        Tower("image", backbone.encode_image, noise, int(counts["parameters/image"])),
        Tower("text", backbone.encode_text, lambda n: tokens.repeat(n, 1), int(counts["parameters/text"])),
    )


def _tower(
    tower: Tower, config: EfficiencyConfig, device: torch.device, weights: int, say: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Metrics of a tower, and what was measured at each batch size."""
    work = measure.flops(partial(tower.encode, tower.inputs(1)))
    metrics = {"parameters": float(tower.parameters), "gflops": work / 1e9}
    timings: dict[str, dict[str, Any]] = {}
    for n in config.batches:
        say(f"efficiency: {tower.name}, {n} a call, {config.warmup} + {config.repeats} calls")
        inputs = tower.inputs(n)
        call = partial(tower.encode, inputs)
        with torch.inference_mode():
            taken = measure.timed(call, device, warmup=config.warmup, repeats=config.repeats)
            rise = measure.memory_rise(call, device)
        clock, processor = ([1e3 * value for value in column] for column in zip(*taken, strict=True))
        low, middle, high = measure.quartiles(clock)
        metrics |= {f"latency_ms/b{n}": middle, f"throughput/b{n}": 1e3 * n / middle}
        peak = None if rise is None else (weights + inputs.numel() * inputs.element_size() + rise) / MB
        timings[f"b{n}"] = {
            "latency_ms": {"fastest": min(clock), "first_quartile": low, "median": middle, "third_quartile": high},
            "processor_ms": measure.quartiles(processor)[1],
            "calls": len(taken),
            "peak_memory_mb": peak,
        }
    return metrics, timings


def disk_bytes(backbone: Backbone) -> int:
    """Bytes of the model folder, as stages write it: weights (safetensors), config, a tokenizer's files."""
    with temporary.folder() as folder:
        save_model(backbone, folder)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def environment(device: torch.device) -> dict[str, Any]:
    """What the times hold for; a load average above the threads says that others had the processor too.

    On a busy machine the processor time of a call (`processor_ms`) tells more than the clock.
    """
    return {
        "device": measure.device_name(device),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "precision": "float32",
        "matmul": torch.get_float32_matmul_precision(),
    }


def summary(metrics: dict[str, float], detail: dict[str, Any]) -> list[str]:
    """The result in a few lines, for the stage's log."""
    where, lines = detail["environment"], []
    for name, tower in detail["towers"].items():
        times = ", ".join(
            f"{metrics[f'{name}/latency_ms/{b}']:.1f} ms at {b} "
            f"({metrics[f'{name}/throughput/{b}']:.1f}/s, {timing['processor_ms']:.1f} ms of processor time)"
            for b, timing in tower["batches"].items()
        )
        size, work = metrics[f"{name}/parameters"] / 1e6, metrics[f"{name}/gflops"]
        lines.append(f"{name} {size:.2f} M parameters, {work:.3f} GFLOPs, {times}")
    peak = f"{metrics['peak_memory_mb']:.0f} MB at its peak" if "peak_memory_mb" in metrics else detail["memory"]
    lines.append(f"{metrics['disk_mb']:.0f} MB on disk, {peak}")
    lines.append("on {device}, threads {threads}, load {load_average}, torch {torch}, {precision}".format(**where))
    return [*lines, f"FLOPs: {detail['flops']['convention']}; {detail['flops']['tool']}"]


def _check(config: EfficiencyConfig) -> None:
    if not config.batches or min(config.batches) < 1 or config.repeats < 1 or config.warmup < 0:
        raise InputError(
            f"evaluate.efficiency measures nothing with batches={config.batches}, repeats={config.repeats}, "
            f"warmup={config.warmup}: give evaluate.efficiency.batches a size and evaluate.efficiency.repeats a number "
            "of at least 1"
        )
