"""The tables between warm-up, the ALSN stage and the report: sample statistics and level weights."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from cmapkd_core import parallel
from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.data.loader import Batch, TrainLoader
from cmapkd_core.errors import Diverged
from cmapkd_core.losses.policy import entropy
from cmapkd_core.methods.base import Method
from cmapkd_core.methods.policy_fit import PolicyFit
from cmapkd_core.models.frozen_teacher import Embeddings
from cmapkd_core.stages.artifact import Artifact

SAMPLE_STATS, WEIGHTS = "sample_stats.parquet", "weights.parquet"
WRONG = "wrong_caption"  # their column for pairs that have another's (data.noise)
_ROWS = 4096  # of the table in memory at a time, and pairs whose weights are chosen together


def collect(
    method: Method,
    loader: TrainLoader,
    targets: Callable[[Batch, tuple[str, ...]], Embeddings | None],
    progress: Callable[[int], None],
    path: Path,
    steps: int = 0,
) -> None:
    """Write statistics of one epoch of training pairs: key, d_*, u_*, teacher_image, teacher_text, difficulty.

    Where some of the pairs have another's caption: WRONG, a bool, too.

    All ranks measure; rank 0 alone writes the rows, about _ROWS of which are in memory.

    The pairs of the epoch's last incomplete batch are missing, as in every epoch of training.

    Args:
        targets: the teacher targets of a batch at the levels.
        progress: called with the number of batches done after each.
        path: the parquet file; there is none where this raises.
        steps: the first so many batches of the epoch alone; 0: all of them.

    Raises:
        Diverged: a gradient overflowed, so that levels of some pairs have no utility.
        InputError: more pairs are corrupt than may be; on all ranks at the same batch, as the one above.
    """
    # Utilities are gradients at the towers, also where the last phase froze them.
    method.eval().requires_grad_(True)
    device = parallel.device()
    corrupt: dict[str, str] = {}
    with RowGroups(path) as table:
        for done, batch in enumerate(loader.batches(0, steps or loader.steps_per_epoch), 1):
            batch = batch.to(device)
            rows = method.statistics(batch, targets(batch, ALL_LEVELS))
            _require_finite(rows, batch.keys)
            every = parallel.all_objects((batch.keys, batch.replaced, loader.wrong(batch.index)))
            corrupt.update(pair for _, replaced, _ in every for pair in replaced)
            loader.require_few_corrupt(corrupt)
            if parallel.rank() == 0:
                lines = _as_table([key for own, _, _ in every for key in own], rows)
                wrong = [flag for *_, own in every if own is not None for flag in own]
                table.add(lines.append_column(WRONG, pa.array(wrong)) if wrong else lines)
            progress(done)


def _as_table(keys: list[str], rows: dict[str, Tensor]) -> pa.Table:
    """The statistics of some pairs as lines of the table."""
    whole = {name: value.detach().cpu() for name, value in rows.items()}
    arrays: dict[str, pa.Array] = {"key": pa.array(keys)}
    for prefix in ("d", "u"):
        arrays |= {f"{prefix}_{name}": pa.array(whole[prefix][:, i].numpy()) for i, name in enumerate(ALL_LEVELS)}
    for name in ("teacher_image", "teacher_text"):
        flat = pa.array(whole[name].flatten().numpy())
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, whole[name].shape[1])
    return pa.table(arrays | {"difficulty": pa.array(whole["difficulty"].numpy())})


class RowGroups:
    """A parquet file of row groups of _ROWS rows, written as they come; gone where the block raises."""

    def __init__(self, path: Path) -> None:
        self._path, self._waiting, self._count = path, list[pa.Table](), 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> RowGroups:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._put(self._count)
        finally:
            if self._writer is not None:
                self._writer.close()
                if kind is not None:
                    self._path.unlink()

    def add(self, rows: pa.Table) -> None:
        """Rows after those before; the first ones decide the columns."""
        self._waiting.append(rows)
        self._count += rows.num_rows
        if self._count >= _ROWS:
            self._put(self._count // _ROWS * _ROWS)

    def _put(self, count: int) -> None:
        if not count:
            return
        rows = pa.concat_tables(self._waiting)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, rows.schema, use_dictionary=False)  # no value comes twice
        self._writer.write_table(rows.slice(0, count), row_group_size=_ROWS)
        self._waiting, self._count = [rows.slice(count).combine_chunks()], rows.num_rows - count


def _require_finite(rows: dict[str, Tensor], keys: list[str]) -> None:
    """Rows d and u, [B,8], are those of all ranks, so all of them raise at the same batch; `keys` are this rank's."""
    if bad := [name for name in ("d", "u") if not rows[name].isfinite().all()]:
        shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
        raise Diverged(
            f"warmup: column {', '.join(bad)} of {SAMPLE_STATS} is not finite on the batch {shown}. "
            "Give optim.precision=fp32, or look at these samples."
        )


def shared_columns(init: Artifact) -> dict[str, Tensor]:
    """What the ALSN stage trains from: u and d [n,8], teacher_image and teacher_text [n,E] of the artifact's table.

    For CC3M they are 18 GB. One rank of each machine writes them to a file that all of its ranks map, so that they are
    in memory once, and the system may drop what is not in use. The file has no name left when this returns.
    """
    # A name of its own: another stage on this machine may be reading the same artifact.
    path = init.cache / f"columns-{parallel.broadcast(uuid.uuid4().hex)}.safetensors"
    if parallel.local_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_columns(init.fetch(SAMPLE_STATS), path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    parallel.barrier()
    columns = load_file(path)
    parallel.barrier()
    if parallel.local_rank() == 0:
        path.unlink()
    return columns


def write_columns(table: Path, target: Path) -> None:
    """The columns of `shared_columns` as a .safetensors file, with about one row group of the table in memory."""
    with pq.ParquetFile(table, memory_map=True) as parquet, target.open("xb") as file:
        count, schema = parquet.metadata.num_rows, parquet.schema_arrow
        widths = {"d": len(ALL_LEVELS), "u": len(ALL_LEVELS)}
        widths |= {name: schema.field(name).type.list_size for name in ("teacher_image", "teacher_text")}
        described, places = _header(count, widths)
        file.write(described)
        done = 0
        for rows in parquet.iter_batches(_ROWS):
            for name, width in widths.items():
                # Written and not mapped: a full disk is then an error and not a signal.
                file.seek(places[name] + 4 * done * width)
                file.write(np.ascontiguousarray(_rows(rows, name), dtype="<f4").data)
            done += len(rows)


def _header(count: int, widths: dict[str, int]) -> tuple[bytes, dict[str, int]]:
    """The start of a .safetensors file of fp32 tensors [count, width] by name, and where in the file each begins."""
    fields: dict[str, dict[str, Any]] = {}
    end = 0
    for name, width in widths.items():
        start, end = end, end + 4 * count * width
        fields[name] = {"dtype": "F32", "shape": [count, width], "data_offsets": [start, end]}
    described = json.dumps(fields).encode()
    described += b" " * (-len(described) % 8)  # so that numbers are aligned where the file is mapped
    places = {name: 8 + len(described) + row["data_offsets"][0] for name, row in fields.items()}
    return len(described).to_bytes(8, "little") + described, places


def _rows(rows: pa.RecordBatch, name: str) -> np.ndarray:
    """A column of `shared_columns` in some rows of the table, [rows, width]."""
    if name in ("u", "d"):
        return np.stack([rows[f"{name}_{level}"].to_numpy() for level in ALL_LEVELS], axis=1)
    values: np.ndarray = rows[name].flatten().to_numpy()
    return values.reshape(len(rows), -1)


@torch.no_grad()
def level_weights(fit: PolicyFit, path: Path, target: Path) -> None:
    """Write the selector's weights of every sample in the statistics: key, w_P2..w_L4, difficulty, WRONG if known."""
    fit.cpu().eval()
    with pq.ParquetFile(path, memory_map=True) as parquet, RowGroups(target) as table:
        copied = [name for name in ("key", "difficulty", WRONG) if name in parquet.schema_arrow.names]
        read = [*copied, "teacher_image", "teacher_text"]
        for rows in parquet.iter_batches(_ROWS, columns=read):
            image, text = (torch.from_numpy(_rows(rows, name).copy()) for name in ("teacher_image", "teacher_text"))
            w = torch.cat(fit.selector.choose(image, text, fit.active), dim=1)
            weights = {f"w_{name}": pa.array(w[:, i].numpy()) for i, name in enumerate(ALL_LEVELS)}
            key, *others = ((name, rows[name]) for name in copied)
            table.add(pa.table(dict([key, *weights.items(), *others])))


def wrong_and_right(path: Path) -> dict[str, float]:
    """How a selector weighs pairs with another's caption and the others, of a table of weights; {} without such pairs.

    `wrong/pairs`; of `wrong` and `right` pairs `KIND/entropy/MODALITY`, the mean in nats, and `KIND/weight/LEVEL`, the
    mean; and `wrong/auc/LEVEL`, how well a level's weight tells them apart (`roc_area`).
    """
    if WRONG not in pq.read_schema(path).names:
        return {}
    table = pq.read_table(path)
    wrong = table[WRONG].to_numpy()
    w = torch.from_numpy(np.stack([table[f"w_{name}"].to_numpy() for name in ALL_LEVELS], axis=1))
    metrics = {"wrong/pairs": float(wrong.sum())}
    for kind, rows in (("wrong", w[wrong]), ("right", w[~wrong])):
        halves = zip(("vision", "text"), rows.split(4, dim=1), strict=True)
        metrics |= {f"{kind}/entropy/{name}": float(entropy(half)) for name, half in halves if len(rows)}
        metrics |= {
            f"{kind}/weight/{name}": float(x) for name, x in zip(ALL_LEVELS, rows.mean(0), strict=True) if len(rows)
        }
    if wrong.any() and not wrong.all():
        metrics |= {f"wrong/auc/{name}": roc_area(w[wrong, i], w[~wrong, i]) for i, name in enumerate(ALL_LEVELS)}
    return metrics


def roc_area(positive: Tensor, negative: Tensor) -> float:
    """The area under the ROC curve: how probably one of `positive`, [P], is above one of `negative`, [N]; ties half.

    0.5 where they cannot be told apart, 0 or 1 where they can without fail.
    """
    ordered = negative.sort().values
    below, not_above = (torch.searchsorted(ordered, positive, right=right) for right in (False, True))
    return float((below + not_above).double().mean() / (2 * len(ordered)))
