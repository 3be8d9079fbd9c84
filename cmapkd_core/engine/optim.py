"""The optimiser of a phase: AdamW groups, cosine with warm-up, clipping, precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cmapkd_core.config import AS_STUDENT, OptimConfig, Phase
from cmapkd_core.errors import InputError

EPSILON = 1e-6  # AdamW's, beside the root of the second moment


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at `step` of `steps`: linear warm-up, then half a cosine down to 0.

    Args:
        warmup: share of the steps with a rising rate.
    """
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def choose_teacher_precision(config: OptimConfig, device: torch.device) -> torch.dtype | None:
    """The autocast type of a frozen teacher's towers and levels; the student's, unless it has its own.

    Raises:
        InputError: as of `choose_precision`.
    """
    if config.teacher_precision == AS_STUDENT:
        return choose_precision(config.precision, device)
    return choose_precision(config.teacher_precision, device, "optim.teacher_precision")


def choose_precision(wanted: str, device: torch.device, field: str = "optim.precision") -> torch.dtype | None:
    """The towers' autocast type; None is full precision.

    `auto` is bf16 where the GPU has it, else fp16 with a loss scaler; fp32 on a CPU, where half
    precision without the instructions is a hundred times slower.

    Args:
        field: that `wanted` is of, for an error.

    Raises:
        InputError: half precision asked for on a CPU, or an unknown name.
    """
    types = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if wanted == "auto":
        if device.type != "cuda":
            return None
        emulated = False  # torch says yes to older GPUs too, which have neither its speed nor its convolutions
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=emulated) else torch.float16
    if wanted not in types:
        raise InputError(f"{field}={wanted}: one of auto, {', '.join(types)}")
    if device.type == "cpu" and types[wanted] is not None:
        raise InputError(f"{field}={wanted} on a CPU is slower than fp32 by far: use auto or fp32")
    return types[wanted]


def trainable(groups: dict[str, list[nn.Parameter]], phase: Phase, name: str = "") -> dict[str, list[nn.Parameter]]:
    """The groups that `phase` gives a learning rate.

    Raises:
        InputError: none of them has one.
    """
    chosen = {name: params for name, params in groups.items() if params and getattr(phase.lr, name) > 0}
    if not chosen:
        rates = ", ".join(f"lr.{group}" for group in groups)
        raise InputError(f"phase {name} trains nothing: set one of its {rates} above 0")
    return chosen


class Optimiser:
    """AdamW over a phase's groups. Scales, biases and norms are not decayed, as CLIP does."""

    def __init__(
        self, groups: dict[str, list[nn.Parameter]], phase: Phase, config: OptimConfig, steps: int, scaled: bool
    ) -> None:
        self.config, self.steps = config, steps
        rows = []
        for name, params in groups.items():
            for decay, chosen in (
                (True, [p for p in params if p.dim() > 1]),
                (False, [p for p in params if p.dim() <= 1]),
            ):
                if chosen:
                    rate = getattr(phase.lr, name)
                    weight_decay = config.weight_decay if decay else 0.0
                    rows.append(
                        {"params": chosen, "name": name, "peak": rate, "lr": rate, "weight_decay": weight_decay}
                    )
        self.adamw = torch.optim.AdamW(rows, betas=(config.beta1, config.beta2), eps=EPSILON, fused=True)
        self.scaler = torch.amp.GradScaler("cuda", enabled=scaled)

    def set_rates(self, step: int) -> dict[str, float]:
        """Learning rates of update `step`, by group."""
        factor = rate_factor(step, self.steps, self.config.warmup)
        for row in self.adamw.param_groups:
            row["lr"] = row["peak"] * factor
        return {row["name"]: row["lr"] for row in self.adamw.param_groups}

    def scaled(self, total: Tensor) -> Tensor:
        """What gradients are taken of: `total`, a scalar, and in fp16 so many times it as its gradient needs."""
        result: Tensor = self.scaler.scale(total)
        return result

    def clip(self) -> Tensor:
        """Clip the update's gradient (`clip_norm` 0: nothing is) and return its norm before that, a scalar."""
        self.scaler.unscale_(self.adamw)
        params = [p for row in self.adamw.param_groups for p in row["params"]]
        return nn.utils.clip_grad_norm_(params, self.config.clip_norm or math.inf)

    def update(self, taken: bool = True) -> None:
        """After `clip`: step and clear, or clear alone; the scaler learns of an overflow either way."""
        if taken:
            self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)

    def as_step(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """Where AdamW would go by this gradient [..] alone, without rate, momentum and decay.

        That is over the root of the second moment that it would then have; nothing is changed.
        """
        state, beta = self.adamw.state.get(parameter, {}), self.config.beta2
        moment = beta * state.get("exp_avg_sq", 0.0) + (1 - beta) * gradient.square()
        root: Tensor = (moment / (1 - beta ** (state.get("step", 0) + 1))).sqrt()
        return gradient / (root + EPSILON)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Moments [..] in their parameters' shapes by `parameter.name`, and the scaler's state."""
        moments = self.adamw.state_dict()["state"]
        tensors = {f"{i}.{name}": torch.as_tensor(value) for i, row in moments.items() for name, value in row.items()}
        return tensors, self.scaler.state_dict()

    def load(self, tensors: dict[str, Tensor], scaler: dict[str, Any]) -> None:
        """The inverse of `state`, for the same groups: tensors [..] in their parameters' shapes."""
        rows: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            rows.setdefault(int(index), {})[name] = value
        groups = self.adamw.state_dict()["param_groups"]
        self.adamw.load_state_dict({"state": rows, "param_groups": groups})
        self.scaler.load_state_dict(scaler)
