"""How ALSN learns: from measured utilities, in its own stage and in joint training.

Shapes: B samples, E the teacher's embedding width, 4 levels a modality.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmapkd_core.config import ALL_LEVELS, TEXT_LEVELS, VISION_LEVELS, Phase, SelectorConfig
from cmapkd_core.losses.policy import entropy, policy
from cmapkd_core.methods.base import Outcome
from cmapkd_core.models.selector import ALSN, FixedSelector, restrict


def policy_loss(
    selector: nn.Module,
    image: Tensor,
    text: Tensor,
    u: tuple[Tensor, Tensor],
    active: tuple[str, ...],
    c: SelectorConfig,
) -> Tensor:
    """Both modalities' KL(q || w) + uniform KL(w || 1/K); image, text [B,E], u_v and u_l [B,4]."""
    w_v, w_l = selector(image, text, active)
    q_v = restrict(u[0] / c.utility_tau, VISION_LEVELS, active)
    q_l = restrict(u[1] / c.utility_tau, TEXT_LEVELS, active)
    return policy(w_v, q_v, c.uniform) + policy(w_l, q_l, c.uniform)


class PolicyMemory(nn.Module):
    """The samples whose utilities were measured last, gathered over the ranks.

    Measuring costs a backward per level, so it happens every few steps and the selector trains on
    the same samples in between. Buffers, so that a resumed run continues with the same samples.
    """

    image: Tensor
    text: Tensor
    vision_utility: Tensor
    text_utility: Tensor
    filled: Tensor

    def __init__(self, batch: int, width: int) -> None:
        super().__init__()
        for name, columns in (("image", width), ("text", width), ("vision_utility", 4), ("text_utility", 4)):
            self.register_buffer(name, torch.zeros(batch, columns))
        self.register_buffer("filled", torch.zeros(()))

    def keep(self, image: Tensor, text: Tensor, u_v: Tensor, u_l: Tensor) -> None:
        """Replace the samples: embeddings [B,E], utilities [B,4]."""
        pairs = ((self.image, image), (self.text, text), (self.vision_utility, u_v), (self.text_utility, u_l))
        for buffer, value in pairs:
            buffer.copy_(value.detach())
        self.filled.fill_(1.0)

    def loss(self, selector: ALSN | FixedSelector, active: tuple[str, ...], config: SelectorConfig) -> Tensor:
        """The policy loss of the remembered samples; 0 before any was measured."""
        # Clones: a later `keep` writes the buffers in place while the graph may still need them.
        u = (self.vision_utility.clone(), self.text_utility.clone())
        return self.filled * policy_loss(selector, self.image.clone(), self.text.clone(), u, active, config)


class PolicyFit(nn.Module):
    """The ALSN stage: the selector alone, from the table that warm-up wrote; no image is decoded."""

    amp: torch.dtype | None = None

    def __init__(self, selector: ALSN | FixedSelector, config: SelectorConfig, active: tuple[str, ...]) -> None:
        super().__init__()
        self.selector, self.config, self.active = selector, config, active

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """The selector's parameters."""
        return {"selector": list(self.selector.parameters())}

    def forward(self, batch: dict[str, Tensor], targets: None, phase: Phase, step: int) -> Outcome:
        """Term `policy` of rows {teacher_image, teacher_text: [b,E], u: [b,8]}."""
        u = batch["u"].split(len(VISION_LEVELS), dim=1)
        image, text = batch["teacher_image"], batch["teacher_text"]
        loss = policy_loss(self.selector, image, text, (u[0], u[1]), self.active, self.config)
        w_v, w_l = self.selector(image, text, self.active)
        named = zip(ALL_LEVELS, (*w_v.detach().mean(0), *w_l.detach().mean(0)), strict=True)
        stats = {f"weight/{n}": value for n, value in named if n in self.active}
        return Outcome(
            {"policy": loss}, stats | {"entropy/vision": entropy(w_v.detach()), "entropy/text": entropy(w_l.detach())}
        )
