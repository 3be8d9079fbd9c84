"""What a model is beside its tensors: two models of equal weights that differ in any of it are two models.

`Identity.of` reads it off the model that was built and not off what was asked for. It lies in every model folder
(`model.json`, checked when the folder is opened), in the manifests of the stages that use a model, in the exports and
on the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

# Classes of activations in open_clip, timm, transformers and torch -> the words that open_clip and transformers use.
ACTIVATIONS = {
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
    "GELU": "gelu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "Swish": "silu",
    "Hardswish": "hard_swish",
    "HardSwish": "hard_swish",
    "HardSwishMe": "hard_swish",
}


@dataclass(frozen=True)
class Identity:
    """Of one model.

    architecture: the name or config that it was built from; "unknown" of a folder that does not say.
    activations: by tower ("image", "text"), of its modules, several joined by +; "unknown" where none is a module.
    image_size: side in pixels. mean, std: of the channels in 0..1. resize_mode, interpolation, fill_color:
        open_clip's, how a picture becomes a square.
    tokenizer: its kind and the size of its vocabulary. context_length: tokens of a caption.
    embed_dim: of the joint space. logit_bias: whether similarities have one (SigLIP).
    """

    architecture: str
    activations: dict[str, str]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_mode: str
    interpolation: str
    fill_color: int
    tokenizer: str
    context_length: int
    embed_dim: int
    logit_bias: bool

    @classmethod
    def of(
        cls, model: Any, config: Mapping[str, Any], tokenize: Callable[[list[str]], Any], sizes: tuple[int, int, int]
    ) -> Identity:
        """Of a model as it was built.

        Args:
            model: open_clip's. config: as `Backbone.config`. tokenize: its tokenizer.
            sizes: image_size, context_length and embed_dim, measured on the model.
        """
        preprocess: Mapping[str, Any] = model.visual.preprocess_cfg
        text = getattr(model, "text", None) or getattr(model, "transformer", None)
        return cls(
            architecture=config.get("architecture", "unknown"),
            activations={"image": activations(model.visual), "text": activations(text)},
            image_size=sizes[0],
            mean=tuple(preprocess["mean"]),
            std=tuple(preprocess["std"]),
            resize_mode=preprocess["resize_mode"],
            interpolation=preprocess["interpolation"],
            fill_color=preprocess["fill_color"],
            tokenizer=_tokenizer(tokenize),
            context_length=sizes[1],
            embed_dim=sizes[2],
            logit_bias=model.logit_bias is not None,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def line(self) -> str:
        """One line for a log: what decides whether the same weights are the same model."""
        towers = dict.fromkeys(self.activations.values())
        shown = next(iter(towers)) if len(towers) == 1 else ", ".join(f"{v} ({k})" for k, v in self.activations.items())
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        pixels = f"{self.image_size} px, {self.resize_mode}, {self.interpolation}, mean {mean}, std {std}"
        bias = ", logit bias" if self.logit_bias else ""
        return f"{self.architecture}: {shown}; {pixels}; {self.context_length} tokens of {self.tokenizer}{bias}"


NAMES = tuple(field.name for field in fields(Identity))


def unlike(recorded: Mapping[str, Any], built: Identity) -> list[str]:
    """`field: RECORDED and not BUILT` where a record and a model that was built are not alike.

    Fields that only one of the two knows (of another version) say nothing.
    """
    actual = built.plain()
    return [f"{n}: {recorded[n]} and not {actual[n]}" for n in NAMES if n in recorded and recorded[n] != actual[n]]


def activations(tower: nn.Module | None) -> str:
    """Names of the activations among a tower's modules, in alphabetical order, joined by +."""
    names = {_activation(module) for module in (tower.modules() if tower is not None else ())}
    return "+".join(sorted(names - {""})) or "unknown"


def _activation(module: nn.Module) -> str:
    name = ACTIVATIONS.get(type(module).__name__, "")
    return "gelu_tanh" if name == "gelu" and getattr(module, "approximate", "none") == "tanh" else name


def _tokenizer(tokenize: Any) -> str:
    from open_clip.tokenizer import SimpleTokenizer  # every stage knows identities, and not every one has a model

    if isinstance(tokenize, SimpleTokenizer):
        return f"open_clip's BPE ({tokenize.vocab_size} entries)"
    inner = getattr(tokenize, "tokenizer", tokenize)
    # By its files and not by its class, which transformers calls otherwise from version to version.
    backend = getattr(inner, "backend_tokenizer", None)
    kind = type(backend.model).__name__ if backend is not None else "Hugging Face's"
    return f"{kind} ({inner.vocab_size} entries)"
