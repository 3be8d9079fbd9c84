"""Language hierarchy L1..L4 from four tapped token maps (paper 4.2.2; at the end of text, not at position 0).

Shapes: B samples, N tokens, D_k width of tap k, W common width. `mask` [B,N] is true from the start
to the end-of-text token; padding never enters. Every level is one vector [B,W].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmapkd_core.config import TEXT_LEVELS
from cmapkd_core.models.features import Features

WINDOW = 3  # tokens in a phrase, paper's "window size"


def heads_for(width: int) -> int:
    """Attention heads of at most 64 channels that divide the width."""
    return next(n for n in range(max(1, width // 64), 0, -1) if width % n == 0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid tokens, [B,N,D] -> [B,D]."""
    weights = mask.to(x.dtype).unsqueeze(-1)
    return (x * weights).sum(1) / weights.sum(1).clamp_min(1)


class PhraseAttention(nn.Module):
    """L2: self-attention limited to a window of 3 valid tokens, then their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads_for(width), batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B,N,D], [B,N] -> [B,D]."""
        position = torch.arange(x.shape[1], device=x.device)
        far = (position[:, None] - position[None]).abs() > WINDOW // 2
        # A padded query would see no key at all and give NaN: it may see itself, and the mean drops it.
        alone = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        blocked = far | (~mask[:, None, :] & ~alone)
        blocked = blocked.repeat_interleave(self.attention.num_heads, dim=0)
        out, _ = self.attention(x, x, x, attn_mask=blocked, need_weights=False)
        return masked_mean(out, mask)


class SentenceAttention(nn.Module):
    """L3: one learned query attends to all valid tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, heads_for(width), batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B,N,D], [B,N] -> [B,D]."""
        query = self.query.expand(len(x), -1, -1)
        pooled: Tensor = self.attention(query, x, x, key_padding_mask=~mask, need_weights=False)[0]
        return pooled.squeeze(1)


class MaskedMean(nn.Module):
    """L1: mean of the valid tokens."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B,N,D], [B,N] -> [B,D]."""
        return masked_mean(x, mask)


class LanguageHierarchy(nn.Module):
    """L1 token mean, L2 phrase attention, L3 sentence attention, L4 the tower's own pooled state."""

    def __init__(self, widths: tuple[int, ...], pooled: int, width: int) -> None:
        super().__init__()
        inputs = dict(zip(TEXT_LEVELS, (*widths[:3], pooled), strict=True))
        self.norms = nn.ModuleDict({name: nn.LayerNorm(w) for name, w in inputs.items()})
        self.pools = nn.ModuleDict(
            {"L1": MaskedMean(), "L2": PhraseAttention(widths[1]), "L3": SentenceAttention(widths[2])}
        )
        self.projections = nn.ModuleDict({name: nn.Linear(w, width) for name, w in inputs.items()})

    def forward(self, text: Features, levels: tuple[str, ...]) -> dict[str, Tensor]:
        """Vectors [B,W] of the active `levels`.

        L4 is the end-of-text state where the tower pools so (position 0 of a causal tower is the
        same for every caption), else what the tower itself pools.
        """
        return {name: self.projections[name](self._state(name, text)) for name in TEXT_LEVELS if name in levels}

    def _state(self, name: str, text: Features) -> Tensor:
        """The state [B, D] that a level projects."""
        if name == "L4":
            state: Tensor = self.norms[name](text.pooled)
            return state
        assert text.mask is not None, "text features carry a mask"
        tap = text.taps[TEXT_LEVELS.index(name)]
        pooled: Tensor = self.pools[name](self.norms[name](tap), text.mask)
        return pooled

    def used(self, levels: tuple[str, ...]) -> list[nn.Parameter]:
        """The parameters that the active levels depend on: each level its own."""
        names = [n for n in TEXT_LEVELS if n in levels]
        modules = [table[n] for table in (self.norms, self.pools, self.projections) for n in names if n in table]
        return [p for module in modules for p in module.parameters()]
