"""Who chooses the level weights of a sample: ALSN (paper 4.3), fixed weights, and ALSN's controls.

Shapes: B samples, K = 4 levels a modality. Every selector gives w_v, w_l [B,4] that are not negative;
`restrict` renormalises them over the active levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cmapkd_core.config import TEXT_LEVELS, VISION_LEVELS, SelectorConfig


def restrict(logits: Tensor, known: tuple[str, ...], levels: tuple[str, ...]) -> Tensor:
    """softmax over the active of the `known` levels, [B,4] -> [B,4]; inactive ones get exactly 0."""
    # Column by column: a mask of Python's would be copied to the device, and that is waited for.
    off = logits.new_full(logits.shape[:-1], float("-inf"))
    columns = [logits[..., i] if name in levels else off for i, name in enumerate(known)]
    return torch.stack(columns, dim=-1).softmax(dim=-1)


class Selector(nn.Module):
    """`forward` gives the weights that the policy trains; `choose` those that the student's loss uses."""

    learns = False  # whether there is a policy to train
    # This rank's validation pairs of a step, a data.loader.Batch: of those that the table says need them (`validates`).
    pairs: Callable[[int], Any] | None = None

    def __init__(self, image_width: int, text_width: int, config: SelectorConfig) -> None:
        super().__init__()

    def forward(self, image: Tensor, text: Tensor, levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Teacher embeddings [B,E], [B,E] -> w_v, w_l [B,4] over the active levels."""
        raise NotImplementedError

    def optimised_by(self, as_step: Callable[[nn.Parameter, Tensor], Tensor]) -> None:
        """Told before a phase's first step: what the optimiser would make of a gradient [..] of a parameter."""

    def look(self, method: Any, rows: Any, step: int, levels: tuple[str, ...]) -> None:
        """What comes before `choose` in joint training: a look at the student on the very pairs; most need none.

        Args:
            method, rows: a methods.cmapkd.Cmapkd, and the methods.base.Rows of a batch of b pairs.
            step: of the phase, counted from 0.
        """

    def choose(self, image: Tensor, text: Tensor, levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """The weights in use, [B,4] for each modality."""
        result: tuple[Tensor, Tensor] = self(image, text, levels)
        return result

    def used(self, levels: tuple[str, ...]) -> list[nn.Parameter]:
        """The parameters that the weights of the active levels depend on."""
        return list(self.parameters())


def selectors_of(module: nn.Module) -> list[Selector]:
    """The selectors among a module's parts."""
    return [part for part in module.modules() if isinstance(part, Selector)]


class ALSN(Selector):
    """[x_v; x_l] of the frozen teacher -> 512 -> 256 (ReLU, dropout 0.1) -> two heads of 4.

    The paper's sigmoid before the softmax confines weights to [0.109, 0.475] and is left out.
    """

    learns = True

    def __init__(self, image_width: int, text_width: int, config: SelectorConfig) -> None:
        super().__init__(image_width, text_width, config)
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

    def used(self, levels: tuple[str, ...]) -> list[nn.Parameter]:
        """A modality with one active level leaves its head nothing to choose."""
        heads = ((self.vision_head, VISION_LEVELS), (self.text_head, TEXT_LEVELS))
        choosing = [head for head, known in heads if len(set(known) & set(levels)) > 1]
        return [p for module in (self.encoder, *choosing) for p in module.parameters()] if choosing else []


class ShuffledALSN(ALSN):
    """Control: each sample gets the weights of its neighbour in the batch, so only their distribution is left."""

    def choose(self, image: Tensor, text: Tensor, levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """The learned weights [B,4] of each modality, one sample further."""
        w_v, w_l = self(image, text, levels)
        return w_v.roll(1, dims=0), w_l.roll(1, dims=0)


class ReversedALSN(ALSN):
    """Control: the level that ALSN wants most gets the smallest weight, and so on."""

    def choose(self, image: Tensor, text: Tensor, levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """The learned weights [B,4] of each modality, in the opposite order over the active levels."""
        w_v, w_l = self(image, text, levels)
        return reverse_ranks(w_v, VISION_LEVELS, levels), reverse_ranks(w_l, TEXT_LEVELS, levels)


def reverse_ranks(w: Tensor, known: tuple[str, ...], levels: tuple[str, ...]) -> Tensor:
    """Each row's active weights with the largest and the smallest exchanged, and so on, [B,4] -> [B,4]."""
    active = [i for i, name in enumerate(known) if name in levels]
    values, order = torch.stack([w[:, i] for i in active], dim=1).sort(dim=1)
    reversed_rows = torch.zeros_like(values).scatter(1, order, values.flip(1))
    places = {i: reversed_rows[:, place] for place, i in enumerate(active)}
    return torch.stack([places.get(i, torch.zeros_like(w[:, 0])) for i in range(len(known))], dim=1)


class RandomSelector(Selector):
    """Control: weights drawn anew for every sample and step, softmax of standard normal numbers."""

    def forward(self, image: Tensor, text: Tensor, levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Random weights [B,4] for each modality."""
        vision = torch.randn(len(image), len(VISION_LEVELS), device=image.device)
        language = torch.randn(len(image), len(TEXT_LEVELS), device=image.device)
        return restrict(vision, VISION_LEVELS, levels), restrict(language, TEXT_LEVELS, levels)


class FixedSelector(Selector):
    """The same weights for every sample (uniform, manual)."""

    logits: Tensor

    def __init__(self, image_width: int, text_width: int, config: SelectorConfig) -> None:
        super().__init__(image_width, text_width, config)
        # A weight of 0 becomes 1e-12: softmax needs one active level that is not minus infinity.
        self.register_buffer("logits", torch.tensor(config.weights).clamp_min(1e-12).log(), persistent=False)

    def forward(self, image: Tensor, text: Tensor, levels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Weights [B,4] for each modality, whatever the sample."""
        logits = self.logits.expand(len(image), -1)
        return restrict(logits, VISION_LEVELS, levels), restrict(logits, TEXT_LEVELS, levels)


class Uniform(FixedSelector):
    """Equal weights: what warm-up uses before there is a policy."""

    def __init__(self) -> None:
        super().__init__(0, 0, SelectorConfig(weights=(1.0, 1.0, 1.0, 1.0)))
