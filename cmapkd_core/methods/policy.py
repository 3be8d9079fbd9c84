"""How ALSN learns: from measured utilities, in its own stage and in joint training.

Shapes: B samples, E the teacher's embedding width, 4 levels a modality.
"""

from __future__ import annotations

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
    """The samples whose levels were measured last, gathered over the ranks.

    Measuring costs a backward per level, so it happens every few steps and the selector trains on
    the same samples in between. Buffers, so that a resumed run continues with the same samples.
    """

    filled: Tensor

    def __init__(self, batch: int, width: int) -> None:
        super().__init__()
        self.columns = {"teacher_image": width, "teacher_text": width, "u": 8, "d": 8}
        for name, size in self.columns.items():
            self.register_buffer(name, torch.zeros(batch, size))
        self.register_buffer("filled", torch.zeros(()))

    def keep(self, rows: dict[str, Tensor]) -> None:
        """Replace the samples: teacher_image, teacher_text [B,E], utilities u and distances d [B,8]."""
        for name in self.columns:
            self.get_buffer(name).copy_(rows[name].detach())
        self.filled.fill_(1.0)

    def loss(self, selector: Selector, active: tuple[str, ...], config: Config) -> Tensor:
        """The policy loss of the remembered samples, a scalar; 0 before any was measured."""
        # Clones: a later `keep` writes the buffers in place while the graph may still need them.
        rows = {name: self.get_buffer(name).clone() for name in self.columns}
        return self.filled * policy_loss(selector, rows, active, config)


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
