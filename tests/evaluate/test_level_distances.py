"""Distances of levels and the diagonal's lead on hand-made vectors."""

from __future__ import annotations

import pytest
import torch

from cmapkd_core.evaluate import level_distances as measured
from cmapkd_core.evaluate.level_distances import PooledLevels


def levels(vectors: dict[str, torch.Tensor], own: torch.Tensor | None = None) -> PooledLevels:
    n = len(next(iter(vectors.values())))
    own = torch.zeros(n, 2, 2) if own is None else own
    return PooledLevels(vectors, own, torch.zeros_like(own))


def test_distances_by_hand() -> None:
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    same = measured.distances(levels({"P2": x}), levels({"P2": 3 * x}))
    assert same["cosine/P2"] == pytest.approx(0.0, abs=1e-6)
    assert same["cka/P2"] == pytest.approx(0.0, abs=1e-6)
    turned = measured.distances(levels({"P2": x.roll(1, dims=1)}), levels({"P2": x}))
    assert turned["cosine/P2"] > 0.5  # another basis
    assert turned["cka/P2"] == pytest.approx(0.0, abs=1e-6)  # which rows are alike has not changed
    against = measured.distances(levels({"P2": -x}), levels({"P2": x}))
    assert against["cosine/P2"] == pytest.approx(2.0)


def test_the_lead_of_the_diagonal_by_hand() -> None:
    own = torch.tensor([[[0.5, 0.1], [0.3, 0.7]], [[0.2, 0.2], [0.2, 0.2]]])
    others = torch.tensor([[[0.1, 0.0], [0.0, 0.1]], [[0.1, 0.1], [0.1, 0.1]]])
    lead, error = measured.diagonal_lead(PooledLevels({}, own, others))
    # First pair: (0.4 + 0.6) / 2 - (0.1 + 0.3) / 2 = 0.3, second: 0.
    assert lead == pytest.approx(0.15)
    assert error == pytest.approx(0.15)  # s = 0.2121 over sqrt(2)


def test_metrics_have_means_over_image_levels_and_no_lead_of_uneven_levels() -> None:
    draw = torch.Generator().manual_seed(0)
    made = {
        model: levels({n: torch.randn(10, 4, generator=draw) for n in ("P2", "P5", "L4")}, torch.zeros(10, 2, 1))
        for model in measured.MODELS
    }
    found = measured.metrics(made)
    assert found["pairs"] == 10
    assert found["cosine/image/before"] == pytest.approx((found["cosine/P2/before"] + found["cosine/P5/before"]) / 2)
    assert not [key for key in found if key.startswith("diagonal")]


def test_the_table_has_a_row_for_each_pair() -> None:
    made = {model: levels({"P2": torch.ones(3, 4), "L1": torch.ones(3, 4)}) for model in measured.MODELS}
    table = measured.as_table(["a", "b", "c"], ["x", "y", "z"], made)
    assert table.num_rows == 3
    assert table["teacher_P2"].to_pylist() == [[1.0] * 4] * 3
    assert len(table["after_own"][0].as_py()) == 4
    assert "teacher_L1" not in table.column_names  # a map shows image levels
