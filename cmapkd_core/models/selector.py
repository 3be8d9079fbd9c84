"""Who chooses the level weights of a sample: ALSN (paper 4.3) or fixed weights.

Shapes: B samples, K = 4 levels a modality. Every selector gives w_v, w_l [B,4] that are not negative;
`restrict` renormalises them over the active levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmapkd_core.config import TEXT_LEVELS, VISION_LEVELS, SelectorConfig


def restrict(logits: Tensor, known: tuple[str, ...], levels: tuple[str, ...]) -> Tensor:
    """softmax over the active of the `known` levels, [B,4] -> [B,4]; inactive ones get exactly 0."""
    active = torch.tensor([name in levels for name in known], device=logits.device)
    return logits.masked_fill(~active, float("-inf")).softmax(dim=-1)


class ALSN(nn.Module):
    """[x_v; x_l] of the frozen teacher -> 512 -> 256 (ReLU, dropout 0.1) -> two heads of 4.

    The paper's sigmoid before the softmax confines weights to [0.109, 0.475] and is left out.
    """

    learns = True

    def __init__(self, image_width: int, text_width: int, config: SelectorConfig) -> None:
        super().__init__()
        self.tau = config.tau
        self.encoder = nn.Sequential(
            *(nn.Linear(image_width + text_width, 512), nn.ReLU(), nn.Dropout(0.1)),
            *(nn.Linear(512, 256), nn.ReLU()),
        )
        self.vision_head = nn.Linear(256, len(VISION_LEVELS))
        self.text_head = nn.Linear(256, len(TEXT_LEVELS))

    def forward(self, image: Tensor, text: Tensor, levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Teacher embeddings [B,E], [B,E] -> w_v, w_l [B,4] over the active levels."""
        # Unit vectors in E dimensions have components near 1/sqrt(E): bring them to unit variance.
        h = self.encoder(torch.cat((image * image.shape[-1] ** 0.5, text * text.shape[-1] ** 0.5), dim=-1))
        return (
            restrict(self.vision_head(h) / self.tau, VISION_LEVELS, levels),
            restrict(self.text_head(h) / self.tau, TEXT_LEVELS, levels),
        )


class FixedSelector(nn.Module):
    """The same weights for every sample (uniform, manual)."""

    learns = False
    logits: Tensor

    def __init__(self, image_width: int, text_width: int, config: SelectorConfig) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(config.weights).clamp_min(1e-12).log(), persistent=False)

    def forward(self, image: Tensor, text: Tensor, levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Weights [B,4] for each modality, whatever the sample."""
        logits = self.logits.expand(len(image), -1)
        return restrict(logits, VISION_LEVELS, levels), restrict(logits, TEXT_LEVELS, levels)


class Uniform(FixedSelector):
    """Equal weights: what warm-up uses before there is a policy."""

    def __init__(self) -> None:
        super().__init__(0, 0, SelectorConfig(weights=(1.0, 1.0, 1.0, 1.0)))


SELECTORS: dict[str, type[ALSN] | type[FixedSelector]] = {"alsn": ALSN, "fixed": FixedSelector}
