"""One wrapper around every open_clip model: embeddings, taps, projections, sizes (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn
from typing_extensions import override

from cmapkd_core.errors import InputError
from cmapkd_core.models.features import Features, Spec
from cmapkd_core.models.headed import HeadedTower, HeadedVisual
from cmapkd_core.models.identity import Identity
from cmapkd_core.models.lifted import IMAGE_TOWERS
from cmapkd_core.models.recompute import recomputed
from cmapkd_core.models.text_towers import TEXT_TOWERS, TextTower, Trim
from cmapkd_core.models.vision_towers import VisionTower

CPU_CHUNK = 16  # images a forward on a CPU takes at once: their maps stay in its cache, which halves the time


class Backbone(nn.Module):
    """An open_clip `CLIP` or `CustomTextCLIP`, teacher or student, with four taps a tower.

    Built in evaluation mode; a student's engine calls `train()`. A `logit_bias` (SigLIP) is frozen: it
    adds the same constant to every logit, which the softmax losses here do not see.

    Attributes:
        model: the open_clip model; its weights are what `save_model` writes.
        config: {"architecture", "model_cfg", "preprocess_cfg"} in open_clip's form, complete.
            No path of a machine is in it.
        files: Hugging Face config and tokenizer files of the text tower by name; {} where it has none.
        tokenize: picklable; list of n captions -> LongTensor [n, context_length].
        spec: sizes, measured on the model.
        frozen: names of the parameters that `freeze` has taken from training.
        identity: what it is beside its tensors, read off the model.
    """

    def __init__(
        self,
        model: CLIP | CustomTextCLIP,
        config: dict[str, Any],
        files: dict[str, bytes],
        tokenize: Callable[[list[str]], Tensor],
    ) -> None:
        """tokenize: n texts -> long [n, N].

        Raises:
            InputError: towers that no adapter knows, or sizes that no level fits.
        """
        super().__init__()
        if type(model) not in (CLIP, CustomTextCLIP):
            raise InputError(f"{type(model).__name__} has no plain image and text embedding: choose a CLIP model")
        self.model: Any = model
        self.config, self.files, self.tokenize = config, files, tokenize
        text = self.model.text if isinstance(model, CustomTextCLIP) else model
        towers = {**IMAGE_TOWERS, HeadedVisual: HeadedTower}
        self._vision: VisionTower = _adapter(towers, self.model.visual)(self.model.visual)
        self._text: TextTower = _adapter(TEXT_TOWERS, text)(text, _end_id(tokenize))
        if self.model.logit_bias is not None:
            self.model.logit_bias.requires_grad_(False)
        self._repeated: tuple[list[nn.Module], list[nn.Module]] = ([], [])
        self.frozen, self._first = frozenset[str](), 0
        self.eval()
        self.spec = self._measure()
        sizes = (self.spec.image_size, self.spec.context_length, self.spec.embed_dim)
        self.identity = Identity.of(self.model, config, tokenize, sizes)

    def vision(self, images: Tensor) -> Features:
        """Features of images [B, 3, H, H]; taps [B, C_k, h_k, w_k] without CLS, no mask."""
        with recomputed(self._repeated[0]):
            pooled, *taps, final = _joined([(p, *t, f) for p, t, f in map(self._vision.run, self._parts(images))])
        raw = self._vision.project(pooled)
        return Features(F.normalize(raw, dim=-1), pooled, taps, final=final, raw=raw, first=self._first)

    def text(self, tokens: Tensor) -> Features:
        """Features of token ids [B, N]; taps [B, N', D]; mask [B, N'] True from the start to the end-of-text token.

        N' = N, but a Hugging Face tower leaves off the columns that are padding in every caption.
        """
        with recomputed(self._repeated[1]):
            pooled, taps, mask = self._text.run(self._text.trim(tokens))
        raw = self._text.project(pooled)
        return Features(F.normalize(raw, dim=-1), pooled, taps, mask, raw=raw, first=self._first)

    def freeze(self, quarters: int) -> None:
        """From here on so many quarters of both towers, from below, are as at inference whatever is trained above them.

        Their parameters are in `frozen`, and `train` leaves their batch norms and dropout in evaluation mode.
        """
        self.frozen, self._first = frozenset(self.before(quarters - 1) if quarters else ()), quarters
        self.train(self.training)

    @override
    def train(self, mode: bool = True) -> Backbone:
        """As torch's, but for what is frozen."""
        super().train(mode)
        for place, module in self.named_modules() if self.frozen else ():
            own = {name for name, _ in module.named_parameters(prefix=place)}
            if own and own <= self.frozen:
                module.eval()
        return self

    def checkpoint_blocks(self) -> None:
        """From here on blocks of both towers run again for the gradient in place of keeping their activations.

        Raises:
            InputError: a tower does not say what its blocks are; names it.
        """
        self._repeated = self._vision.repeatable(), self._text.repeatable()

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, H] -> unit-norm [B, E], without taps."""
        return _joined([(self.model.encode_image(part, normalize=True),) for part in self._parts(images)])[0]

    def _parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, ..] in chunks [b, ..] where that is faster and changes nothing: no graph, no statistics of a batch."""
        whole = self.training or torch.is_grad_enabled() or images.device.type != "cpu"
        return (images,) if whole else images.split(CPU_CHUNK)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, N] -> unit-norm [B, E], without taps."""
        result: Tensor = self.model.encode_text(self._text.trim(tokens), normalize=True)
        return result

    def project_image(self, pooled: Tensor) -> Tensor:
        """`Features.pooled` of the image tower [B, D] -> unit-norm [B, E]."""
        return F.normalize(self._vision.project(pooled), dim=-1)

    def project_text(self, pooled: Tensor) -> Tensor:
        """`Features.pooled` of the text tower [B, D] -> unit-norm [B, E]."""
        return F.normalize(self._text.project(pooled), dim=-1)

    def final_map(self, features: Features) -> Tensor:
        """The map that the image tower pools, [B, C, h, w] without CLS, of its own features."""
        assert features.final is not None, "image features carry what was pooled"
        return self._vision.layout()(features.final)[0]

    def project_map(self, final_map: Tensor) -> Tensor:
        """Unit embedding of every position as if it were the whole image, [B, C, h, w] -> [B, h*w, E]."""
        vectors = final_map.flatten(2).transpose(1, 2)
        return torch.unflatten(self.project_image(self._vision.alone(vectors.flatten(0, 1))), 0, vectors.shape[:2])

    def before(self, tap: int) -> set[str]:
        """Names of the parameters that the given tap (0..3) of either tower depends on, by a backward on zeros."""
        size, mode = self.spec.image_size, self.training
        params = {name: p for name, p in self.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            sides = self.eval().vision(torch.zeros(1, 3, size, size)), self.text(self.tokenize(["a"]))
            total = torch.stack([side.taps[tap].sum() for side in sides]).sum()
        self.train(mode)
        gradients = torch.autograd.grad(total, list(params.values()), allow_unused=True)
        return {name for name, gradient in zip(params, gradients, strict=True) if gradient is not None}

    def trimming(self) -> Trim:
        """Picklable; token ids [B, N] without the columns behind all captions' ends, where they change nothing."""
        return self._text.trimming()

    def blocks(self) -> list[nn.Module]:
        """What both towers do one after another, which is most of what they do; each once."""
        return list(dict.fromkeys([*self._vision.blocks(), *self._text.blocks()]))

    def heads(self) -> list[nn.Parameter]:
        """What makes the joint space of two given towers: both projections and the logit scale."""
        return [*self._vision.head(), *self._text.head(), self.model.logit_scale]

    def scale(self) -> Tensor:
        """exp(logit_scale) as a scalar; where it is trained, models/scales.py keeps it within CLIP's bound."""
        result: Tensor = self.model.logit_scale.exp().reshape(())
        return result

    @torch.no_grad()
    def _measure(self) -> Spec:
        size = _square(self.model.visual.image_size)
        tokens = self.tokenize(["a"])
        vision, text = self.vision(torch.zeros(1, 3, size, size)), self.text(tokens)
        return Spec(
            image_size=size,
            context_length=tokens.shape[1],
            embed_dim=vision.embedding.shape[1],
            vision_widths=tuple(tap.shape[1] for tap in vision.taps),
            vision_grids=tuple(tap.shape[2] for tap in vision.taps),
            vision_pooled=vision.pooled.shape[1],
            text_widths=tuple(tap.shape[2] for tap in text.taps),
            text_pooled=text.pooled.shape[1],
        )


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Parts [b, ..] of a batch as one [B, ..]; a whole batch stays the very tensors, which gradients are asked for."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(same) for same in zip(*parts, strict=True))


def _adapter(table: dict[type[nn.Module], Any], tower: nn.Module) -> Any:
    if type(tower) not in table:
        known = ", ".join(kind.__name__ for kind in table)
        raise InputError(f"no taps are known for a {type(tower).__name__} tower: choose a model with one of {known}")
    return table[type(tower)]


def _square(size: int | tuple[int, int]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise InputError(f"image_size {height}x{width} is not square: give vision_cfg.image_size one number")
    return height


def _end_id(tokenize: Any) -> int:
    """End-of-text id of open_clip's own tokenizer, or of a Hugging Face one (BERT calls it separator)."""
    if hasattr(tokenize, "eot_token_id"):
        own: int = tokenize.eot_token_id
        return own
    inner = tokenize.tokenizer
    end: int = inner.eos_token_id if inner.eos_token_id is not None else inner.sep_token_id
    return end
