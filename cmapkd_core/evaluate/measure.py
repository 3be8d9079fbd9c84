"""FLOPs, time and memory of a call, and the name of what it ran on."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

TOOL = f"torch.utils.flop_counter.FlopCounterMode of torch {torch.__version__}, attention on its math path"
CONVENTION = "2 FLOPs a multiply-add; matrix products and convolutions, attention's own among them, and nothing else"

Call = Callable[[], Any]


def flops(call: Call) -> int:
    """FLOPs of `call` as CONVENTION says; on any device, the meta device too.

    A fused attention hides its two matrix products from the counter on a CPU: ViT-B/16 would have 33.7 in place of
    35.1 GFLOPs. So attention takes its math path here.

    With gradients, although no backward is run: the counter follows modules by hooks on their inputs' gradients, and
    fails without where an input is a parameter, as the query of an attention pooling is (SigLIP).
    """
    with torch.enable_grad(), _plain_attention(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Matrix products in place of fused kernels, also in place of the fast path of nn.MultiheadAttention."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Taken(NamedTuple):
    """Seconds of one call: on the clock, and of the process on all its processors."""

    clock: float
    processor: float


def timed(call: Call, device: torch.device, *, warmup: int, repeats: int) -> list[Taken]:
    """Each of `repeats` calls after `warmup` unmeasured ones; a GPU has finished each."""
    taken = []
    for _ in range(warmup + repeats):
        _wait(device)
        started, busy = time.perf_counter(), time.process_time()
        call()
        _wait(device)
        taken.append(Taken(time.perf_counter() - started, time.process_time() - busy))
    return taken[warmup:]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile, between neighbours where needed."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def memory_rise(call: Call, device: torch.device) -> int | None:
    """Bytes by which memory rises above its present level at the highest point of `call`.

    GPU: torch.cuda.max_memory_allocated, which is tensors alone. CPU: the process's resident memory, from the kernel's
    own mark of the highest level (VmHWM, set back first), with what earlier calls freed given back to the system
    before. None where the system keeps no such mark; pages count in groups, so differences below 1 MB say nothing.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return int(torch.cuda.max_memory_allocated(device)) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except (OSError, AttributeError, KeyError):  # no Linux, a C library without it, or a sandbox that refuses
        return None
    call()
    return max(0, _status("VmHWM") - before)


def memory_meaning(device: torch.device) -> str:
    """What the peak memory of a model on `device` is made of, for the reader."""
    rise = "tensors (torch.cuda.max_memory_allocated)" if device.type == "cuda" else "resident memory (VmHWM)"
    return f"weights and buffers of both towers + one batch of input + the rise of {rise} while it is embedded"


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _status(name: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    entries = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(entries[name].split()[0]) * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
