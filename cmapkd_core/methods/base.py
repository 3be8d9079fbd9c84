"""The contract of a method: it owns what it trains, and turns a batch into named terms."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cmapkd_core import parallel
from cmapkd_core.config import Phase, Recipe
from cmapkd_core.data.loader import Batch
from cmapkd_core.errors import InputError
from cmapkd_core.losses.standardised import standardised_entropy
from cmapkd_core.losses.streamed import Ranks, Similarities, relative_entropy
from cmapkd_core.method_specs import METHODS
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.features import Features
from cmapkd_core.models.frozen_teacher import Embeddings, TargetsT, Teacher

if TYPE_CHECKING:
    from cmapkd_core.methods.policy_fit import PolicyFit


@dataclass
class Rows:
    """What the terms of a batch are computed from, by name: a row a pair, [b,..], or a mean over the pairs, a scalar.

    So little is kept of pairs whose activations do not fit into memory at once (engine/chunks.py).

    student: with gradient. teacher: without.
    roots: the towers' first taps above what is frozen, with a graph down to which gradients are measured; none of
        joined rows.
    given: the batches, and what the teacher says of them, that the rows are of; several of joined rows.
    """

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    roots: list[Tensor]
    given: list[tuple[Batch, Embeddings | None]]

    @staticmethod
    def of(batch: Batch, targets: Embeddings | None, vision: Features, text: Features) -> Rows:
        """Unit embeddings `image` and `text` of both sides, [b,E]; more may be added to them."""
        teacher = {} if targets is None else {"image": targets.image, "text": targets.text}
        student = {"image": vision.embedding, "text": text.embedding}
        return Rows(student, teacher, [vision.root, text.root], [(batch, targets)])

    @staticmethod
    def joined(parts: list[Rows]) -> Rows:
        """Rows of all parts, which have equally many pairs, in fp32; the student's are leaves that want a gradient."""
        student = {
            n: _together([part.student[n] for part in parts]).detach().requires_grad_() for n in parts[0].student
        }
        teacher = {n: _together([part.teacher[n] for part in parts]) for n in parts[0].teacher}
        return Rows(student, teacher, [], [pair for part in parts for pair in part.given])

    def gathered(self) -> list[Tensor]:
        """Embeddings of all ranks' pairs, [B,E] each: the student's images and captions, the teacher's."""
        return gathered(*(side[name] for side in (self.student, self.teacher) for name in ("image", "text")))

    def targets(self, kind: type[TargetsT]) -> TargetsT:
        """What the teacher says of the first batch: its scalars and tables are the same for all."""
        return require(self.given[0][1], kind)


def _together(parts: list[Tensor]) -> Tensor:
    """Rows [b,..] of parts as [B,..], scalars by their mean; fp32."""
    floats = [x.float() for x in parts]
    return torch.cat(floats) if floats[0].dim() else torch.stack(floats).mean()


@dataclass
class Outcome:
    """What one forward gives.

    terms: unweighted losses by name, scalars with gradient. stats: scalars to log, without gradient.
    roots: features that the terms were computed from; gradient shares are measured there.
    """

    terms: dict[str, Tensor]
    stats: dict[str, Tensor] = field(default_factory=dict)
    roots: list[Tensor] = field(default_factory=list)


class Method(nn.Module):
    """A student and whatever is trained beside it.

    A forward is `represent`, which runs the towers on a batch, and `compare`, which makes terms of what they gave. They
    are apart so that a batch may pass the towers in parts: `compare` sees the rows of all of them.

    `method_specs.METHODS` names the terms and parameter groups of each method; `compare` gives exactly
    these terms. The teacher is no part of a method: its outputs for a batch come with it as targets, as much of them as
    the method's `targets` there names.
    """

    amp: torch.dtype | None = None  # set by the engine: the towers' autocast type; losses stay fp32
    # The student's parameters that never train. A constant added to every logit (SigLIP) is not seen by the softmax
    # losses here.
    fixed: tuple[str, ...] = ("logit_bias",)

    def __init__(self, recipe: Recipe, student: Backbone, teacher: Teacher | None) -> None:
        super().__init__()
        self.recipe, self.student = recipe, student

    def groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        """Parameters by group, as far as `phase` can reach them: each of them gets a gradient."""
        named = self.student.named_parameters()
        return {
            "student": [p for name, p in named if name not in self.student.frozen and not name.endswith(self.fixed)]
        }

    def represent(self, batch: Batch, targets: Embeddings | None, phase: Phase) -> Rows:
        """What the towers give for a local batch, as far as the terms need it; no pair's row sees another pair.

        Batch norms aside, whose statistics are those of the batch.
        """
        raise NotImplementedError

    def compare(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """The terms of local rows; in-batch terms see all ranks' pairs. Buffers that remember pairs change here."""
        raise NotImplementedError

    def terms_of(self, rows: Rows, phase: Phase, step: int) -> Outcome:
        """`compare`, held to the method's row.

        Raises:
            InputError: it gives other terms; names the row.
        """
        outcome, name = self.compare(rows, phase, step), self.recipe.method.name
        terms, row = outcome.terms, METHODS[name].terms_with(vars(self.recipe.method.weights))
        if {*terms} != {*row}:
            raise InputError(
                f"method '{name}' gives terms {', '.join(terms)}, and by its row {', '.join(row)}"
                f': correct `terms` of METHODS["{name}"] in cmapkd_core/method_specs.py, or what its compare gives'
            )
        return outcome

    def forward(self, batch: Batch, targets: Embeddings | None, phase: Phase, step: int) -> Outcome:
        """The terms of one local batch, at once."""
        return self.terms_of(self.represent(batch, targets, phase), phase, step)

    def lacks(self) -> int:
        """Training pairs whose teacher embeddings it has to be given before its first step; `keep` takes them."""
        return 0

    def keep(self, image: Tensor, text: Tensor) -> None:
        """Take the teacher's unit embeddings of as many pairs, or of all that there are, [N,E'] each."""
        raise NotImplementedError

    def active(self, phase: Phase) -> tuple[str, ...]:
        """Names of the levels that the method uses in `phase`; none for a method without levels."""
        return ()

    def policy_fit(self) -> PolicyFit | None:
        """What the ALSN stage trains, a module with the loop's contract; None where there is no policy to learn."""
        return None

    def begin(self, teacher: Teacher | None) -> list[str]:
        """Called once, on the recipe's untrained student; what it did to it, in lines to be shown."""
        return []

    def exported(self, teacher: Teacher | None) -> Backbone:
        """The model that answers queries: what is evaluated and shipped, with all that inference needs."""
        return self.student

    def statistics(self, batch: Batch, targets: Embeddings | None) -> dict[str, Tensor]:
        """What a selector learns from, rows [b, ...] by column; nothing for a method without one."""
        return {}

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The precision of the towers."""
        return precision(next(self.parameters()).device.type, self.amp)

    def towers(self, batch: Batch) -> tuple[Features, Features]:
        """The student's vision and text features of a batch."""
        with self.autocast():
            return self.student.vision(batch.images["student"]), self.student.text(batch.tokens["student"])

    def logits(self, image: Tensor, text: Tensor) -> Similarities:
        """The student's scaled similarities of gathered embeddings, [B,E] twice."""
        return similar(image, text, self.student.scale())

    def kd_of_each(
        self,
        logits: Similarities,
        student: tuple[Tensor, Tensor],
        teacher: tuple[Tensor, Tensor],
        of: Embeddings,
        among: Ranks | None = None,
    ) -> Tensor:
        """Term `kd`, its mean over the teachers that `teacher`, gathered [B,E] twice, is of. of: their targets."""
        each = zip(*(of.each(x) for x in teacher), of.scales(), strict=True)
        return mean_over([self.kd(logits, student, (image, text), scale, among) for image, text, scale in each])

    def kd(
        self,
        logits: Similarities,
        student: tuple[Tensor, Tensor],
        teacher: tuple[Tensor, Tensor],
        scale: Tensor | float,
        among: Ranks | None = None,
    ) -> Tensor:
        """Term `kd`: the teacher's similarities at method.kd_tau, z-scored where the recipe says so.

        Args:
            logits: the student's similarities.
            student, teacher: images and captions, gathered, [B,E] and [B,E'] each.
            scale: of the teacher's similarities.
            among: as in `similar`.
        """
        config = self.recipe.method
        if config.kd_standardise:
            return standardised_entropy(teacher, student, config.kd_tau, among or ranks())
        return relative_entropy(similar(*teacher, scale, among), logits, config.kd_tau)


def precision(device: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Autocast to `dtype`, or full precision for None."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype)


def require(targets: Embeddings | None, kind: type[TargetsT]) -> TargetsT:
    """The teacher targets of a method that needs this kind of them."""
    if not isinstance(targets, kind):
        given = "no teacher" if targets is None else f"its {type(targets).__name__}"
        raise InputError(
            f"the method asks for {kind.__name__} of its teacher, and has {given} by its row of METHODS in "
            "cmapkd_core/method_specs.py: set the row's `teacher` and `targets`"
        )
    return targets


def require_teacher(teacher: Teacher | None) -> Teacher:
    """The same for the teacher itself, which some methods read when they are made."""
    if teacher is None:
        raise InputError(
            "the method reads its teacher, and has none by its row of METHODS in cmapkd_core/method_specs.py: set the "
            "row's `teacher`"
        )
    return teacher


def mean_over(terms: Sequence[Tensor]) -> Tensor:
    """A term's mean over teachers, a scalar; of one teacher the term as it is."""
    return terms[0] if len(terms) == 1 else torch.stack(list(terms)).mean()


def gathered(*tensors: Tensor) -> list[Tensor]:
    """Each tensor's rows of all ranks in fp32, with gradient where it has one: [b,...] -> [B,...].

    In two exchanges, of those with a gradient and of those without.
    """
    if parallel.world() == 1:
        return [x.float() for x in tensors]
    result: dict[int, Tensor] = {}
    for graded in (True, False):
        chosen = [i for i, x in enumerate(tensors) if x.requires_grad is graded]
        if chosen:
            flat = [tensors[i].float().reshape(len(tensors[i]), -1) for i in chosen]
            parts = parallel.gather(torch.cat(flat, dim=1)).split([x.shape[1] for x in flat], dim=1)
            result |= {i: part.reshape(-1, *tensors[i].shape[1:]) for i, part in zip(chosen, parts, strict=True)}
    return [result[i] for i in range(len(tensors))]


def ranks() -> Ranks:
    """Which rows of a gathered batch are this process's."""
    return Ranks(parallel.rank(), parallel.world(), parallel.stack)


def similar(rows: Tensor, columns: Tensor, scale: Tensor | float = 1.0, among: Ranks | None = None) -> Similarities:
    """scale * rows columns^T of gathered vectors, [B,D] twice, for the terms of losses/streamed.py.

    Args:
        among: who shares the rows; None: all ranks.
    """
    return Similarities.of(rows, columns, scale, among or ranks())
