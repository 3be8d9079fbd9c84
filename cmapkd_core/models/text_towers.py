"""How each kind of text tower gives its taps, its mask, its pooled state and its projection.

Shapes: B batch, N tokens (the context length), D width, E joint embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn
from typing_extensions import override

from cmapkd_core.errors import InputError
from cmapkd_core.models.vision_towers import quarters


def start_to_end(tokens: Tensor, end: Tensor) -> Tensor:
    """Bool [B, N]: True up to and with the position `end` [B] of each caption."""
    return torch.arange(tokens.shape[1], device=tokens.device) <= end[:, None]


@dataclass(frozen=True)
class Trim:
    """Leaves off the columns of token ids that change nothing for a tower, [B, N] -> [B, N'].

    rule: "argmax" or "eos", up to the last caption's end of text: a causal tower that pools there reads nothing behind
    it. "" leaves all. end: the id of "eos". Small and picklable, for a loader's workers: of ids on a GPU it would wait.
    """

    rule: str = ""
    end: int = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """The first columns of [B, N], no copy."""
        if not self.rule:
            return tokens
        ends = tokens.argmax(dim=1) if self.rule == "argmax" else (tokens == self.end).int().argmax(dim=1)
        if self.rule == "eos" and not bool((tokens == self.end).any(dim=1).all()):
            return tokens  # a caption that was cut at the context length has lost its end
        return tokens[:, : int(ends.max()) + 1]


class TextTower(ABC):
    """One kind of text tower; `tower` stays a part of the open_clip model, weights and all."""

    def __init__(self, tower: nn.Module, end_id: int) -> None:
        self.tower: Any = tower
        self.end_id = end_id  # the tokenizer's end-of-text token

    def trim(self, tokens: Tensor) -> Tensor:
        """Token ids [B, N] without the columns that change no result, [B, N']; most towers need them all."""
        return tokens

    def trimming(self) -> Trim:
        """What a loader may leave off of its captions; such a tower's `run` takes what is left."""
        return Trim()

    @abstractmethod
    def repeatable(self) -> list[nn.Module]:
        """What may run again in place of keeping its activations: modules that all of the depth is made of.

        Raises:
            InputError: the tower does not say what they are.
        """

    @abstractmethod
    def run(self, tokens: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Pooled state [B, D], the four taps [B, N, D] and the mask [B, N] of trimmed token ids [B, N]."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Everything that counts as depth, in order."""

    @abstractmethod
    def project(self, pooled: Tensor) -> Tensor:
        """[B, D] -> [B, E], not normalised."""

    @abstractmethod
    def head(self) -> list[nn.Parameter]:
        """Parameters of `project`."""


class ClipText(TextTower):
    """open_clip's own text transformer (causal or not), pooled at the end of text, first or last token."""

    def __init__(self, tower: nn.Module, end_id: int) -> None:
        super().__init__(tower, end_id)
        if getattr(tower, "cls_emb", None) is not None:
            raise InputError("a text tower with embed_cls (CoCa) cannot be distilled: choose a CLIP model")

    def _embed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Input of the first block [B, N, D] and the attention mask."""
        result: tuple[Tensor, Tensor | None] = self.tower._embeds(tokens)
        return result

    @override
    def trimming(self) -> Trim:
        rule, eos_id = self._rule()
        return Trim(rule, eos_id) if self.tower.attn_mask is not None and rule in ("argmax", "eos") else Trim()

    def _rule(self) -> tuple[str, int]:
        """Where the tower pools, and the end-of-text id that it looks for."""
        return self.tower.pool_type, self.tower.eos_id

    @override
    def repeatable(self) -> list[nn.Module]:
        return list(self.tower.transformer.resblocks)

    @override
    def run(self, tokens: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        inputs, attention = self._embed(tokens)
        attention = None if attention is None else attention[..., : tokens.shape[1], : tokens.shape[1]]
        indices = quarters(len(self.tower.transformer.resblocks))
        distinct = sorted(set(indices))
        state, outputs = self.tower.transformer.forward_intermediates(inputs, attn_mask=attention, indices=distinct)
        rule, eos_id = self._rule()
        pooled = text_global_pool(self.tower.ln_final(state), tokens, rule, eos_token_id=eos_id)
        taps = [outputs[distinct.index(index)] for index in indices]
        return pooled, taps, start_to_end(tokens, self._end(tokens, rule, eos_id))

    def _end(self, tokens: Tensor, rule: str, eos_id: int) -> Tensor:
        """Position of the end of text in each caption, [B, N] -> long [B]."""
        if rule == "argmax":
            return tokens.argmax(dim=1)
        is_end = tokens == (eos_id if rule == "eos" else self.end_id)
        # A caption cut at the context length may have lost its end: then all of it counts.
        cut = torch.full_like(tokens[:, 0], tokens.shape[1] - 1)
        return torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1), cut)

    @override
    def blocks(self) -> list[nn.Module]:
        return list(self.tower.transformer.resblocks)

    @override
    def project(self, pooled: Tensor) -> Tensor:
        projection = self.tower.text_projection
        if projection is None:
            return pooled
        result: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return result

    @override
    def head(self) -> list[nn.Parameter]:
        projection = self.tower.text_projection
        if projection is None:
            return []
        return list(projection.parameters()) if isinstance(projection, nn.Linear) else [projection]


class PlainClipText(ClipText):
    """The same transformer, unpacked into the attributes of open_clip's plain `CLIP` class."""

    def _embed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Token ids [B, N] -> input of the first block [B, N, D], and the attention mask of the whole context."""
        dtype = self.tower.transformer.get_cast_dtype()
        embedded = self.tower.token_embedding(tokens).to(dtype)
        return embedded + self.tower.positional_embedding[: tokens.shape[1]].to(dtype), self.tower.attn_mask

    def _rule(self) -> tuple[str, int]:
        return self.tower.text_pool_type, self.tower.text_eos_id


class HuggingFaceText(TextTower):
    """A Hugging Face encoder: bidirectional, masked at its pad token, pooled by open_clip's pooler."""

    def __init__(self, tower: nn.Module, end_id: int) -> None:
        super().__init__(tower, end_id)
        if self.tower.config.pad_token_id is None:
            raise InputError("the text tower's config.json has no pad_token_id: add the tokenizer's")

    def trim(self, tokens: Tensor) -> Tensor:
        """[B, N] -> [B, N'], up to the longest caption: masked columns cost as much as words."""
        used = (tokens != self.tower.config.pad_token_id).any(dim=0).nonzero()
        return tokens[:, : int(used[-1]) + 1] if len(used) else tokens

    @override
    def repeatable(self) -> list[nn.Module]:
        layers, depth = self.tower.transformer, getattr(self.tower.config, "num_hidden_layers", 0)
        lists = [x for x in layers.modules() if isinstance(x, nn.ModuleList) and len(x) == depth]
        if not lists:
            raise InputError(
                f"runtime.grad_checkpointing=true: the text tower {type(layers).__name__} has no list of "
                f"{depth} layers that could run again: leave it at false, or choose another model"
            )
        return list(lists[0])

    @override
    def run(self, tokens: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        mask = tokens != self.tower.config.pad_token_id
        output = self.tower.transformer(input_ids=tokens, attention_mask=mask.long(), output_hidden_states=True)
        # hidden_states[0] is the embedding; the last state may follow a final norm that the list lacks
        states = [*output.hidden_states[1:-1], output.last_hidden_state]
        taps = [states[index] for index in quarters(len(states))]
        return self.tower.pooler(output, mask.long()), taps, mask

    @override
    def blocks(self) -> list[nn.Module]:
        lists = [module for module in self.tower.transformer.modules() if isinstance(module, nn.ModuleList)]
        return list(max(lists, key=len, default=[]))

    @override
    def project(self, pooled: Tensor) -> Tensor:
        result: Tensor = self.tower.proj(pooled)
        return result

    @override
    def head(self) -> list[nn.Parameter]:
        return list(self.tower.proj.parameters())


TEXT_TOWERS: dict[type[nn.Module], type[TextTower]] = {
    CLIP: PlainClipText,
    TextTransformer: ClipText,
    HFTextEncoder: HuggingFaceText,
}
