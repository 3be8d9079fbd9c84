"""The tables between warm-up, the ALSN stage and the report: sample statistics and level weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cmapkd_core import parallel
from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.data.loader import Batch, TrainLoader
from cmapkd_core.methods import Method
from cmapkd_core.methods.policy import PolicyFit

SAMPLE_STATS, WEIGHTS = "sample_stats.parquet", "weights.parquet"
_ROWS = 4096  # of pairs whose weights are chosen at a time


def collect(method: Method, loader: TrainLoader, said: Callable[[Batch, tuple[str, ...]], Any]) -> pa.Table | None:
    """Statistics of one epoch of training pairs: key, d_*, u_*, teacher_image, teacher_text, difficulty.

    All ranks measure; rank 0 alone keeps the rows, the others get None.

    The pairs of the epoch's last incomplete batch are missing, as in every epoch of training.

    Args:
        said: what the teacher says of a batch, at the levels.
    """
    # Utilities are gradients at the towers, also where the last phase froze them.
    method.eval().requires_grad_(True)
    device, columns, keys = parallel.device(), [], []
    for batch in loader.batches(0, loader.steps_per_epoch):
        batch = batch.to(device)
        rows = method.statistics(batch, said(batch, ALL_LEVELS))
        every = [key for part in parallel.all_objects(batch.keys) for key in part]
        if parallel.rank() == 0:
            columns.append({name: value.detach().cpu() for name, value in rows.items()})
            keys += every
    if parallel.rank() > 0:
        return None
    whole = {name: torch.cat([part[name] for part in columns]) for name in columns[0]}
    arrays: dict[str, pa.Array] = {"key": pa.array(keys)}
    for prefix in ("d", "u"):
        arrays |= {f"{prefix}_{name}": pa.array(whole[prefix][:, i].numpy()) for i, name in enumerate(ALL_LEVELS)}
    for name in ("teacher_image", "teacher_text"):
        flat = pa.array(whole[name].flatten().numpy())
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, whole[name].shape[1])
    return pa.table(arrays | {"difficulty": pa.array(whole["difficulty"].numpy())})


def as_columns(path: Path) -> dict[str, Tensor]:
    """What the ALSN stage trains from: u and d [n,8], teacher_image and teacher_text [n,E]."""
    table = pq.read_table(path)
    columns = {name: _matrix(table, name) for name in ("teacher_image", "teacher_text")}
    for kind in ("u", "d"):
        levels = [torch.from_numpy(table[f"{kind}_{name}"].to_numpy().copy()) for name in ALL_LEVELS]
        columns[kind] = torch.stack(levels, dim=1)
    return columns


def _matrix(table: pa.Table, name: str) -> Tensor:
    column = table[name].combine_chunks()
    flat = torch.from_numpy(column.flatten().to_numpy().copy())
    return flat.view(table.num_rows, -1)


@torch.no_grad()
def level_weights(fit: PolicyFit, path: Path) -> pa.Table:
    """The selector's weights of every sample in the statistics: key, w_P2..w_L4, difficulty."""
    table, columns = pq.read_table(path), as_columns(path)
    fit.cpu().eval()
    said = zip(columns["teacher_image"].split(_ROWS), columns["teacher_text"].split(_ROWS), strict=True)
    w = torch.cat([torch.cat(fit.selector.choose(image, text, fit.active), dim=1) for image, text in said])
    weights = {f"w_{name}": pa.array(w[:, i].numpy()) for i, name in enumerate(ALL_LEVELS)}
    return pa.table({"key": table["key"], **weights, "difficulty": table["difficulty"]})
