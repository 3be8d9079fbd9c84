"""Figure 5: the teacher's and the student's image levels in one t-SNE map, before and after training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from cmapkd_core.config import VISION_LEVELS
from cmapkd_core.report.inputs import Inputs, Missing
from cmapkd_core.report.kinds import unit

MODELS = ("teacher", "before", "after")
SAMPLES = 120  # pairs whose levels are shown: twelve points each
PERPLEXITY = 30.0
SEED = 0


@dataclass(frozen=True)
class Map:
    """Positions by model and level, [n,2] each."""

    places: dict[str, dict[str, np.ndarray]]
    samples: int
    perplexity: float

    @property
    def limits(self) -> tuple[float, float]:
        """Both axes' limits in every panel."""
        every = np.concatenate([points for levels in self.places.values() for points in levels.values()])
        low, high = float(every.min()), float(every.max())
        return low - 0.04 * (high - low), high + 0.04 * (high - low)


def read(inputs: Inputs) -> pa.Table:
    """The table of stage levels.

    Raises:
        Missing: it was not given, or the method has no levels.
    """
    source = inputs.source("levels")
    if "levels.json" in source.files and "missing" in (told := source.json("levels.json")):
        raise Missing(str(told["missing"]))
    return source.parquet("levels.parquet")


def levels_in(table: pa.Table) -> tuple[str, ...]:
    """Image levels that the table has, finest first."""
    return tuple(name for name in VISION_LEVELS if f"teacher_{name}" in table.column_names)


def embed(table: pa.Table) -> Map:
    """One map of all models and levels, so that the teacher's points are the same before and after.

    Each vector has unit length, so distances are those of cosines. The same table always gives the same map: fixed
    seed, started from the principal components, one thread (sums over threads have no fixed order).
    """
    names, rows = levels_in(table), table.slice(0, SAMPLES)
    blocks = {(model, name): unit(rows[f"{model}_{name}"]) for model in MODELS for name in names}
    points = np.concatenate(list(blocks.values()))
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    with threadpool_limits(limits=1):
        placed = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED, n_jobs=1).fit_transform(points)
    parts = dict(zip(blocks, np.split(placed, len(blocks)), strict=True))
    places = {model: {name: parts[model, name] for name in names} for model in MODELS}
    return Map(places, rows.num_rows, perplexity)
