"""The precision of fp32 products: what a device cannot do is refused, and what was set before is set after."""

import contextlib

import pytest
import torch

from cmapkd_core.engine.matmul import matmul_precision, require_matmul_precision
from cmapkd_core.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def now() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture
def generation(monkeypatch):
    """`generation(8)`: a GPU of that major capability."""

    def of(major: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")

    return of


@pytest.mark.parametrize("wanted", ["high", "medium"])
def test_a_cpu_and_an_old_gpu_refuse_what_they_have_not(generation, wanted):
    with pytest.raises(InputError, match=rf"matmul_precision={wanted} is a GPU's: on a CPU use highest"):
        require_matmul_precision(wanted, CPU)
    generation(7)
    with pytest.raises(InputError, match=r"a GPU has no TF32, .*: use highest"):
        require_matmul_precision(wanted, GPU)
    generation(8)
    require_matmul_precision(wanted, GPU)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_full_precision_is_full_in_convolutions_too_and_only_inside(device):
    before = now()
    assert before == ("highest", True)  # torch's own, whose second part is not what the first one says
    with matmul_precision("highest", device):
        assert now() == ("highest", False)
    assert now() == before


def test_less_is_less_in_both_and_only_inside(generation):
    generation(9)
    before = now()
    with contextlib.suppress(ZeroDivisionError), matmul_precision("high", GPU):
        assert now() == ("high", True)
        1 / 0  # noqa: B018  # a stage that fails
    assert now() == before
