"""The one training loop: every method, every phase, any number of processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from cmapkd_core import parallel
from cmapkd_core.engine.finite import Buffers
from cmapkd_core.engine.guard import judge, require_sound
from cmapkd_core.engine.optim import Optimiser, choose_precision, trainable
from cmapkd_core.engine.session import AFTER, BACKWARD, FORWARD, READ, Plan, Session
from cmapkd_core.models.scales import bound, trained_scales


class Loader(Protocol):
    """Batches of a phase by global step number."""

    steps_per_epoch: int

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """The batches of steps start..stop-1; the same whatever came before."""

    def reorder(self, turn: int) -> None:
        """From here on the batches of the same epochs in another order; 0 is the usual one."""

    def require_few_corrupt(self, corrupt: Mapping[str, str]) -> None:
        """Raises InputError where more pairs are corrupt than may be; `corrupt`: by key, with the reason."""


def run_phase(module: nn.Module, loader: Loader, targets: Callable[..., Any], plan: Plan, session: Session) -> None:
    """Train what `plan.phase` gives a rate, from the session's checkpoint or from step 0.

    Args:
        module: forward(batch, targets, phase, step) -> Outcome, and groups(phase).
        targets: what the frozen teacher says of a batch, `targets(batch, phase)`.

    Raises:
        InputError: the phase trains nothing, has no whole update, or more pairs are corrupt than may be: of those that
            this rank met, and of all ranks' and attempts' up to the last checkpoint.
        Interrupted: SIGTERM; the state is saved.
        Diverged: more updates than may be were skipped, or a checkpoint would have held a NaN or an Inf.
    """
    device, phase = parallel.device(), plan.phase
    plan.require_updates()
    module.to(device).train()
    module.amp = choose_precision(plan.optim.precision, device)  # type: ignore[assignment]
    groups = trainable(module.groups(phase), phase, plan.name)  # type: ignore[operator]
    freeze_all_but(module, [p for params in groups.values() for p in params])
    scales = trained_scales(module)
    optimiser = Optimiser(groups, phase, plan.optim, plan.updates, scaled=module.amp is torch.float16)
    step, norm = session.resume(plan, module, optimiser), 0.0
    loader.reorder(session.rolled)
    if plan.optim.rollbacks and session.saved is None and plan.index == 0:
        session.save(plan, 0, module, optimiser)  # what diverges before the first one has a place to go back to
    loader.require_few_corrupt(session.replaced)
    session.settle()  # the first batch forks workers: not while a thread may hold a lock that they would inherit
    wrapped = distribute(module)
    buffers = Buffers(module)
    for batch in told(loader.batches(step, plan.steps), session, plan, step):
        batch = to_device(batch, device)
        number, inside = divmod(step, plan.optim.accumulate)
        rates = optimiser.set_rates(number)
        last = inside == plan.optim.accumulate - 1
        if not inside:
            buffers.keep()
        with contextlib.nullcontext() if last or wrapped is module else wrapped.no_sync():
            outcome = wrapped(batch, targets(batch, phase), phase, step)
            total = weighted_total(outcome.terms, plan.weights)
            terms = numbers(outcome.terms)
            weighted = {name: plan.weights[name] * value for name, value in terms.items()}
            session.watch.see(terms, sum(weighted.values()), [] if isinstance(batch, dict) else batch.keys)
            step += 1
            shares = {}
            if outcome.roots and session.due(session.runtime.shares_every, plan, step):
                scale = optimiser.scaler.get_scale()
                shares = gradient_shares(outcome.terms, plan.weights, outcome.roots, scale)
            session.at(plan, step, BACKWARD)
            optimiser.backward(total)
        session.at(plan, step, AFTER)
        if last:
            norm = update_weights(session, plan, step, optimiser, scales, buffers)
        session.replaced.update(getattr(batch, "replaced", []))
        point: dict[str, Any] = {"terms": terms, "weighted": weighted, "lr": rates}
        point |= {"gradient_norm": norm, "shares": shares}
        session.after(plan, step, point, outcome.stats, module, optimiser)
        loader.require_few_corrupt(session.replaced)  # a save has just made it the same on all ranks


def told(batches: Iterator[Any], session: Session, plan: Plan, step: int) -> Iterator[Any]:
    """The batches after `step`, with a word to the watchdog when each is waited for and when it is there."""
    session.at(plan, step + 1, READ)
    for number, batch in enumerate(batches, step + 1):
        session.at(plan, number, FORWARD)
        yield batch
        session.at(plan, number + 1, READ)
    session.dog.rest()


def update_weights(
    session: Session, plan: Plan, step: int, optimiser: Optimiser, scales: list[nn.Parameter], buffers: Buffers
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
    """sum_t weight_t * term_t. Every term must have a weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def gradient_shares(
    terms: dict[str, Tensor], weights: dict[str, float], roots: list[Tensor], scale: float = 1.0
) -> dict[str, float]:
    """Each weighted term's share of the summed gradient norms at the student's first taps.

    There, and not at the embeddings, since the pyramids' terms never pass through an embedding. A
    term that is off in effect shows as a share near 0. Towers that a phase freezes have no shares.

    Args:
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


def distribute(module: nn.Module) -> Any:
    """The module under DDP where there are several processes; batch norms then share their statistics on GPUs."""
    if parallel.world() == 1:
        return module
    if parallel.device().type == "cuda":
        module = share_batch_statistics(module)
        return DistributedDataParallel(module, device_ids=[parallel.local_rank()], broadcast_buffers=False)
    return DistributedDataParallel(module, broadcast_buffers=False)


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


def to_device(batch: Any, device: torch.device) -> Any:
    """A Batch or a dict of tensors on `device`."""
    if isinstance(batch, dict):
        return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return batch.to(device)


def numbers(tensors: dict[str, Tensor]) -> dict[str, float]:
    """Scalars as floats, in one transfer from the device."""
    values = torch.stack([value.detach().float() for value in tensors.values()]).tolist() if tensors else []
    return dict(zip(tensors, values, strict=True))
