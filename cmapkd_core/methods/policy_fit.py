"""How ALSN learns: from measured utilities, in its own stage and in joint training.

Shapes: B samples, E the teacher's embedding width, 4 levels a modality.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmapkd_core.catalog import OBJECTIVES, load
from cmapkd_core.config import ALL_LEVELS, TEXT_LEVELS, VISION_LEVELS, Phase
from cmapkd_core.config import SelectorConfig as Config
from cmapkd_core.losses.policy import easiest, entropy, policy
from cmapkd_core.methods.base import Outcome
from cmapkd_core.models.selector import Selector, restrict


def utility_objective(
    w: Tensor, u: Tensor, d: Tensor, known: tuple[str, ...], active: tuple[str, ...], c: Config
) -> Tensor:
    """KL(softmax(u / tau_u) || w) + uniform KL(w || 1/K) over the active levels; w, u, d [B,4]."""
    return policy(w, restrict(u / c.utility_tau, known, active), c.uniform)


def seed_objective(
    w: Tensor, u: Tensor, d: Tensor, known: tuple[str, ...], active: tuple[str, ...], c: Config
) -> Tensor:
    """The paper's: weights of the levels that are close already, with an entropy bonus; w, u, d [B,4]."""
    return easiest(w, d, c.uniform)


def policy_loss(selector: Selector, rows: dict[str, Tensor], active: tuple[str, ...], config: Config) -> Tensor:
    """The objective of both modalities on rows {teacher_image, teacher_text [B,E], u, d [B,8]}."""
    w = selector(rows["teacher_image"], rows["teacher_text"], active)
    halves = zip(w, rows["u"].split(4, dim=1), rows["d"].split(4, dim=1), (VISION_LEVELS, TEXT_LEVELS), strict=True)
    objective = load("selector objective", config.objective, OBJECTIVES)
    parts = [objective(*half, active, config) for half in halves]
    return torch.stack(parts).sum()


class PolicyMemory(nn.Module):
    """The samples whose levels were measured last, gathered over the ranks; as many as a batch has.

    Measuring costs a backward per level, so it happens every few steps and of some samples, and the selector trains on
    the same samples in between. Buffers, so that a resumed run continues with the same samples.
    """

    filled: Tensor  # share of the rows that hold a sample, the first ones

    def __init__(self, batch: int, width: int) -> None:
        super().__init__()
        self.columns = {"teacher_image": width, "teacher_text": width, "u": 8, "d": 8}
        for name, size in self.columns.items():
            self.register_buffer(name, torch.zeros(batch, size))
        self.register_buffer("filled", torch.zeros(()))
        self._held: int | None = 0  # rows with a sample, known here so that no step waits for the device to say it

    def _load_from_state_dict(self, *given: Any, **more: Any) -> None:
        super()._load_from_state_dict(*given, **more)
        self.recount()

    def recount(self) -> None:
        """The buffers are others."""
        self._held = None

    def held(self) -> int:
        """Samples that are remembered."""
        if self._held is None:
            self._held = round(float(self.filled) * len(self.get_buffer("u")))
        return self._held

    def keep(self, rows: dict[str, Tensor]) -> None:
        """Put n samples first, the oldest go: teacher_image, teacher_text [n,E], utilities u, distances d [n,8]."""
        size = len(self.get_buffer("u"))
        self._held = min(size, self.held() + len(rows["u"]))
        for name in self.columns:
            buffer = self.get_buffer(name)
            buffer.copy_(torch.cat((rows[name].detach().to(buffer), buffer))[:size])
        self.filled.fill_(self._held / size)

    def loss(self, selector: Selector, active: tuple[str, ...], config: Config) -> Tensor:
        """The policy loss of the remembered samples, a scalar; 0 before any was measured."""
        # Clones: a later `keep` writes the buffers in place while the graph may still need them. All rows where none
        # has a sample: each parameter gets a gradient in every step, of 0.
        rows = {name: self.get_buffer(name)[: self.held() or None].clone() for name in self.columns}
        return float(self.held() > 0) * policy_loss(selector, rows, active, config)


class PolicyFit(nn.Module):
    """The ALSN stage: the selector alone, from the table that warm-up wrote; no image is decoded."""

    amp: torch.dtype | None = None

    def __init__(self, selector: Selector, config: Config, active: tuple[str, ...]) -> None:
        super().__init__()
        self.selector, self.config, self.active = selector, config, active

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """The selector's parameters, as far as the levels leave it a choice."""
        return {"selector": self.selector.used(self.active)}

    def forward(self, batch: dict[str, Tensor], targets: None, phase: Phase, step: int) -> Outcome:
        """Term `policy` of rows {teacher_image, teacher_text: [b,E], u, d: [b,8]}."""
        loss = policy_loss(self.selector, batch, self.active, self.config)
        with torch.no_grad():
            w_v, w_l = self.selector(batch["teacher_image"], batch["teacher_text"], self.active)
        return Outcome({"policy": loss}, describe(w_v, w_l, self.active))


def describe(w_v: Tensor, w_l: Tensor, active: tuple[str, ...]) -> dict[str, Tensor]:
    """Mean weight of every active level and mean entropies in nats of weights [B,4], for the log; scalars."""
    w_v, w_l = w_v.detach(), w_l.detach()
    named = zip(ALL_LEVELS, (*w_v.mean(0), *w_l.mean(0)), strict=True)
    means = {f"weight/{name}": value for name, value in named if name in active}
    return means | {"entropy/vision": entropy(w_v), "entropy/text": entropy(w_l)}
