"""How a batch gets its terms and its gradient: in one pass, or in parts that fit into memory, with the same result.

In parts (optim.accumulate; GradCache, Gao et al. 2021, section 3): the towers run on every part without a graph and
leave a row a pair; the terms of all rows are computed, with their gradient at the rows; the towers run on every part
again, and each row's gradient goes back from there. So the terms see all pairs, and activations are those of one part.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cmapkd_core import parallel
from cmapkd_core.config import Phase
from cmapkd_core.data.loader import Batch
from cmapkd_core.engine.distribute import distribute
from cmapkd_core.engine.finite import Buffers
from cmapkd_core.engine.optim import Optimiser
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.errors import InputError
from cmapkd_core.methods.base import Outcome, Rows

Table = dict[str, Tensor]  # rows [b, ...] by column, of a loader without pictures
BatchT = TypeVar("BatchT", Batch, Table)
BatchT_contra = TypeVar("BatchT_contra", contravariant=True)
TargetsT = TypeVar("TargetsT")
TargetsT_contra = TypeVar("TargetsT_contra", contravariant=True)
Pulls = dict[str, dict[str, Tensor]]  # gradients at a part's rows, by name: of the total ("") and of terms


@dataclass(frozen=True)
class Made:
    """What a batch gave, all of it still on the device and without a graph; its gradient is in the parameters.

    terms, stats: scalars by name. norms: of each weighted term's gradient at the first taps, where that was asked for.
    """

    terms: dict[str, Tensor]
    stats: dict[str, Tensor]
    norms: dict[str, Tensor] = field(default_factory=dict)


class Passes(ABC, Generic[BatchT, TargetsT]):
    """One batch after the other through a module, in a phase.

    Args:
        targets: what a batch is compared with.
        buffers: the module's, kept at the step's start.
    """

    def __init__(
        self,
        module: nn.Module,
        targets: Callable[[BatchT], TargetsT],
        plan: PhasePlan,
        optimiser: Optimiser,
        buffers: Buffers,
    ) -> None:
        self.module: Any = module
        self.targets: Callable[[BatchT], TargetsT] = targets
        self.plan, self.optimiser, self.buffers = plan, optimiser, buffers

    @abstractmethod
    def run(self, batch: BatchT, step: int, shares: bool, backward: Callable[[], None]) -> Made:
        """Add the gradient of a batch's total.

        Args:
            step: counted from 0. shares: norms are wanted. backward: called before the first pass back.
        """

    def scale(self) -> float:
        """The loss scaler's, for gradients that are measured; waits for the device."""
        return self.optimiser.scaler.get_scale()


class AtOnce(Passes[BatchT, TargetsT]):
    """The whole batch in one pass."""

    def __init__(self, module: nn.Module, *given: Any) -> None:
        super().__init__(module, *given)
        self.wrapped = distribute(module)

    def run(self, batch: BatchT, step: int, shares: bool, backward: Callable[[], None]) -> Made:
        """One forward, one backward."""
        weights = self.plan.weights
        outcome: Outcome = self.wrapped(batch, self.targets(batch), self.plan.phase, step)
        norms = gradient_norms(outcome.terms, weights, outcome.roots, self.scale()) if shares and outcome.roots else {}
        backward()
        self.optimiser.scaled(weighted_total(outcome.terms, weights)).backward()
        return Made(_detached(outcome.terms), _detached(outcome.stats), norms)


class InParts(Passes[BatchT, TargetsT]):
    """As many parts as optim.accumulate says; the same terms and gradient but for what batch norms make of a part.

    For modules whose forward is towers first, then terms, as that of methods.base.Method is.

    Each pass draws the same random numbers in a part, and what remembers batches (running statistics, banks) sees each
    part once.
    """

    def __init__(self, module: nn.Module, *given: Any) -> None:
        super().__init__(module, *given)
        assert hasattr(module, "represent"), f"{type(module).__name__} does not say what its terms are computed from"
        self.wrapped = distribute(Again(module))
        self.parameters = [p for p in module.parameters() if p.requires_grad]

    def run(self, batch: BatchT, step: int, shares: bool, backward: Callable[[], None]) -> Made:
        """Twice through the towers, once through the terms."""
        parts = list(split(batch, self.plan.optim.accumulate))
        given, states = [(part, self.targets(part)) for part in parts], []
        rows = []
        with torch.no_grad():
            for part in given:
                states.append(_random_state())
                rows.append(self.module.represent(*part, self.plan.phase))
        self.buffers.copy_back()  # the second pass changes them again, in the same order
        whole = Rows.joined(rows)
        outcome: Outcome = self.module.terms_of(whole, self.plan.phase, step)
        pulls, of_parameters = self._gradients(whole, outcome.terms, len(parts), shares)
        backward()
        norms = []
        for i, part in enumerate(given):
            last = i == len(given) - 1
            with _drawing(states[i]), contextlib.nullcontext() if last else without_exchange(self.wrapped):
                scalars, roots = self.wrapped(part, self.plan.phase, pulls[i], of_parameters if last else [])
                norms.append(gradient_norms(scalars[1], {}, roots) if shares else {})
                if scalars[0].requires_grad:
                    scalars[0].backward()
        measured = [name for name in pulls[0] if name]
        return Made(_detached(outcome.terms), _detached(outcome.stats), _over_parts(norms, measured))

    def _gradients(
        self, rows: Rows, terms: dict[str, Tensor], parts: int, shares: bool
    ) -> tuple[list[Pulls], list[tuple[Tensor, Tensor]]]:
        """At the rows of each part: of the total, for shares of the weighted terms. At parameters: of the total.

        These are parameters that the terms read themselves, such as the logit scale.
        """
        weights = self.plan.weights
        leaves: list[Tensor] = list(rows.student.values())
        gradients: dict[str, tuple[Tensor | None, ...]] = {}
        for name, value in terms.items():
            if shares and value.requires_grad:
                weighted = self.optimiser.scaled(weights[name] * value)
                gradients[name] = torch.autograd.grad(weighted, leaves, retain_graph=True, allow_unused=True)
        total = self.optimiser.scaled(weighted_total(terms, weights))
        every = torch.autograd.grad(total, [*leaves, *self.parameters], allow_unused=True)
        gradients[""], at = every[: len(leaves)], zip(self.parameters, every[len(leaves) :], strict=True)
        tables = {
            name: _tables(dict(zip(rows.student, grads, strict=True)), parts) for name, grads in gradients.items()
        }
        pulls = [{name: table[i] for name, table in tables.items()} for i in range(parts)]
        return pulls, [(parameter, gradient) for parameter, gradient in at if gradient is not None]


class Again(nn.Module):
    """The second pass of a part: what DDP wraps, since the gradients of its last part are those of the whole batch."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module

    def forward(
        self,
        given: tuple[Any, Any],
        phase: Phase,
        pulls: Pulls,
        of_parameters: list[tuple[Tensor, Tensor]],
    ) -> tuple[tuple[Tensor, dict[str, Tensor]], list[Tensor]]:
        """Scalars whose gradients are those given: of the total, of the terms by name; and the towers' first taps.

        Args:
            pulls: gradients at the rows [b,..].
            of_parameters: gradients that do not come through rows; the last part brings them in.
        """
        rows: Rows = self.module.represent(*given, phase)
        scalars = {name: _pulled(rows.student, table) for name, table in pulls.items()}
        own = [(p * gradient).sum() for p, gradient in of_parameters]
        total = torch.stack([scalars.pop(""), *own]).sum()
        return (total, scalars), rows.roots


def passes_of(plan: PhasePlan) -> type[Passes[Any, Any]]:
    """How the plan's batches go through their module."""
    return InParts if plan.optim.accumulate > 1 else AtOnce


def weighted_total(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """sum_t weight_t * term_t, a scalar of scalars. Every term must have a weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def gradient_norms(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], roots: list[Tensor], scale: float = 1.0
) -> dict[str, Tensor]:
    """Norm of each weighted term's gradient at the student's first taps, scalars; none where the towers are frozen.

    There, and not at the embeddings, since the pyramids' terms never pass through an embedding.

    Args:
        terms: scalars with a graph. weights: 1 where there is none.
        roots: features [b, ...] that the terms were computed from.
        scale: the loss scaler's, without which towers in fp16 round small gradients to 0 and a term seems off.
    """
    roots, norms = [root for root in roots if root.requires_grad], {}
    for name, value in terms.items():
        if roots and value.requires_grad:
            weighted = scale * weights.get(name, 1.0) * value
            grads = torch.autograd.grad(weighted, roots, retain_graph=True, allow_unused=True)
            tap_norms = [g.float().norm() for g in grads if g is not None]
            norms[name] = torch.stack(tap_norms or [value.new_zeros(())]).norm()
    return norms


def split(batch: BatchT, parts: int) -> Iterator[BatchT]:
    """The batch in parts of equally many pairs.

    Raises:
        InputError: it does not divide.
    """
    pairs = len(batch.keys) if isinstance(batch, Batch) else len(next(iter(batch.values())))
    if pairs % parts:
        raise InputError(
            f"a batch of {pairs} pairs a process does not divide into optim.accumulate={parts} parts: use an "
            f"optim.batch that is a multiple of {parts * parallel.world()}"
        )
    for start in range(0, pairs, pairs // parts):
        rows = slice(start, start + pairs // parts)
        yield batch.part(rows) if isinstance(batch, Batch) else {name: x[rows] for name, x in batch.items()}


def without_exchange(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside it gradients stay with their rank; those of a batch's last part are summed over all of them."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


def _tables(gradients: dict[str, Tensor | None], parts: int) -> list[dict[str, Tensor]]:
    """Gradients [B,..] at joined rows as those at each part's; a scalar was the parts' mean."""
    chunks = {
        name: g.chunk(parts) if g.dim() else (g / parts,) * parts for name, g in gradients.items() if g is not None
    }
    return [{name: of[i] for name, of in chunks.items()} for i in range(parts)]


def _pulled(rows: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """sum_i <row_i, gradient_i>, of rows [b,..] by name: a scalar with these gradients at the rows."""
    parts = [(rows[name].float() * g).sum() for name, g in gradients.items() if rows[name].requires_grad]
    return torch.stack(parts).sum() if parts else next(iter(rows.values())).new_zeros((), dtype=torch.float32)


def _over_parts(norms: list[dict[str, Tensor]], names: Iterable[str]) -> dict[str, Tensor]:
    """Of all parts' pairs together, from each part's; 0 for those of `names` that no row tells of."""
    if not norms[0]:
        return {}
    none = torch.zeros_like(next(iter(norms[0].values())))
    return {name: torch.stack([part.get(name, none) for part in norms]).norm() for name in names}


def _detached(scalars: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in scalars.items()}


def _random_state() -> list[Tensor]:
    """Of the generators that modules draw from: the CPU's and this rank's GPU's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


@contextlib.contextmanager
def _drawing(state: list[Tensor]) -> Iterator[None]:
    """Inside it modules draw what they drew from `state` on; afterwards as if they had drawn nothing."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.set_rng_state(state[0])
        for of_gpu in state[1:]:
            torch.cuda.set_rng_state(of_gpu)
        yield
