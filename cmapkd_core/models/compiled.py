"""torch.compile for the blocks of towers, for as long as a phase trains.

Each block by itself and not the whole model: blocks of one kind share what is compiled, so it takes seconds and not
minutes, and the hooks that tap them stay outside and see what they see without it. It is a block's `forward` that is
replaced, on the object: its parameters keep their names, in checkpoints too, and afterwards it is as it was. The same
comes out but for rounding, as with another number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone

Compile = Callable[[Any], Any]


@contextmanager
def compiled_blocks(backbones: list[Backbone], compiler: Compile = torch.compile) -> Iterator[None]:
    """Inside, the blocks of these models are compiled when they first run.

    Args:
        compiler: makes a function of a block's forward.
    """
    # A level's utility is one of several gradients through the same graph: nothing of it may be given up for the first.
    with torch._functorch.config.patch(donated_buffer=False):
        blocks = [block for backbone in backbones for block in backbone.blocks()]
        for block in blocks:
            block.forward = compiler(block.forward)
        try:
            yield
        finally:
            for block in blocks:
                vars(block).pop("forward", None)


def require_compiler(device: torch.device) -> None:
    """Refuse to compile where torch would find out in the middle of a step that it cannot.

    Raises:
        InputError: no C++ compiler, or for a GPU no Triton that knows it; names the way out.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise InputError(
            "runtime.compile=true needs a C++ compiler and finds none: install g++, or leave it false"
        ) from None
    if device.type == "cuda" and not has_triton():
        name = torch.cuda.get_device_name(device)
        raise InputError(
            f"runtime.compile=true needs Triton, which is not there or does not know a {name}: leave it false"
        )
