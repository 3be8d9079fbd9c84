"""The table between warm-up and stage alsn: read in parts and shared by ranks, it is what was written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cmapkd_core import storage
from cmapkd_core.catalog import SELECTORS, load
from cmapkd_core.config import ALL_LEVELS, SelectorConfig
from cmapkd_core.data.loader import Batch, TrainLoader
from cmapkd_core.errors import InputError
from cmapkd_core.methods.base import Method
from cmapkd_core.methods.policy_fit import PolicyFit
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.statistics import SAMPLE_STATS, collect, level_weights, shared_columns

ROWS, WIDTH = 10_001, 24  # more than two parts, and a last one that is not whole
SCRIPT = Path(__file__).with_name("sharing_ranks.py")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """As warm-up writes it."""
    random = np.random.default_rng(0)
    columns = {"key": pa.array([f"k{i}" for i in range(ROWS)])}
    for name in (*(f"d_{level}" for level in ALL_LEVELS), *(f"u_{level}" for level in ALL_LEVELS), "difficulty"):
        columns[name] = pa.array(random.standard_normal(ROWS, dtype=np.float32))
    for name in ("teacher_image", "teacher_text"):
        flat = pa.array(random.standard_normal(ROWS * WIDTH, dtype=np.float32))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, WIDTH)
    return pa.table(columns)


@pytest.fixture(params=[ROWS, 3000], ids=["one row group", "several"])
def written(request, table, tmp_path: Path) -> Path:
    path = tmp_path / SAMPLE_STATS
    pq.write_table(table, path, row_group_size=request.param)
    return path


def artifact(path: Path, cache: Path) -> Artifact:
    """One that has the file and no more."""
    output = {"bytes": path.stat().st_size, "sha256": storage.sha256_file(path)}
    manifest = {"folder": ".", "outputs": {path.name: output}, "stage": "warmup"}
    return Artifact(str(path.parent), manifest, "digest", cache)


def expected(table: pa.Table) -> dict[str, torch.Tensor]:
    levels = {kind: np.stack([table[f"{kind}_{name}"].to_numpy() for name in ALL_LEVELS], axis=1) for kind in "du"}
    said = {name: np.array(table[name].to_pylist(), dtype=np.float32) for name in ("teacher_image", "teacher_text")}
    return {name: torch.from_numpy(values) for name, values in (levels | said).items()}


def test_columns_are_those_of_the_table_bit_for_bit(table, written, tmp_path) -> None:
    columns = shared_columns(artifact(written, tmp_path / "cache"))
    assert columns.keys() == expected(table).keys()
    assert all(torch.equal(columns[name], values) for name, values in expected(table).items())
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_columns_are_mapped_and_not_read(written, tmp_path) -> None:
    """So that the ranks of a machine have one copy, and the system may drop it."""
    columns = shared_columns(artifact(written, tmp_path / "cache"))
    address = columns["teacher_image"].data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            assert str(tmp_path / "cache" / "columns-") in line
            return
    pytest.fail("they are in no mapping")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_ranks_of_a_machine_write_the_columns_once_and_have_the_same(start_ranks, table, written, tmp_path) -> None:
    processes = start_ranks(SCRIPT, str(written), str(tmp_path / "cache"), str(tmp_path))
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    sums = {name: values.double().sum().item() for name, values in expected(table).items()}
    assert first["sums"] == second["sums"] == pytest.approx(sums)
    assert first["mapped"] == second["mapped"]
    assert len(first["mapped"]) == 1
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("kind", ["alsn", "shuffled", "reversed"])
def test_weights_are_those_of_the_whole_table_bit_for_bit(one_thread, table, written, tmp_path, kind) -> None:
    """Also of the control that mixes the samples which are chosen together."""
    torch.manual_seed(0)
    fit = PolicyFit(load("selector", kind, SELECTORS)(WIDTH, WIDTH, SelectorConfig()), SelectorConfig(), ALL_LEVELS)
    level_weights(fit, written, tmp_path / "weights.parquet")
    found = pq.read_table(tmp_path / "weights.parquet")
    columns = expected(table)
    parts = zip(columns["teacher_image"].split(4096), columns["teacher_text"].split(4096), strict=True)
    with torch.no_grad():
        w = torch.cat([torch.cat(fit.eval().selector.choose(*part, ALL_LEVELS), dim=1) for part in parts])
    assert found["key"] == table["key"]
    assert found["difficulty"] == table["difficulty"]
    for i, name in enumerate(ALL_LEVELS):
        assert torch.equal(torch.from_numpy(found[f"w_{name}"].to_numpy().copy()), w[:, i])


class Overflowing(Method):
    """Says of the second batch what fp16 says of a gradient that it cannot hold."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def statistics(self, batch: Batch, targets: None) -> dict[str, torch.Tensor]:
        u = torch.full((2, 8), torch.nan if "c" in batch.keys else 0.5)
        fixed = {"teacher_image": torch.ones(2, 4), "teacher_text": torch.ones(2, 4), "difficulty": torch.ones(2)}
        return {"d": torch.ones(2, 8), "u": u, **fixed}


class TwoBatches(TrainLoader):
    """In the place of each batch's first pair stands another; one of four may be corrupt."""

    def __init__(self) -> None:
        self.steps_per_epoch, self.count, self.bound = 2, 4, 0.25

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for keys, gone in ((["a", "b"], "x"), (["c", "d"], "y")):
            yield Batch(keys=keys, index=torch.arange(2), images={}, tokens={}, replaced=[(gone, "torn")])


def test_a_utility_that_is_no_number_stops_warmup_and_not_the_stage_after_it(tmp_path) -> None:
    with pytest.raises(FloatingPointError, match=r"column u of sample_stats\.parquet is not finite on the batch c, d"):
        collect(Overflowing(), TwoBatches(), lambda batch, levels: None, lambda done: None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Even(Overflowing):
    def statistics(self, batch: Batch, targets: None) -> dict[str, torch.Tensor]:
        return super().statistics(batch, targets) | {"u": torch.ones(2, 8)}


def test_corrupt_pairs_count_against_the_bound_where_levels_are_measured_too(tmp_path) -> None:
    with pytest.raises(InputError, match=r"2 of 4 training samples are corrupt(.|\n)*x: torn(.|\n)*y: torn"):
        collect(Even(), TwoBatches(), lambda batch, levels: None, lambda done: None, tmp_path / "out")


class Many(Method):
    """Pairs that say who they are."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def statistics(self, batch: Batch, targets: None) -> dict[str, torch.Tensor]:
        own = batch.index.float()
        levels, embeddings = own[:, None].expand(-1, 8), own[:, None].expand(-1, 64)
        return {"d": levels, "u": -levels, "teacher_image": embeddings, "teacher_text": -embeddings, "difficulty": own}


class ManyBatches(TrainLoader):
    def __init__(self, batch: int) -> None:
        self.batch, self.steps_per_epoch, self.count, self.bound = batch, ROWS // batch, ROWS, 0.0

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for number in range(start, stop):
            index = torch.arange(number * self.batch, (number + 1) * self.batch)
            yield Batch(keys=[f"k{i}" for i in index], index=index, images={}, tokens={}, replaced=[])


@pytest.mark.parametrize("batch", [77, 4096, 5000])
def test_rows_are_written_in_order_and_by_groups(tmp_path, batch) -> None:
    collect(Many(), ManyBatches(batch), lambda batch, levels: None, lambda done: None, tmp_path / "out")
    parquet = pq.ParquetFile(tmp_path / "out")
    groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    count = ROWS // batch * batch
    assert groups == [*[4096] * (count // 4096), *([count % 4096] if count % 4096 else [])]
    found, own = parquet.read(), np.arange(count, dtype=np.float32)
    assert found["key"].to_pylist() == [f"k{i}" for i in range(count)]
    for name, values in (("d_P2", own), ("u_L4", -own), ("difficulty", own)):
        assert np.array_equal(found[name].to_numpy(), values)
    assert found.schema.field("teacher_text").type == pa.list_(pa.float32(), 64)
    assert found["teacher_text"][count - 1].as_py() == [float(1 - count)] * 64


def test_what_was_measured_is_in_the_file_and_not_in_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cmapkd_core.stages.statistics._ROWS", 256)
    out, sizes = tmp_path / "out", []
    collect(
        Many(),
        ManyBatches(100),
        lambda batch, levels: None,
        lambda done: sizes.append(out.stat().st_size if out.exists() else 0),
        out,
    )
    assert sizes[len(sizes) // 2] > out.stat().st_size / 3
