"""The terms over all pairs of a batch without its similarities: some rows at a time, with gradients in closed form.

`contrastive.py`, `embeddings.py` and `relation.py` say what each term is, of a matrix [B,B] that is there; here the
same values and gradients come from the factors of the matrix, so that memory grows with B and not with B squared. A
rank computes its own rows against all ranks' columns, and no others.

Shapes: b rows of this rank, B columns of all ranks, K and J levels of rows and of columns (1 where there are none), D
width. A block is [K,r,J,B]: r of the rows, at all levels, against all columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**21  # similarities held at once, several times over; 8 MiB in fp32

# Of [K,J,B], one of each rank: theirs in rank order, [ranks,K,J,B].
Exchange = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ranks:
    """Which rows of the batch are this process's. exchange: a tensor of each rank's, stacked in their order."""

    rank: int = 0
    world: int = 1
    exchange: Exchange = lambda own: own[None]

    def own(self, batch: int) -> slice:
        """Its rows among `batch` of all ranks."""
        rows = batch // self.world
        return slice(self.rank * rows, (self.rank + 1) * rows)


ALONE = Ranks()


@dataclass(frozen=True)
class Similarities:
    """scale * sum_f rows_f columns_f^T, [K,b,J,B]: of all pairs of levels, never whole.

    rows: factors [K,b,D], this rank's. columns: as many [J,B,D], all ranks'.
    """

    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    scale: Tensor | float = 1.0
    ranks: Ranks = ALONE

    @staticmethod
    def of(rows: Tensor, columns: Tensor, scale: Tensor | float = 1.0, ranks: Ranks = ALONE) -> Similarities:
        """Of two matrices without levels, [B,D] each and of all ranks."""
        return Similarities.between((rows[None],), (columns[None],), scale, ranks)

    @staticmethod
    def between(
        rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], scale: Tensor | float = 1.0, ranks: Ranks = ALONE
    ) -> Similarities:
        """Of factors [K,B,D] and [J,B,D] of all ranks: this one's rows of them, all columns."""
        return Similarities(tuple(x[:, ranks.own(x.shape[1])] for x in rows), columns, scale, ranks)

    def detach(self) -> Similarities:
        """The same without a gradient."""
        scale = self.scale.detach() if isinstance(self.scale, Tensor) else self.scale
        rows, columns = (tuple(x.detach() for x in side) for side in (self.rows, self.columns))
        return Similarities(rows, columns, scale, self.ranks)

    def block(self, part: slice, over: float) -> Tensor:
        """Rows `part` divided by `over`, [K,r,J,B]."""
        k, j = len(self.rows[0]), len(self.columns[0])
        product: Tensor | None = None
        for x, y in zip(self.rows, self.columns, strict=True):
            left, right = x[:, part].flatten(0, 1), y.flatten(0, 1).T
            product = left @ right if product is None else product.addmm_(left, right)
        assert product is not None
        return product.mul_(self.scale / over).view(k, -1, j, self.columns[0].shape[1])


class _Blocks:
    """Similarities block by block, as often as wanted; those of a small batch are computed once."""

    def __init__(self, similarities: Similarities, over: float = 1.0) -> None:
        self.of, self.over = similarities, over
        rows, columns = similarities.rows[0], similarities.columns[0]
        self.shape = (len(rows), rows.shape[1], len(columns), columns.shape[1])
        size = max(1, BLOCK // (self.shape[0] * self.shape[2] * self.shape[3]))
        self.parts = [slice(i, min(i + size, self.shape[1])) for i in range(0, self.shape[1], size)]
        self._only: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for part in self.parts:
            block = self.of.block(part, self.over) if self._only is None else self._only
            if len(self.parts) == 1:
                self._only = block
            yield part, block

    def normalisers(self, columns: bool = True) -> tuple[Tensor, Tensor]:
        """log sum exp of each row over the columns, [K,b,J], and of each column over all ranks' rows, [K,J,B]."""
        rows, below = [], None
        for _, block in self:
            rows.append(block.logsumexp(3))
            if columns:
                here = block.logsumexp(1)
                below = here if below is None else torch.logaddexp(below, here)
        if below is None:
            return torch.cat(rows, 1), torch.empty(0)
        return torch.cat(rows, 1), self.of.ranks.exchange(below).logsumexp(0)


class _Gradient:
    """The gradient of a term at the factors and the scale, block by block."""

    def __init__(self, blocks: _Blocks, wanted: bool) -> None:
        self.blocks, self.wanted = blocks, wanted
        if wanted:
            self.rows = [x.new_empty(x.shape) for x in blocks.of.rows]
            self.columns = [x.new_zeros(x.shape) for x in blocks.of.columns]  # contiguous, to be added to flat
            self.scale = self.rows[0].new_zeros(())

    def add(self, part: slice, gradient: Tensor, block: Tensor) -> None:
        """`gradient`: of the term at the block's similarities, [K,r,J,B]; it is used up."""
        of = self.blocks.of
        self.scale += torch.dot(gradient.flatten(), block.flatten()) / of.scale
        flat = gradient.mul_(of.scale / self.blocks.over).flatten(2).flatten(0, 1)  # [K r, J B]
        for x, y, dx, dy in zip(of.rows, of.columns, self.rows, self.columns, strict=True):
            dx[:, part] = (flat @ y.flatten(0, 1)).view(len(dx), -1, dx.shape[2])
            dy.flatten(0, 1).addmm_(flat.T, x[:, part].flatten(0, 1))


Compute = Callable[[bool], tuple[Tensor, _Gradient]]  # given whether a gradient is wanted


class _Term(torch.autograd.Function):
    """A scalar with its gradient, which `compute` gives together."""

    @staticmethod
    def forward(ctx: Any, compute: Compute, scale: Tensor | float, *factors: Tensor) -> Tensor:
        """`scale` and `factors` (rows, then columns) are what has a gradient; `compute` knows their values."""
        wanted = any(ctx.needs_input_grad)
        value, total = compute(wanted)
        if wanted:
            ctx.save_for_backward(total.scale, *total.rows, *total.columns)
        return value

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient, times that of the scalar."""
        kept = zip(ctx.needs_input_grad[1:], ctx.saved_tensors, strict=True)
        return (None, *(above[0] * x if needed else None for needed, x in kept))


def _term(student: Similarities, compute: Callable[[Similarities, bool], tuple[Tensor, _Gradient]]) -> Tensor:
    plain = student.detach()
    result: Tensor = _Term.apply(lambda wanted: compute(plain, wanted), student.scale, *student.rows, *student.columns)
    return result


def info_nce(logits: Similarities, columns: bool = True) -> Tensor:
    """contrastive.info_nce of a single pair of levels -> scalar; without `columns`, 1/2 CE of its rows alone.

    Each of several ranks has its share times their number: the mean over them is the term, and so is its gradient.
    """

    def compute(plain: Similarities, wanted: bool) -> tuple[Tensor, _Gradient]:
        ranks, blocks = plain.ranks, _Blocks(plain)
        total, gradient = blocks.shape[3], _Gradient(blocks, wanted)
        across, down = blocks.normalisers(columns)
        own, matched, share = ranks.own(total), [], ranks.world * 0.5 / total
        for part, block in blocks:
            place = diagonal(part, own.start, block.device)
            matched.append(block[place])
            if wanted:
                pull = (block - across[:, part, :, None]).exp_()
                if columns:
                    pull += (block - down[:, None]).exp_()
                pull[place] -= 2.0 if columns else 1.0
                gradient.add(part, pull.mul_(share), block)
        value = across.sum() - torch.cat(matched).sum()
        if columns:
            value = value + down[..., own].sum() - torch.cat(matched).sum()
        return share * value, gradient

    return _term(logits, compute)


def relative_entropy(
    teacher: Similarities,
    student: Similarities,
    tau: float,
    weights: Tensor | None = None,
    cross: bool = False,
    columns: bool = True,
) -> Tensor:
    """sum_kj weights_kj * contrastive.relative_entropy of the pair of levels k, j -> scalar; of ranks as info_nce.

    Args:
        weights: [K,J], which get no gradient; None is 1 for each pair.
        cross: the cross entropy in place of the KL: the teacher's own entropy counts, and the gradient is the same.
        columns: False leaves them out, as of info_nce: half of the KL of the rows.
    """
    teacher = teacher.detach()

    def compute(plain: Similarities, wanted: bool) -> tuple[Tensor, _Gradient]:
        guess, target = _Blocks(plain, tau), _Blocks(teacher, tau)
        (k, _, j, total), gradient = guess.shape, _Gradient(guess, wanted)
        table = plain.rows[0].new_ones(k, j) if weights is None else weights.detach().to(plain.rows[0].dtype)
        share = (plain.ranks.world * 0.5 * tau**2 / total * table)[:, None, :, None]  # [K,1,J,1]
        (across, down), (across_t, down_t) = guess.normalisers(columns), target.normalisers(columns)
        beyond = 0.0 if cross else 1.0  # how much of the teacher's own log probabilities counts
        value = (share[..., 0] * (across - beyond * across_t)).sum()
        if columns:
            value = value + (share[:, 0] * (down - beyond * down_t)[..., plain.ranks.own(total)]).sum()
        for (part, block), (_, other) in zip(guess, target, strict=True):
            wish = _probabilities(other, across_t[:, part], down_t if columns else None).mul_(share)
            value = value + torch.dot(wish.flatten(), (beyond * other - block).flatten())
            if wanted:
                pull = _probabilities(block, across[:, part], down if columns else None)
                gradient.add(part, pull.mul_(share).sub_(wish), block)
        return value, gradient

    return _term(student, compute)


def _probabilities(block: Tensor, across: Tensor, down: Tensor | None) -> Tensor:
    """Softmax of a block [K,r,J,B] over its rows by their normalisers [K,r,J], and added that by columns' [K,J,B]."""
    probabilities = (block - across[..., None]).exp_()
    return probabilities if down is None else probabilities.add_((block - down[:, None]).exp_())


def squared_difference(teacher: Similarities, student: Similarities) -> Tensor:
    """relation.off_diagonal of student minus teacher of a single pair of levels -> scalar; of ranks as info_nce."""
    teacher = teacher.detach()

    def compute(plain: Similarities, wanted: bool) -> tuple[Tensor, _Gradient]:
        blocks, targets = _Blocks(plain), _Blocks(teacher)
        total, gradient = blocks.shape[3], _Gradient(blocks, wanted)
        share = plain.ranks.world / max(1, total * (total - 1))
        value = plain.rows[0].new_zeros(())
        for (part, block), (_, other) in zip(blocks, targets, strict=True):
            difference = block - other
            difference[diagonal(part, plain.ranks.own(total).start, block.device)] = 0.0
            value = value + share * difference.square().sum()
            if wanted:
                gradient.add(part, difference.mul_(2 * share), block)
        return value, gradient

    return _term(student, compute)


def interactive(image_to_teacher: Similarities, text_to_teacher: Similarities) -> Tensor:
    """embeddings.interactive -> scalar; rows are the student's. Of ranks as info_nce."""
    return info_nce(image_to_teacher, columns=False) + info_nce(text_to_teacher, columns=False)


def margin(similarity: Similarities) -> Tensor:
    """contrastive.margin of a single pair of levels for this rank's pairs, without a gradient -> [b]."""
    blocks = _Blocks(similarity.detach())
    own, matched, across = similarity.ranks.own(blocks.shape[3]), [], []
    down: Tensor | None = None
    for part, block in blocks:
        place = diagonal(part, own.start, block.device)
        matched.append(block[place].clone())
        rivals = block.index_put(place, block.new_tensor(float("-inf")))
        across.append(rivals.amax(3).flatten())
        here = rivals.amax(1)
        down = here if down is None else torch.maximum(down, here)
    assert down is not None
    below = similarity.ranks.exchange(down).amax(0).flatten()[own]
    return torch.cat(matched) - 0.5 * (torch.cat(across) + below)


def diagonal(part: slice, first: int, device: torch.device) -> tuple[Tensor, ...]:
    """Index of each row's own column in a block of rows `part`, the first of all of which is the `first` column's."""
    rows = torch.arange(part.stop - part.start, device=device)
    none = torch.zeros_like(rows)
    return none, rows, none, first + part.start + rows
