"""What makes a process wait for a GPU, counted on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Python asks a tensor for its values, or an operator has to know a value or a size itself.
ASKING = {"tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__contains__", "cpu", "numpy"}
# Values of Python's become a tensor on the CPU first, whose copy to the device is waited for.
GIVING = {"tensor", "as_tensor", "new_tensor", "from_numpy"}
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal"}


class _Asked(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        listed = name == "__getitem__" and _has_list(args[1])
        self.found["index by a list" if listed else name] += listed or name in ASKING | GIVING
        return func(*args, **(kwargs or {}))


class _Waited(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        # An index of truth values: how many are true is asked in the kernel.
        masked = name.startswith("index") and any(x is not None and x.dtype is torch.bool for x in _indices(args))
        self.found["masked index" if masked else name] += masked or name in WAITING
        return func(*args, **(kwargs or {}))


def _has_list(index: Any) -> bool:
    return any(isinstance(x, list) for x in (index if isinstance(index, tuple) else (index,)))


def _indices(args: tuple[Any, ...]) -> Sequence[Tensor | None]:
    return args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()


@contextmanager
def waits() -> Iterator[Callable[[], dict[str, int]]]:
    """Inside; called, it says how often each kind was met since it was called last."""
    found: Counter[str] = Counter()

    def since() -> dict[str, int]:
        counted = {name: count for name, count in found.items() if count}
        found.clear()
        return counted

    with _Asked(found), _Waited(found):
        yield since
