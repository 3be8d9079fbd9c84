"""The one training loop: every method, every phase, any number of processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from cmapkd_core import parallel
from cmapkd_core.config import Phase
from cmapkd_core.data.loader import Batch, TableBatch
from cmapkd_core.engine.finite import Buffers
from cmapkd_core.engine.guard import judge, require_sound
from cmapkd_core.engine.optim import Optimiser, choose_precision, trainable
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.session import AFTER, BACKWARD, FORWARD, READ, Session
from cmapkd_core.methods.base import Outcome
from cmapkd_core.models.scales import bound, trained_scales

Table = dict[str, Tensor]  # rows [b, ...] by column, of a loader without pictures
BatchT = TypeVar("BatchT", Batch, Table)
BatchT_co = TypeVar("BatchT_co", covariant=True)
BatchT_contra = TypeVar("BatchT_contra", contravariant=True)
TargetsT = TypeVar("TargetsT")
TargetsT_contra = TypeVar("TargetsT_contra", contravariant=True)


class Trainable(Protocol[BatchT_contra, TargetsT_contra]):
    """What a `nn.Module` needs beside torch's own members to be trained here: a method, or a part that is fitted alone.

    amp: the autocast type of its towers, which the loop sets for each phase; None is full precision.
    """

    amp: torch.dtype | None

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """Parameters by group, each group with a learning rate of its own in `phase.lr`."""

    def forward(self, batch: BatchT_contra, targets: TargetsT_contra, phase: Phase, step: int) -> Outcome:
        """The unweighted terms of this rank's batch, a scalar each."""


class Loader(Protocol[BatchT_co]):
    """Batches of a phase by global step number."""

    steps_per_epoch: int

    def batches(self, start: int, stop: int) -> Iterator[BatchT_co]:
        """The batches of steps start..stop-1; the same whatever came before."""

    def reorder(self, turn: int) -> None:
        """From here on the batches of the same epochs in another order; 0 is the usual one."""

    def require_few_corrupt(self, corrupt: Mapping[str, str]) -> None:
        """Raises InputError where more pairs are corrupt than may be; `corrupt`: by key, with the reason."""


def run_phase(
    trained: Trainable[BatchT, TargetsT],
    loader: Loader[BatchT],
    targets: Callable[[BatchT], TargetsT],
    plan: PhasePlan,
    session: Session,
) -> None:
    """Train what `plan.phase` gives a rate, from the session's checkpoint or from step 0.

    Args:
        trained: a `nn.Module`, on any device.
        targets: what a batch on the device is compared with, such as the frozen teacher's outputs.

    Raises:
        InputError: the phase trains nothing, has no whole update, or more pairs are corrupt than may be: of those that
            this rank met, and of all ranks' and attempts' up to the last checkpoint.
        Interrupted: SIGTERM; the state is saved.
        Diverged: more updates than may be were skipped, or a checkpoint would have held a NaN or an Inf.
    """
    module, device = as_module(trained), parallel.device()
    plan.require_updates()
    module.to(device).train()
    optimiser = make_optimiser(trained, plan)
    step, norm = session.resume(plan, module, optimiser), 0.0
    loader.reorder(session.rollbacks)
    if plan.optim.rollbacks and session.saved is None and plan.index == 0:
        session.save(plan, 0, module, optimiser)  # what diverges before the first one has a place to go back to
    loader.require_few_corrupt(session.replaced)
    session.settle()  # the first batch forks workers: not while a thread may hold a lock that they would inherit
    wrapped, buffers, scales = distribute(module), Buffers(module), trained_scales(module)
    for batch in watched(loader.batches(step, plan.steps), session, plan, step):
        keys, batch = batch_keys(batch), to_device(batch, device)
        number, inside = divmod(step, plan.optim.accumulate)
        rates = optimiser.set_rates(number)
        last = inside == plan.optim.accumulate - 1
        if not inside:
            buffers.keep()
        step += 1
        with contextlib.nullcontext() if last else without_exchange(wrapped):
            outcome: Outcome = wrapped(batch, targets(batch), plan.phase, step - 1)
            point = backward(outcome, keys, session, plan, step, optimiser)
        session.at(plan, step, AFTER)
        if last:
            norm = update_weights(session, plan, step, optimiser, scales, buffers)
        session.replaced.update(batch_replaced(batch))
        point |= {"lr": rates, "gradient_norm": norm}
        session.after(plan, step, point, outcome.stats, module, optimiser)
        loader.require_few_corrupt(session.replaced)  # a save has just made it the same on all ranks


def as_module(trained: Trainable[BatchT, TargetsT]) -> nn.Module:
    """The same object by torch's members: a protocol cannot ask for a base class."""
    assert isinstance(trained, nn.Module), f"{type(trained).__name__} is no nn.Module"
    return trained


def make_optimiser(trained: Trainable[BatchT, TargetsT], plan: PhasePlan) -> Optimiser:
    """The optimiser of the groups that the phase gives a rate; everything else is frozen, and the precision is set."""
    trained.amp = choose_precision(plan.optim.precision, parallel.device())
    groups = trainable(trained.groups(plan.phase), plan.phase, plan.name)
    freeze_all_but(as_module(trained), [p for params in groups.values() for p in params])
    return Optimiser(groups, plan.phase, plan.optim, plan.updates, scaled=trained.amp is torch.float16)


def watched(batches: Iterator[BatchT], session: Session, plan: PhasePlan, step: int) -> Iterator[BatchT]:
    """The batches after `step`, with a word to the watchdog when each is waited for and when it is there."""
    session.at(plan, step + 1, READ)
    for number, batch in enumerate(batches, step + 1):
        session.at(plan, number, FORWARD)
        yield batch
        session.at(plan, number + 1, READ)
    session.watchdog.rest()


def backward(
    outcome: Outcome, keys: Iterable[str], session: Session, plan: PhasePlan, step: int, optimiser: Optimiser
) -> dict[str, Any]:
    """Add the gradient of one micro-batch's total; its terms, weighted terms and, where due, gradient shares.

    Args:
        keys: of the batch's samples, for a message.
        step: this one's number in the phase, counted from 1.
    """
    total = weighted_total(outcome.terms, plan.weights)
    terms = numbers(outcome.terms)
    weighted = {name: plan.weights[name] * value for name, value in terms.items()}
    session.watch.see(terms, sum(weighted.values()), keys)
    shares = {}
    if outcome.roots and session.due(session.runtime.shares_every, plan, step):
        scale = optimiser.scaler.get_scale()
        shares = gradient_shares(outcome.terms, plan.weights, outcome.roots, scale)
    session.at(plan, step, BACKWARD)
    optimiser.backward(total)
    return {"terms": terms, "weighted": weighted, "shares": shares}


def update_weights(
    session: Session, plan: PhasePlan, step: int, optimiser: Optimiser, scales: list[nn.Parameter], buffers: Buffers
) -> float:
    """Take the update whose gradients are there, or skip it on all ranks; returns the gradients' norm before clipping.

    Raises:
        Diverged: see run_phase.
    """
    norm = optimiser.clip()
    taken = judge(session, plan, step, norm, optimiser.scaler.get_scale)
    optimiser.update(taken)
    if taken:
        bound(scales)
    else:
        buffers.restore()
    require_sound(session, plan, step)
    return norm


def weighted_total(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """sum_t weight_t * term_t, a scalar of scalars. Every term must have a weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def gradient_shares(
    terms: dict[str, Tensor], weights: dict[str, float], roots: list[Tensor], scale: float = 1.0
) -> dict[str, float]:
    """Each weighted term's share of the summed gradient norms at the student's first taps.

    There, and not at the embeddings, since the pyramids' terms never pass through an embedding. A
    term that is off in effect shows as a share near 0. Towers that a phase freezes have no shares.

    Args:
        terms: scalars with a graph.
        roots: features [b, ...] that the terms were computed from.
        scale: the loss scaler's, without which towers in fp16 round small gradients to 0 and a term seems off. Where
            one overflows all the same, as the scaler finds out in its first steps, there are no shares.
    """
    roots = [root for root in roots if root.requires_grad]
    if not roots:
        return {}
    norms = {}
    for name, value in terms.items():
        if not value.requires_grad:
            continue
        grads = torch.autograd.grad(scale * weights[name] * value, roots, retain_graph=True, allow_unused=True)
        norms[name] = float(torch.stack([g.float().norm() for g in grads if g is not None] or [torch.zeros(())]).norm())
    total = sum(norms.values())
    if not math.isfinite(total):
        return {}
    return {name: norm / total if total else 0.0 for name, norm in norms.items()}


def freeze_all_but(module: nn.Module, trained: list[nn.Parameter]) -> None:
    """requires_grad for the trained parameters only."""
    chosen = {id(p) for p in trained}
    for p in module.parameters():
        p.requires_grad_(id(p) in chosen)


def distribute(module: nn.Module) -> nn.Module:
    """The module under DDP where there are several processes; batch norms then share their statistics on GPUs."""
    if parallel.world() == 1:
        return module
    if parallel.device().type == "cuda":
        module = share_batch_statistics(module)
        return DistributedDataParallel(module, device_ids=[parallel.local_rank()], broadcast_buffers=False)
    return DistributedDataParallel(module, broadcast_buffers=False)


def without_exchange(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside it gradients stay with their rank; those of an update's last micro-batch are summed over all of them."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


def share_batch_statistics(module: nn.Module) -> nn.Module:
    """The module, in place, with batch norms that take their statistics over all ranks; such ones stay as they are.

    timm's converter and not torch's: its batch norms hold the activation after them, which torch's would drop. Its own
    shared ones it takes for torch's and would drop their activation too, so only layers of one process reach it: a
    stage calls this before each of its phases.
    """
    if isinstance(module, nn.SyncBatchNorm):
        return module
    if isinstance(module, _BatchNorm):
        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    for name, child in module.named_children():
        module.add_module(name, share_batch_statistics(child))
    return module


def to_device(batch: BatchT, device: torch.device) -> BatchT:
    """The same batch with its tensors [b, ...] on `device`."""
    if isinstance(batch, Batch):
        return batch.to(device)
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def batch_keys(batch: Batch | Table) -> Iterable[str]:
    """Keys of the samples, or names of a table's rows."""
    if isinstance(batch, Batch):
        return batch.keys
    return batch.names if isinstance(batch, TableBatch) else ()


def batch_replaced(batch: Batch | Table) -> list[tuple[str, str]]:
    """(key, reason) of the corrupt samples that others stand in for."""
    return batch.replaced if isinstance(batch, Batch) else []


def numbers(tensors: dict[str, Tensor]) -> dict[str, float]:
    """Scalars as floats, in one transfer from the device."""
    values = torch.stack([value.detach().float() for value in tensors.values()]).tolist() if tensors else []
    return dict(zip(tensors, values, strict=True))
