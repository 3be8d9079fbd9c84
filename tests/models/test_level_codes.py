"""Stored levels in 8 bits: what a vector keeps, and what the terms of the loss make of it."""

import math

import pytest
import torch
from torch import Tensor

from cmapkd_core.catalog import LEVEL_CODES, load
from cmapkd_core.models.level_codes import SCALE, as_floats, decoded, in_float16, in_int8


def test_a_code_by_hand() -> None:
    """The largest is 127 steps or a little less, as a step is a power of the fourth root of 2."""
    stored = in_int8({"L1": torch.tensor([[127.0, -63.4, 0.4, 0.6], [254.0, 1.0, 0.0, -3.0], [1.0, 0.0, 0.0, 0.0]])})
    assert stored["L1"].tolist()[:2] == [[127, -63, 0, 1], [127, 0, 0, -2]]
    assert stored[f"L1{SCALE}"].tolist() == [0, 4, math.ceil(4 * math.log2(1 / 127))]
    assert decoded(stored, "L1")[:2].tolist() == [[127.0, -63.0, 0.0, 1.0], [254.0, 0.0, 0.0, -4.0]]
    assert decoded(stored, "L1")[2, 0] == pytest.approx(1.0, abs=0.5 * 2**0.25 / 127)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 300.0, 6e4])
def test_every_vector_is_within_half_a_step_of_its_own(size: float) -> None:
    x = size * torch.randn(3, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    x[0, :, 2, 2] *= 1000  # beside it the others keep what they have
    stored = in_int8({"P3": x, "image": x})
    assert (stored["P3"].dtype, stored[f"P3{SCALE}"].dtype) == (torch.int8, torch.int8)
    assert stored[f"P3{SCALE}"].shape == (3, 5, 5)
    assert stored["image"] is x
    apart = (decoded(stored, "P3") - x).abs().amax(1)
    assert (apart <= 0.5 * 2**0.25 / 127 * 1.001 * x.abs().amax(1)).all()


def test_nothing_stays_nothing_and_what_is_not_finite_is_seen() -> None:
    x = torch.ones(4, 8)
    x[0], x[1, 3], x[2, 3] = 0.0, math.nan, math.inf
    stored = in_int8({"L2": x})
    assert decoded(stored, "L2")[0].tolist() == [0.0] * 8
    seen: Tensor = as_floats(stored)[f"L2{SCALE}"]
    assert seen.isfinite().tolist() == [True, False, False, True]
    assert decoded(stored, "L2").isfinite().all(1).tolist() == [True, False, False, True]


def test_half_precision_is_of_laterals_alone() -> None:
    given = {name: torch.full((2, 4), 1 / 3) for name in ("P2", "L1", "image")}
    stored = in_float16(given)
    assert [x.dtype for x in stored.values()] == [torch.float16, torch.float32, torch.float32]
    assert all(torch.equal(decoded(stored, name), stored[name].float()) for name in given)


def test_bytes_of_a_crop() -> None:
    """ViT-L/14 beside ViT-B/16: full maps on the teacher's grid of 16 take 2720 KiB in half precision."""
    sides = {"P2": 14, "P3": 14, "P4": 14, "P5": 7}
    laterals = {name: torch.empty(1, 256, side, side, device="meta") for name, side in sides.items()}
    full = sum((16 * scale) ** 2 * 256 * 2 for scale in (4, 2, 1, 0.5))
    assert full == 2720 * 1024
    ratios = {
        name: full / sum(x.numel() * x.element_size() for x in load("code", name, LEVEL_CODES)(laterals).values())
        for name in LEVEL_CODES
    }
    assert ratios == {"float16": pytest.approx(8.54, abs=0.005), "int8": pytest.approx(17.01, abs=0.005)}
