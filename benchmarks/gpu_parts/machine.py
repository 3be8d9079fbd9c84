"""The machine: what it is, how exactly it can compute, how fast it multiplies, what memory a step takes."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cmapkd_core import parallel
from cmapkd_core.engine.matmul import matmul_precision

# By name: what a recipe sets for it.
PRECISIONS = {
    "fp32": "optim.precision=fp32",
    "tf32": "optim.precision=fp32 optim.matmul_precision=high",
    "bf16": "optim.precision=bf16",
    "fp16": "optim.precision=fp16",
}
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MIB = 1 << 20


@dataclass(frozen=True)
class Machine:
    """Where this runs. tiny: sizes of a test, which say nothing about any machine."""

    device: torch.device
    tiny: bool

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    @property
    def facts(self) -> dict[str, object]:
        """For the record."""
        name = torch.cuda.get_device_name(self.device) if self.cuda else platform.processor() or platform.machine()
        facts: dict[str, object] = {"device": name, "cores": os.cpu_count(), "torch": torch.__version__}
        if self.cuda:
            properties = torch.cuda.get_device_properties(self.device)
            facts |= {"gpus": torch.cuda.device_count(), "memory_gib": round(properties.total_memory / 2**30, 1)}
            facts |= {"capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}
        return facts | {"tiny": self.tiny}

    @property
    def heading(self) -> str:
        """One line that says what the table can be read for."""
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items() if name not in ("device", "tiny"))
        where = f"run on: {self.facts['device'] if self.cuda else 'CPU'}"
        if not self.cuda:
            return f"{where}, tiny sizes: says nothing about GPUs ({facts})"
        return f"{where}{', tiny sizes: says nothing about speed' if self.tiny else ''} ({facts})"

    def precisions(self) -> list[str]:
        """Those that the device has instructions for."""
        if not self.cuda:
            return ["fp32"]
        ampere = torch.cuda.get_device_capability(self.device)[0] >= 8
        half = ["bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
        return ["fp32", *(["tf32"] if ampere else []), *half, "fp16"]

    def usual(self) -> str:
        """What optim.precision=auto is here."""
        return ([p for p in self.precisions() if p in TYPES] or ["fp32"])[0]

    def wait(self) -> None:
        """Until the device has done all that it was asked."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Begin to watch memory anew."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float | None:
        """MiB of tensors at most since then; None where nobody counts."""
        return torch.cuda.max_memory_allocated(self.device) / MIB if self.cuda else None

    def seconds(self, call: Callable[[], object], times: int) -> float:
        """Of one call, the mean of `times` after one that warms up."""
        call()
        self.wait()
        since = time.perf_counter()
        for _ in range(times):
            call()
        self.wait()
        return (time.perf_counter() - since) / times

    def gemm(self, precision: str, side: int = 0) -> float:
        """FLOP/s of a product of two square matrices, which is what a step can be held against."""
        side = side or (256 if self.tiny else 8192)
        kind = TYPES.get(precision, torch.float32)
        a, b = (torch.randn(side, side, device=self.device, dtype=kind) for _ in range(2))
        with matmul_precision("high" if precision == "tf32" else "highest", self.device):
            return 2 * side**3 / self.seconds(lambda: a @ b, 3 if self.tiny else 20)


def here(tiny: bool) -> Machine:
    """This rank's device; without a GPU sizes are tiny."""
    device = parallel.device()
    return Machine(device, tiny or device.type != "cuda")
