"""Terms computed some rows at a time equal their definitions on the whole matrix: values, gradients, over ranks."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.losses import embeddings, relation, similarity, streamed
from cmapkd_core.losses.streamed import Ranks, Similarities

B, D, LEVELS, TEXTS = 6, 4, 3, 2
ALPHA = torch.tensor([[0.5, 0.0], [0.1, 0.2], [0.0, 0.2]], dtype=torch.float64)


def unit(*shape: int, seed: int) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1)


class Given:
    """A student's factors and scale, leaves of a graph, and a teacher's; two factors, as the bridge has."""

    def __init__(self, levels: int = 1, texts: int = 1) -> None:
        self.rows = [unit(levels, B, D, seed=n).requires_grad_() for n in (1, 2)]
        self.columns = [unit(texts, B, D, seed=n).requires_grad_() for n in (3, 4)]
        self.scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
        self.teacher = unit(levels, B, 2 * D, seed=5), unit(texts, B, 2 * D, seed=6)
        self.leaves = [*self.rows, *self.columns, self.scale]

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's and the teacher's similarities, [K,J,B,B]."""
        pairs = [torch.einsum("kbd,jcd->kjbc", *x) for x in (*zip(self.rows, self.columns, strict=True), self.teacher)]
        return self.scale * (pairs[0] + pairs[1]), 5.0 * pairs[2]

    def parts(self, ranks: Ranks = streamed.ALONE) -> tuple[Similarities, Similarities]:
        rows, columns = self.teacher
        student = Similarities.between(tuple(self.rows), tuple(self.columns), self.scale, ranks)
        return student, Similarities.between((rows,), (columns,), 5.0, ranks)


TERMS = {
    "info_nce": (lambda s, t: similarity.info_nce(s[0, 0]), lambda s, t: streamed.info_nce(s)),
    "interactive": (
        lambda s, t: embeddings.interactive(s[0, 0], s[0, 0]),
        lambda s, t: streamed.interactive(s, s),
    ),
    "relative_entropy": (
        lambda s, t: similarity.relative_entropy(t, s, 2.0)[0, 0],
        lambda s, t: streamed.relative_entropy(t, s, 2.0),
    ),
    "cross entropy": (
        lambda s, t: embeddings.soft_cross_entropy(t[0, 0], s[0, 0]),
        lambda s, t: streamed.relative_entropy(t, s, 1.0, cross=True),
    ),
    "squared_difference": (
        lambda s, t: relation.off_diagonal(s[0, 0] - t[0, 0]),
        lambda s, t: streamed.squared_difference(t, s),
    ),
    "weighted pairs of levels": (
        lambda s, t: (ALPHA * similarity.relative_entropy(t, s, 0.7)).sum(),
        lambda s, t: streamed.relative_entropy(t, s, 0.7, ALPHA),
    ),
}


def given(term: str) -> Given:
    return Given(LEVELS, TEXTS) if term == "weighted pairs of levels" else Given()


def defined(term: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Value and gradients by the definition."""
    case = given(term)
    value = TERMS[term][0](*case.whole())
    return value.detach(), list(torch.autograd.grad(3 * value, case.leaves))


@pytest.fixture(params=[1, 2 * LEVELS * TEXTS * B, 2**20], ids=["row by row", "two rows", "at once"])
def block(request, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK", request.param)


@pytest.mark.parametrize("term", TERMS)
def test_value_and_gradients_are_the_definitions(block, term):
    value, gradients = defined(term)
    case = given(term)
    ours = TERMS[term][1](*case.parts())
    assert ours.item() == pytest.approx(value.item(), rel=1e-12)
    for name, mine, theirs in zip("rrccs", torch.autograd.grad(3 * ours, case.leaves), gradients, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-13), name


@pytest.mark.parametrize("term", TERMS)
def test_ranks_share_the_rows(block, term):
    """The mean over the ranks is the term; so is the mean of their gradients, summed where a gather would."""
    world = 3
    box, barrier, lock = [None] * world, threading.Barrier(world), threading.Lock()

    def run(rank: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        def exchange(x: torch.Tensor) -> torch.Tensor:
            box[rank] = x
            barrier.wait(30)
            found = torch.stack(box)
            barrier.wait(30)
            return found

        case = given(term)
        value = TERMS[term][1](*case.parts(Ranks(rank, world, exchange)))
        with lock:
            return value.detach(), torch.autograd.grad(3 * value, case.leaves)

    with ThreadPoolExecutor(world) as pool:
        found = list(pool.map(run, range(world)))
    value, gradients = defined(term)
    assert sum(v.item() for v, _ in found) / world == pytest.approx(value.item(), rel=1e-12)
    for n, wanted in enumerate(gradients):
        assert torch.allclose(sum(g[n] for _, g in found) / world, wanted, rtol=1e-10, atol=1e-13), n


@pytest.mark.parametrize("term", TERMS)
def test_without_a_gradient_the_value_is_the_same(term):
    with torch.no_grad():
        value = TERMS[term][1](*given(term).parts())
    assert value.item() == pytest.approx(defined(term)[0].item(), rel=1e-12)


def test_margin(block):
    student, _ = Given().whole()
    assert torch.allclose(streamed.margin(Given().parts()[0]), similarity.margin(student[0, 0].detach()))


def test_a_gradient_taken_twice_is_the_same():
    """Shares and utilities take each term's own before the total's."""
    case = Given()
    value = streamed.info_nce(case.parts()[0])
    first = torch.autograd.grad(2 * value, case.leaves, retain_graph=True)
    assert all(torch.equal(a, 2 * b) for a, b in zip(first, torch.autograd.grad(value, case.leaves), strict=True))


def test_the_batch_squared_is_never_held(monkeypatch):
    """The largest tensor that a term allocates, in elements."""
    monkeypatch.setattr(streamed, "BLOCK", 2**12)
    rows, columns = (torch.randn(1, 512, 2).requires_grad_() for _ in range(2))
    largest = 0

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watching():
        streamed.info_nce(Similarities((rows,), (columns,))).backward()
    assert 2**11 < largest <= 2**12


def test_what_is_not_finite_shows():
    """The loop skips an update by its terms: a NaN may not be lost in a block."""
    case = Given()
    with torch.no_grad():
        case.rows[0][0, 3, 1] = float("nan")
    for term in ("info_nce", "relative_entropy", "squared_difference"):
        assert torch.isnan(TERMS[term][1](*case.parts())), term
