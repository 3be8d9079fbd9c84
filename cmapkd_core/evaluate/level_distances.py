"""The levels of teacher and student on held-out pairs: how far apart they are, and which levels find each other.

Shapes: n pairs, W common width, K image levels P, J text levels L, both in the recipe's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from cmapkd_core.data.loader import Side, eval_batches
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.losses.relation import linear_cka
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import Levels, LevelTower, similarities

PAIRS = 1000  # held-out pairs at most
MODELS = ("teacher", "before", "after")  # of training; the last two are the student
LEVELS_TABLE = "levels.parquet"


@dataclass(frozen=True)
class LevelSide:
    """A backbone with its levels, and how it wants its pictures and captions."""

    backbone: Backbone
    levels: LevelTower
    side: Side


@dataclass(frozen=True)
class PooledLevels:
    """One model's levels of n pairs.

    vectors: pooled P_i and L_j by name, [n,W]. own: similarity of P_i and L_j of the same pair, without the learned
    scale, [n,K,J]. others: the mean of the same with the captions of all other pairs, [n,K,J].
    """

    vectors: dict[str, Tensor]
    own: Tensor
    others: Tensor


@torch.no_grad()
def pooled_levels(
    model: LevelSide,
    names: tuple[str, ...],
    shards: ShardSet,
    split: str,
    device: torch.device,
    *,
    batch: int,
    progress: Callable[[int], None],
) -> PooledLevels:
    """The levels of the split's first PAIRS pictures, each with its first caption.

    Raises:
        InputError: no such split, or a stored picture that does not match its checksum.
    """
    captions = shards.table(split)["captions"].to_pylist()
    parts: list[Levels] = []
    done = 0
    for index, images in eval_batches(shards, split, model.side, batch=batch, workers=0, device=device):
        tokens = model.side.tokenize([captions[i][0] for i in index.tolist()]).to(device)
        levels = model.levels(model.backbone.vision(images), model.backbone.text(tokens), names).float()
        parts.append(Levels({}, levels.vectors, levels.mapped))
        done += len(index)
        progress(min(done, PAIRS))
        if done >= PAIRS:
            break
    tables = ({n: torch.cat([getattr(p, t)[n] for p in parts])[:PAIRS] for n in names} for t in ("vectors", "mapped"))
    whole = Levels({}, *tables)
    every = similarities(whole, whole, 1.0)  # [K,J,n,n]
    own = every.diagonal(dim1=-2, dim2=-1)
    others = (every.sum(-1) - own) / max(1, every.shape[-1] - 1)
    return PooledLevels(whole.vectors, own.permute(2, 0, 1).cpu(), others.permute(2, 0, 1).cpu())


def distances(student: PooledLevels, teacher: PooledLevels) -> dict[str, float]:
    """`cosine/P2` and so on: mean of 1 - cos over pairs, in 0..2. `cka/P2`: 1 - linear CKA over the pairs, in 0..1.

    The first is what training lowers, and depends on the basis; the second sees only which pairs are alike.
    """
    result = {}
    for name, student_vectors in student.vectors.items():
        teacher_vectors = teacher.vectors[name]
        result[f"cosine/{name}"] = float((1 - F.cosine_similarity(student_vectors, teacher_vectors, dim=-1)).mean())
        result[f"cka/{name}"] = 1 - float(linear_cka(torch.stack([student_vectors, teacher_vectors]).double())[0, 1])
    return result


def diagonal_lead(model: PooledLevels) -> tuple[float, float]:
    """How much more P_i agrees with its own L_i than with the other levels of the same caption, and its standard error.

    Mean over pairs of mean_i s_ii - mean_{i != j} s_ij, where s is `own` minus `others`: what level pairs share for
    every picture and caption alike says nothing of the pair. Needs as many image levels as text levels, and two.
    """
    s = model.own - model.others
    k = s.shape[1]
    diagonal = s.diagonal(dim1=1, dim2=2).sum(-1)
    lead = diagonal / k - (s.sum(dim=(1, 2)) - diagonal) / (k * (k - 1))
    return float(lead.mean()), float(lead.std() / len(lead) ** 0.5)


def metrics(models: dict[str, PooledLevels]) -> dict[str, float]:
    """Distances before and after training, the diagonal's lead of each model, the number of pairs."""
    result = {"pairs": float(len(models["teacher"].own))}
    for when in MODELS[1:]:
        every = distances(models[when], models["teacher"])
        result |= {f"{key}/{when}": value for key, value in every.items()}
        for kind in ("cosine", "cka"):
            values = [value for key, value in every.items() if key.startswith(f"{kind}/P")]
            result[f"{kind}/image/{when}"] = float(np.mean(values))
    k, j = models["teacher"].own.shape[1:]
    for name, model in models.items() if k == j > 1 else ():
        result[f"diagonal/{name}"], result[f"diagonal_error/{name}"] = diagonal_lead(model)
    return result


def as_table(keys: Sequence[str], captions: Sequence[str], models: dict[str, PooledLevels]) -> pa.Table:
    """Rows by pair: key, caption, {model}_{level} [W] fp16 of image levels, {model}_own and {model}_others [K*J]."""
    columns: dict[str, pa.Array] = {"key": pa.array(keys), "caption": pa.array(captions)}
    for name, model in models.items():
        for level, vectors in model.vectors.items():
            if level.startswith("P"):
                columns[f"{name}_{level}"] = _lists(vectors.cpu().half().numpy())
        columns[f"{name}_own"] = _lists(model.own.flatten(1).numpy())
        columns[f"{name}_others"] = _lists(model.others.flatten(1).numpy())
    return pa.table(columns)


def _lists(rows: np.ndarray) -> pa.Array:
    """[n, d] as a column of n lists of d."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
