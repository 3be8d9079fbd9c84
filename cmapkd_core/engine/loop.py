"""The one training loop: every method, every phase, any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from cmapkd_core import parallel
from cmapkd_core.config import Phase
from cmapkd_core.data.loader import Batch, TableBatch
from cmapkd_core.engine.finite import Buffers
from cmapkd_core.engine.guard import judge, require_sound
from cmapkd_core.engine.optim import Optimiser, choose_precision, trainable
from cmapkd_core.engine.passes import BatchT, BatchT_contra, Passes, Table, TargetsT, TargetsT_contra, passes_of
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.engine.session import AFTER, BACKWARD, FORWARD, READ, Session
from cmapkd_core.engine.transfer import StepReport, gather_report
from cmapkd_core.methods.base import Outcome
from cmapkd_core.models.scales import bound, trained_scales
from cmapkd_core.models.selector import selectors_of

BatchT_co = TypeVar("BatchT_co", covariant=True)


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
        InputError: the phase trains nothing, a batch does not divide into its parts, or more pairs are corrupt than may
            be: of those that this rank met, and of all ranks' and attempts' up to the last checkpoint.
        Interrupted: SIGTERM; the state is saved.
        Diverged: more updates than may be were skipped, or a checkpoint would have held a NaN or an Inf.
    """
    module, device = as_module(trained), parallel.device()
    module.to(device).train()
    optimiser = make_optimiser(trained, plan)
    step = session.resume(plan, module, optimiser)
    for selector in selectors_of(module):
        selector.optimised_by(optimiser.as_step)
    loader.reorder(session.rollbacks)
    if plan.optim.rollbacks and session.saved is None and plan.index == 0:
        session.save(plan, 0, module, optimiser)  # what diverges before the first one has a place to go back to
    loader.require_few_corrupt(session.replaced)
    session.settle()  # the first batch forks workers: not while a thread may hold a lock that they would inherit
    buffers, scales = Buffers(module), trained_scales(module)
    passes = passes_of(plan)(module, targets, plan, optimiser, buffers)
    for batch in watched(loader.batches(step, plan.steps), session, plan, step):
        keys, batch = batch_keys(batch), to_device(batch, device)
        rates = optimiser.set_rates(step)
        buffers.keep()
        step += 1
        report = pass_through(passes, batch, session, plan, step)
        point = observe(report, keys, session, plan)
        session.at(plan, step, AFTER)
        update_weights(session, plan, step, report, optimiser, scales, buffers)
        session.replaced.update(batch_replaced(batch))
        session.after(plan, step, point | {"lr": rates, "gradient_norm": report.norm}, report, module, optimiser)
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
    return Optimiser(groups, plan.phase, plan.optim, plan.steps, scaled=trained.amp is torch.float16)


def watched(batches: Iterator[BatchT], session: Session, plan: PhasePlan, step: int) -> Iterator[BatchT]:
    """The batches after `step`, with a word to the watchdog when each is waited for and when it is there."""
    session.at(plan, step + 1, READ)
    for number, batch in enumerate(batches, step + 1):
        session.at(plan, number, FORWARD)
        yield batch
        session.at(plan, number + 1, READ)
    session.watchdog.rest()


def pass_through(
    passes: Passes[BatchT, TargetsT], batch: BatchT, session: Session, plan: PhasePlan, step: int
) -> StepReport:
    """Make the gradient of step `step`, counted from 1, and clip it; the only place that waits for the device."""
    shares = session.due(session.runtime.shares_every, plan, step)
    made = passes.run(batch, step - 1, shares, lambda: session.at(plan, step, BACKWARD))
    stats = session.due(session.runtime.log_every, plan, step)
    return gather_report(made, passes.optimiser.clip(), session.flags(), stats)


def observe(report: StepReport, keys: Iterable[str], session: Session, plan: PhasePlan) -> dict[str, Any]:
    """Terms, weighted terms and, where due, gradient shares of a step, which the watch has seen then.

    Args:
        keys: of the batch's samples, for a message.
    """
    weighted = {name: plan.weights[name] * value for name, value in report.terms.items()}
    session.watch.see(report.own, sum(weighted.values()), keys)
    return {"terms": report.terms, "weighted": weighted, "shares": report.shares}


def update_weights(
    session: Session,
    plan: PhasePlan,
    step: int,
    report: StepReport,
    optimiser: Optimiser,
    scales: list[nn.Parameter],
    buffers: Buffers,
) -> None:
    """Take the update whose gradients are there, or skip it on all ranks.

    Raises:
        Diverged: see run_phase.
    """
    taken = judge(session, plan, step, report, optimiser.scaler.get_scale)
    optimiser.update(taken)
    if taken:
        bound(scales)
    else:
        buffers.restore()
    require_sound(session, plan, step)


def freeze_all_but(module: nn.Module, trained: list[nn.Parameter]) -> None:
    """requires_grad for the trained parameters only."""
    chosen = {id(p) for p in trained}
    for p in module.parameters():
        p.requires_grad_(id(p) in chosen)


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
