"""What each process of ranks.py does: `rank.py FOLDER TINY`, started by torchrun; rank 0 writes FOLDER/ranks.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu_parts import machine, models, steps
from cmapkd_core import parallel
from cmapkd_core.engine.loop import freeze_all_but
from cmapkd_core.engine.optim import choose_precision
from cmapkd_core.engine.passes import weighted_total
from cmapkd_core.methods.base import Method

MIB = 1 << 20


def gathered(device: torch.device) -> bool:
    """Whether rows of all ranks come in order, and the gradient of their sum is every rank's."""
    x = torch.full((2, 3), float(parallel.rank()), device=device, requires_grad=True)
    everything = parallel.gather(x)
    everything.square().sum().backward()
    expected = torch.arange(parallel.world(), device=device).repeat_interleave(2).float()
    assert x.grad is not None
    same = torch.equal(everything[:, 0].detach(), expected)
    return same and bool(torch.allclose(x.grad, 2 * parallel.world() * x.detach()))


def exchanged(at: machine.Machine, mib: int) -> float:
    """GB/s at which gradients of so many MiB are summed, by NCCL's own measure: 2 (n - 1) / n times their bytes."""
    x = torch.ones(mib * MIB // 4, device=at.device)
    seconds = at.seconds(lambda: dist.all_reduce(x), 5)
    world = dist.get_world_size()
    return 2 * (world - 1) / world * mib * MIB / seconds / 1e9


def wrapped(at: machine.Machine, size: int, count: int) -> tuple[float, float]:
    """Seconds of a forward and backward pass of a student alone, and under DDP, which sums its gradients."""
    pair = models.Pair(at, at.usual())
    recipe = pair.recipe("finetune", size)
    plan, batch = steps.plan_of(recipe, "fine"), pair.batch(size)
    method: Method = pair.method(recipe)
    method.amp = choose_precision(recipe.optim.precision, at.device)
    freeze_all_but(method, [p for params in method.groups(plan.phase).values() for p in params])
    ids = [at.device.index or 0] if at.cuda else None
    both = (method, DistributedDataParallel(method, device_ids=ids, broadcast_buffers=False))
    first, second = (
        at.seconds(lambda m=m: weighted_total(m(batch, None, plan.phase, 1).terms, plan.weights).backward(), count)
        for m in both
    )
    return first, second


def main() -> None:
    """Measure, and rank 0 writes."""
    folder, tiny = Path(sys.argv[1]), sys.argv[2] == "tiny"
    torch.set_num_threads(1)
    parallel.start()
    if not dist.is_initialized():  # one process: the package joins no group, and DDP of one needs it
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    at = machine.here(tiny)
    alone, together = wrapped(at, 4 if at.tiny else 32, 2 if at.tiny else 10)
    record = {"world": dist.get_world_size(), "backend": dist.get_backend(), "gathered": gathered(at.device)}
    record |= {"gb_per_s": exchanged(at, 1 if at.tiny else 256), "alone": alone, "together": together}
    if dist.get_rank() == 0:
        (folder / "ranks.json").write_text(json.dumps(record))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
