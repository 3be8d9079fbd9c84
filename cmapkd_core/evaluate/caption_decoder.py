"""A small transformer that says what a frozen image tower sees (ClipCap, Mokady et al. 2021), and beam search.

Shapes: B images, P prefix positions, T words so far, W width, V vocabulary, k beams.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd_core.config import CaptioningConfig
from cmapkd_core.evaluate.caption_images import ImageFeatures
from cmapkd_core.evaluate.caption_tokens import END, START, UNKNOWN

HEAD = 64  # channels of an attention head, where the width divides


class PrefixDecoder(nn.Module):
    """Projected positions of the image as a prefix, then words; every word sees the prefix and the words before it.

    Only the two projections and the positions' table have sizes of the tower; all else is the same for
    every model. ClipCap maps one embedding to ten prefix tokens and starts from GPT-2; here the tower's
    positions are the prefix and the decoder starts from nothing, so that no model but the one under
    test has seen other data.
    """

    def __init__(self, features: ImageFeatures, vocabulary: int, config: CaptioningConfig) -> None:
        """`features` is an example of what the tower gives; its values do not matter."""
        super().__init__()
        width = config.width
        self.config, self.positions = config, 1 + features.maps.shape[1]
        self.from_map = nn.Linear(features.maps.shape[2], width)
        self.from_embedding = nn.Linear(features.embeddings.shape[1], width)
        self.places = nn.Parameter(torch.randn(self.positions + config.length, width) * 0.02)
        self.words = nn.Embedding(vocabulary, width)  # also what says the next word
        nn.init.normal_(self.words.weight, std=0.02)
        heads = width // HEAD if width % HEAD == 0 else 1
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, config.dropout, F.gelu, batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        place = torch.arange(len(self.places))
        blocked = (place[None] > place[:, None]) & (place[None] >= self.positions)  # the prefix sees itself both ways
        self.register_buffer("blocked", blocked, persistent=False)

    def prefix(self, features: ImageFeatures) -> Tensor:
        """The pooled embedding and the map, [B, P, W]."""
        return torch.cat(
            (self.from_embedding(features.embeddings.float())[:, None], self.from_map(features.maps.float())), 1
        )

    def states(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """[B, P, W] and ids [B, T] with START first -> [B, T, W], each to say the word after its own."""
        x = torch.cat((prefix, self.words(tokens)), dim=1)
        size = x.shape[1]
        x = self.dropout(x + self.places[:size])
        for block in self.blocks:
            x = block(x, src_mask=self.blocked[:size, :size])  # type: ignore[index]
        states: Tensor = self.norm(x[:, prefix.shape[1] :])
        return states

    def forward(self, features: ImageFeatures, tokens: Tensor) -> Tensor:
        """Logits of the next word, [B, T, V]."""
        return F.linear(self.states(self.prefix(features), tokens), self.words.weight)

    def next_word(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities [B, V] of what may follow: a word, or END after at least one word."""
        logits = F.linear(self.states(prefix, tokens)[:, -1], self.words.weight)
        forbidden = [START, UNKNOWN, END] if tokens.shape[1] == 1 else [START, UNKNOWN]
        logits[:, forbidden] = float("-inf")
        return logits.log_softmax(dim=-1)

    @torch.inference_mode()
    def describe(self, features: ImageFeatures) -> Tensor:
        """Ids [B, config.length] of each image's best caption, END from its end on.

        The whole sequence runs again for each word: no cache to keep and reorder, and captions are short.
        """
        beams, length = self.config.beams, self.config.length
        prefix = self.prefix(features).repeat_interleave(beams, dim=0)
        ids, _ = beam_search(
            lambda tokens: self.next_word(prefix, tokens), len(features.maps), beams, length, prefix.device
        )
        return ids


def beam_search(
    next_word: Callable[[Tensor], Tensor], batch: int, beams: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The sequence with the highest mean log-probability a word that a beam of `beams` finds, for each of `batch`.

    Scores are means over the words and END, so that a long caption is not worse for being long. A finished
    sequence keeps its place in the beam as long as no other passes its score. One beam is greedy search.

    Args:
        next_word: ids [batch * beams, t] with START first -> log-probabilities [batch * beams, V]; the
            beams of an input stay in its own rows.
        length: words at most, END counted.

    Returns:
        ids [batch, length] without START, END from the end of the sequence on; scores [batch].
    """
    tokens = torch.full((batch, beams, 1), START, device=device)
    sums = torch.full((batch, beams), float("-inf"), device=device)
    sums[:, 0] = 0.0  # all beams start equal: only one of them may grow
    lengths = torch.zeros(batch, beams, device=device)
    ended = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    for _ in range(length):
        step = next_word(tokens.flatten(0, 1)).unflatten(0, (batch, beams))
        stay = torch.full_like(step[0, 0], float("-inf"))
        stay[END] = 0.0  # what has ended goes on with END, for nothing
        sums_next = sums[..., None] + torch.where(ended[..., None], stay, step)
        lengths_next = lengths + ~ended
        scores = sums_next / lengths_next[..., None]
        best = scores.flatten(1).topk(beams).indices
        parent, word = best // step.shape[-1], best % step.shape[-1]
        sums, lengths = sums_next.flatten(1).gather(1, best), lengths_next.gather(1, parent)
        tokens = torch.cat((tokens.gather(1, parent[..., None].expand_as(tokens)), word[..., None]), dim=2)
        ended = ended.gather(1, parent) | (word == END)
        if bool(ended.all()):
            break
    score, best = (sums / lengths).max(dim=1)
    sequences = tokens[torch.arange(batch, device=device), best, 1:]
    return F.pad(sequences, (0, length - sequences.shape[1]), value=END), score
