"""What each of two processes does in test_distributed.py: `two_ranks.py ROOT SHARDS TEACHER BOUND=DAMAGED ..`."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from cmapkd_core import parallel, storage
from cmapkd_core.engine.optim import Optimiser
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.runtime import StopRequest
from cmapkd_core.engine.session import Session
from cmapkd_core.errors import InputError, Interrupted
from cmapkd_core.request import Request
from cmapkd_core.stages import phases, train

SIX = "optim.batch=14 runtime.checkpoint_every=100"
TIMED = "optim.batch=14 runtime.checkpoint_every=0 runtime.checkpoint_minutes=2.5"
FIXED = ("with_bank", "with_rd", "no_alsn method.weights.xrd=1", "one_map method.weights.fd=1")
WITH_MORE = tuple(f"{row} selector.kind=fixed" for row in FIXED)
OURS = (
    "fitnet_joint",
    "promptkd",
    "c2kd",
    "llava_kd",
    "clip_kd",
    "mobileclip",
    "oracle_alsn",
)  # modules, terms of local pairs


def check_collectives() -> dict[str, object]:
    """What `parallel` promises, on this rank."""
    rank = parallel.rank()
    x = torch.full((2, 1), float(rank + 1), requires_grad=True)
    everything = parallel.gather(x)
    (everything * torch.arange(4.0)[:, None]).sum().backward()
    assert x.grad is not None
    return {
        "gathered": everything.flatten().tolist(),
        "gradient": x.grad.flatten().tolist(),
        "any": [parallel.any_rank(False), parallel.any_rank(rank == 1), parallel.any_rank(True)],
        "mean": parallel.averaged(torch.tensor([float(rank), 3.0])).tolist(),
        "broadcast": parallel.broadcast(f"from {rank}"),
        "objects": parallel.all_objects(rank * 10),
    }


def run(root: str, name: str, row: str, overrides: str, shards: str, teacher: str) -> str:
    row, _, fields = row.partition(" ")
    request = Request("tiny", f"{root}/{name}", ablation=row, overrides=f"{overrides} {fields}")
    return train.run(request, stage="joint", shards=shards, teacher=teacher)


def chain(root: str, shards: str, teacher: str) -> str:
    """Stage alsn after a warm-up."""
    request, init = Request("tiny", f"{root}/chain", overrides=SIX), ""
    for stage in ("warmup", "alsn"):
        init = train.run(request, stage=stage, shards=shards, teacher=teacher, init=init)
    return init


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No checkpoint of rank 0, which writes them, can be stored."""
    put = storage.put

    def stored(path: Path, url: str) -> None:
        if "/work/checkpoints/" in url:
            raise storage.StorageError(f"cannot write {url}: no space left")
        put(path, url)

    storage.put = stored
    try:
        yield
    finally:
        storage.put = put


def refused(*given: str) -> str:
    try:
        run(*given)
    except InputError as error:
        return str(error)
    return ""


class Timed(Session):
    """A session whose steps take a minute on rank 0's clock and eleven days on the other's; `saves`: their steps."""

    saves: ClassVar[list[int]] = []

    def __post_init__(self) -> None:
        self.now = lambda: len(self.history) * (60.0 if parallel.rank() == 0 else 1e6)
        super().__post_init__()

    def save(self, plan: PhasePlan, step: int, module: nn.Module, optimiser: Optimiser) -> None:
        self.saves.append(step)
        super().save(plan, step, module, optimiser)


def timed(*given: str) -> str:
    """A run with checkpoints by time."""
    phases.Session = Timed  # type: ignore[misc]
    try:
        return run(*given)
    finally:
        phases.Session = Session  # type: ignore[misc]


def stop_rank_one_after(updates: int) -> None:
    """SIGTERM reaches one rank alone, in the middle of the loop."""
    original, seen = StopRequest.flags, 0

    def flags(self: StopRequest, due: bool) -> tuple[bool, bool]:
        nonlocal seen
        seen += 1
        if seen == updates and parallel.rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(self, due)

    StopRequest.flags = flags  # type: ignore[method-assign]


def main(root: str, shards: str, teacher: str, *damaged: str) -> None:
    torch.set_num_threads(1)
    parallel.start()
    result: dict[str, object] = {"collectives": check_collectives()}
    for row in ("no_alsn", "kd", "kd_standardise", "finetune", "clip_rd", *WITH_MORE, *OURS):
        result[row] = run(root, "pair", row, SIX, shards, teacher)
    for row in ("no_alsn", *OURS):
        result[f"{row} in parts"] = run(root, "parts", row, f"{SIX} optim.accumulate=7", shards, teacher)
    result["none"] = timed(root, "pair", "none", TIMED, shards, teacher)
    result["saves"] = Timed.saves
    for name, one, start in zip(("damaged", "bad"), damaged, (run, refused), strict=True):
        bound, _, url = one.partition("=")
        result[name] = start(root, name, "finetune", f"{SIX} data.quarantine_bound={bound}", url, "")
    result["small"] = refused(root, "small", "finetune", "optim.batch=1", shards, teacher)
    result["odd"] = refused(root, "odd", "finetune", "optim.batch=15", shards, teacher)
    result["alsn"] = chain(root, shards, teacher)
    with full_disk():
        every = SIX.replace("every=100", "every=2")
        result["unsaved"] = refused(root, "unsaved", "finetune", every, shards, teacher)
    stop_rank_one_after(3)
    try:
        run(root, "cut", "none", SIX, shards, teacher)
    except Interrupted as stopped:
        result["stopped"] = str(stopped)
    result["resumed"] = run(root, "cut", "none", SIX, shards, teacher)
    Path(root, f"rank{parallel.rank()}.json").write_text(json.dumps(result))
    parallel.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
