"""How exactly a GPU multiplies what is fp32: torch's float32 matmul precision, for as long as a stage computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cmapkd_core.errors import InputError

EXACT = "highest"
AMPERE = 8  # the first generation whose tensor cores take fp32, rounded to TF32


def require_matmul_precision(wanted: str, device: torch.device) -> None:
    """Refuse what the device would not do, so that a recipe says what was computed.

    Raises:
        InputError: less than full precision asked for on a CPU, or on a GPU without TF32; names the way out.
    """
    if wanted == EXACT:
        return
    if device.type != "cuda":
        raise InputError(f"optim.matmul_precision={wanted} is a GPU's: on a CPU use {EXACT}")
    if torch.cuda.get_device_capability(device)[0] < AMPERE:
        name = torch.cuda.get_device_name(device)
        raise InputError(f"optim.matmul_precision={wanted}: {name} has no TF32, which came with Ampere: use {EXACT}")


@contextmanager
def matmul_precision(wanted: str, device: torch.device) -> Iterator[None]:
    """Inside, matrix products and convolutions of fp32 tensors are as exact as `wanted`: highest, high or medium.

    highest is fp32 throughout. torch's own default has convolutions in TF32 on GPUs that know it, also where products
    are exact; here both follow the one word. What is under autocast is not touched.

    Raises:
        InputError: as of `require_matmul_precision`.
    """
    require_matmul_precision(wanted, device)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set(wanted, wanted != EXACT)
    try:
        yield
    finally:
        _set(*before)


def _set(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
