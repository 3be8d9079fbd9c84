"""How good the teacher's fitted levels are, on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cmapkd_core.config import ALL_LEVELS, TEXT_LEVELS, VISION_LEVELS
from cmapkd_core.data.loader import Side, eval_batches
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.methods.teacher_fit import FrozenFeatures, PyramidFit
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import Levels, similarities

PAIRS = 1000  # held-out pairs at most: R@1 among them has a standard error of at most 1.6 points
BATCH = 64


class Variance:
    """Explained variance, summed over batches: 1 - sum (x - guess)^2 / sum (x - mean)^2, per channel means."""

    def __init__(self) -> None:
        self.error, self.count = 0.0, 0
        self.total: Tensor | float = 0.0
        self.square = 0.0

    def add(self, x: Tensor, guess: Tensor) -> None:
        """Rows [n, C] and their reconstruction."""
        x, guess = x.double(), guess.double()
        self.error += float((x - guess).square().sum())
        self.square += float(x.square().sum())
        self.total = self.total + x.sum(0)
        self.count += len(x)

    def value(self) -> float:
        """At most 1; 0 is as good as the mean."""
        spread = self.square - float(torch.as_tensor(self.total).square().sum()) / self.count
        return 1 - self.error / spread if spread > 0 else 0.0


@torch.no_grad()
def level_report(
    fit: PyramidFit,
    backbone: Backbone,
    shards: ShardSet,
    side: Side,
    device: torch.device,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Per level: explained variance, and R@1 of P_i with its L_i both ways, on up to PAIRS validation pairs.

    Args:
        progress: called with the number of pairs done after each batch.

    Returns:
        {"pairs": n, "chance_r1": 1/n, "levels": {"P2": {"explained_variance": .., "r1": ..}, ..},
         "r1": 4x4 image-to-text R@1 of every P_i with every L_j}; {} without a validation split.
    """
    if not shards.manifest["splits"].get("val", {}).get("count"):
        return {}
    fit.to(device).eval()
    variances = {name: Variance() for name in ALL_LEVELS}
    parts: list[Levels] = []
    shards.require_captions("val")
    captions = shards.table("val")["captions"].to_pylist()
    for index, images in eval_batches(shards, "val", side, batch=BATCH, workers=0, device=device):
        tokens = side.tokenize([captions[i][0] for i in index.tolist()]).to(device)
        features = FrozenFeatures(backbone.vision(images), backbone.text(tokens))
        levels = fit.levels(features.vision, features.text, ALL_LEVELS).float()
        for name, pair in fit.reconstructions(levels, features).items():
            variances[name].add(*pair)
        parts.append(Levels({}, levels.vectors, levels.mapped))
        done = sum(len(p.vectors["P5"]) for p in parts)
        progress(min(done, PAIRS))
        if done >= PAIRS:
            break
    whole = Levels(
        {}, *({n: torch.cat([getattr(p, t)[n] for p in parts]) for n in ALL_LEVELS} for t in ("vectors", "mapped"))
    )
    sims = similarities(whole, whole, 1.0)
    n = sims.shape[-1]
    own = torch.arange(n, device=device)
    i2t = (sims.argmax(-1) == own).float().mean(-1)
    t2i = (sims.argmax(-2) == own).float().mean(-1)
    r1 = {name: float(i2t[k, k]) for k, name in enumerate(VISION_LEVELS)}
    r1 |= {name: float(t2i[k, k]) for k, name in enumerate(TEXT_LEVELS)}
    rows = {name: {"explained_variance": variances[name].value(), "r1": r1[name]} for name in ALL_LEVELS}
    return {"pairs": n, "chance_r1": 1 / n, "levels": rows, "r1": i2t.tolist()}
