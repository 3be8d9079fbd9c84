"""The learned scales of similarities, and CLIP's bounds on them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

MIN_SCALE, MAX_SCALE = 1.0, 100.0  # CLIP's bounds on exp(logit_scale), as open_clip and CLIP-KD keep them
NAMES = ("logit_scale", "log_scale")  # of the parameters: of an open_clip model, and of our own modules


def trained_scales(module: nn.Module) -> list[nn.Parameter]:
    """The log scales anywhere in a module that are trained now; a module that holds one otherwise has `log_scales`."""
    named = [p for name, p in module.named_parameters() if name.rpartition(".")[2] in NAMES]
    return [p for p in (*named, *getattr(module, "log_scales", ())) if p.requires_grad]


@torch.no_grad()
def bound(scales: Iterable[nn.Parameter]) -> None:
    """Clamp trained log scales to 0..log 100, after an update as CLIP does.

    Not inside the graph: a clamp there gives a scale at the bound no gradient, and weights that were trained to it, as
    OpenAI's are, would keep it for ever. A frozen model keeps the scale that it came with.
    """
    for scale in scales:
        scale.clamp_(min=math.log(MIN_SCALE), max=math.log(MAX_SCALE))
