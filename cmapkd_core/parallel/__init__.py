"""Ranks, device and the collectives that training needs. One process when no launcher started more.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; this module and torch.distributed are the readers. Torch is imported
where there are several ranks, or where a device is asked for: a stage that finds its artifact complete needs none.
Untested on GPUs so far: NCCL and CUDA paths are written but were run here with gloo on CPUs only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cmapkd_core.exits import ENDS, EXIT_FILE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Ranks wait so long for rank 0's own work, such as the upload of a large artifact; a rank that is gone ends the wait.
PATIENCE = timedelta(days=1)
_ANSWERS = timedelta(seconds=30)  # within which a store answers that is there
_inside = 0  # collectives that this process is in now
_waiting: Any = None  # the group for barriers and objects


def let_threads_sleep() -> None:
    """Threads of torch, which is not imported yet, sleep while they wait for each other; what is set already stays.

    They would spin: on cores that something else uses too two of them were twelve times slower than one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def start() -> None:
    """Join the process group that torchrun describes; nothing to do for one process."""
    global _waiting
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _joined():
        import torch
        import torch.distributed as dist

        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())
        # Of a rank that hangs in training tells engine/hang.py, which a shorter timeout of the group would forestall.
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        _waiting = dist.new_group(backend="gloo", timeout=PATIENCE)


def stop() -> None:
    """Leave the process group."""
    global _waiting
    if _joined():
        import torch.distributed as dist

        dist.destroy_process_group()
        _waiting = None


def _joined() -> bool:
    """Whether this process is in a process group; without torch.distributed it cannot be."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and bool(dist.is_initialized())


@contextmanager
def together() -> Iterator[None]:
    """What is done inside ends when every rank has come to it."""
    global _inside
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1


def waits() -> bool:
    """Whether this process is in one of this module's collectives, so that it may wait for another rank."""
    return _inside > 0


def local_rank() -> int:
    """Which of this machine's devices is ours."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """This process among all of them; 0 decides, writes and talks."""
    if not _joined():
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def world() -> int:
    """Number of processes."""
    if not _joined():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def device() -> torch.device:
    """This rank's GPU, else the CPU."""
    import torch

    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def barrier() -> None:
    """Wait for every rank."""
    if world() > 1:
        import torch.distributed as dist

        with together():
            dist.barrier(_waiting)


def attempts() -> int | None:
    """Attempts of this pod's task before this one, of one chain of retries; None where nobody counts them.

    Kubeflow Pipelines does from 2.17 on, from 0 again after a retry by hand.
    """
    counted = os.environ.get("KFP_RETRY_INDEX", "")
    return int(counted) if counted.isdecimal() else None


def leave_exit(code: int) -> int:
    """Keep the code of a rank that fails, which the launcher's own does not tell; the first that says something counts.

    Returns:
        `code`.
    """
    place = os.environ.get(EXIT_FILE, "")
    if place and code != ENDS["other"].code:
        try:
            with open(place, "x") as file:
                file.write(str(code))
        except OSError:
            pass  # another rank was faster, or the disk is full
    return code


def passed_on(names: Sequence[str]) -> dict[str, str]:
    """Those of the environment's variables that are set, for a process that is given no others."""
    return {name: os.environ[name] for name in names if name in os.environ}


def workflow() -> str:
    """Name of the Workflow that this pod is of, such as cmapkd-abcde; "" outside Kubeflow Pipelines."""
    return "-".join(os.environ.get("KFP_POD_NAME", "").split("-")[:2])


class Board:
    """Short texts, one of each rank, that all may read: outside the collectives, which wait for each other."""

    def __init__(self, name: str) -> None:
        """Called by all ranks with the same new name."""
        # A connection of its own, as a rank's main thread may hold the group's in a wait. The server is rank 0's, or
        # torchrun's, and no thread of Python.
        from torch._C._distributed_c10d import PrefixStore, TCPStore

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, None, False, timeout=_ANSWERS, wait_for_workers=False)
        self._store = PrefixStore(name, store)
        self.write(rank(), "")
        barrier()

    def write(self, of: int, text: str) -> None:
        """Replace the text of a rank."""
        self._store.set(str(of), text)

    def read(self) -> list[str]:
        """All ranks'. Raises torch's DistError where the store does not answer."""
        return [bytes(self._store.get(str(of))).decode() for of in range(world())]


def board(name: str) -> Board:
    """A new one, made by all ranks at once."""
    return Board(name)


def broadcast(value: Any) -> Any:
    """Rank 0's picklable value, on every rank."""
    if world() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    with together():
        dist.broadcast_object_list(box, src=0, group=_waiting)
    return box[0]


def all_objects(value: Any) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world()
    with together():
        dist.all_gather_object(values, value, _waiting)
    return values


def any_rank(flag: bool) -> bool:
    """True on every rank as soon as it is true on one: all take the same decision at the same step."""
    if world() == 1:
        return flag
    import torch
    import torch.distributed as dist

    total = torch.tensor(float(flag), device=device())
    with together():
        dist.all_reduce(total)
    return total.item() > 0


def averaged(x: Tensor) -> Tensor:
    """The ranks' mean of a tensor of one shape, [...] -> [...]; no gradient, no wait for the device."""
    if world() == 1:
        return x
    import torch.distributed as dist

    with together():
        dist.all_reduce(x)
    return x / world()


def stack(x: Tensor) -> Tensor:
    """Every rank's tensor of one shape, in rank order and without a gradient, [...] -> [world, ...]."""
    if world() == 1:
        return x[None]
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(x) for _ in range(world())]
    with together():
        dist.all_gather(parts, x.contiguous())
    return torch.stack(parts)


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, [b, ...] -> [b * world, ...], with gradient.

    Every rank then computes the same global loss. The backward sums the ranks' equal gradients
    and DDP averages parameters' gradients, so a parameter gets what one process with the whole
    batch would give it. All ranks must hold the same number of rows.
    """
    if world() == 1:
        return x
    from cmapkd_core.parallel import gathered

    return gathered.gather(x)
