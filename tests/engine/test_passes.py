"""A batch in parts through a tower with dropout and batch norm: same draws in both passes, each part counted once."""

import math

import pytest
import torch
from torch import nn

from cmapkd_core.config import OptimConfig, Phase, Rates
from cmapkd_core.engine.finite import Buffers
from cmapkd_core.engine.optim import Optimiser, trainable
from cmapkd_core.engine.passes import InParts, split
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.errors import InputError, Interrupted
from cmapkd_core.losses.similarity import info_nce
from cmapkd_core.methods.base import Outcome, Rows

PHASE = Phase(2, Rates(student=1e-2))


class Tower(nn.Module):
    """Rows of two sides through one tower that draws and counts; the terms draw and count too."""

    amp: torch.dtype | None = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 4))
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.dropout = nn.Dropout(0.2)
        self.register_buffer("seen", torch.zeros(()))

    def groups(self, phase):
        return {"student": list(self.parameters())}

    def represent(self, batch, targets, phase):
        hidden = self.tower[0](batch["x"])
        near = torch.cat((batch["y"], batch["x"][:, :1]), dim=1)
        pair = self.tower[1:](hidden), self.tower(near)
        return Rows({"x": pair[0], "y": pair[1], "size": pair[0].square().mean()}, {}, [hidden], [(batch, targets)])

    def terms_of(self, rows, phase, step):
        self.seen.add_(len(rows.student["x"]))
        x, y = (self.dropout(nn.functional.normalize(rows.student[n], dim=1)) for n in ("x", "y"))
        return Outcome(
            {"task": info_nce(self.log_scale.exp() * x @ y.T), "intra": rows.student["size"]}, roots=rows.roots
        )

    def forward(self, batch, targets, phase, step):
        return self.terms_of(self.represent(batch, targets, phase), phase, step)


def in_parts(module: Tower, parts: int) -> InParts:
    optim = OptimConfig(batch=8, accumulate=parts)
    plan = PhasePlan(0, "fine", PHASE, 1, {"task": 1.0, "intra": 0.5}, optim, 8)
    optimiser = Optimiser(trainable(module.groups(PHASE), PHASE), PHASE, optim, 1, scaled=False)
    return InParts(module, lambda batch: None, plan, optimiser, Buffers(module))


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"x": torch.randn(8, 2, generator=generator), "y": torch.randn(8, 1, generator=generator)}


@pytest.mark.parametrize("parts", [2, 4])
def test_both_passes_draw_the_same_and_buffers_see_each_part_once(parts):
    ours, plain = Tower().train(), Tower().train()
    torch.manual_seed(9)
    made = in_parts(ours, parts).run(batch(), 0, False, lambda: None)
    after = torch.get_rng_state()

    torch.manual_seed(9)  # the same with all activations in memory
    rows = [plain.represent(part, None, PHASE) for part in split(batch(), parts)]
    joined = {n: [r.student[n] for r in rows] for n in ("x", "y", "size")}
    whole = {n: torch.cat(x) if x[0].dim() else torch.stack(x).mean() for n, x in joined.items()}
    outcome = plain.terms_of(Rows(whole, {}, [], []), PHASE, 0)
    (outcome.terms["task"] + 0.5 * outcome.terms["intra"]).backward()
    assert torch.equal(after, torch.get_rng_state())
    assert torch.equal(made.terms["task"], outcome.terms["task"])
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-5, atol=1e-7), name
        assert p.grad.abs().sum() > 0, name
    for (name, x), y in zip(ours.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(x, y), name
    assert (ours.seen, ours.tower[1].num_batches_tracked) == (8, 2 * parts)  # of two sides each


@pytest.fixture
def towers(toy):
    """`towers(name)`: a toy of 20 steps that trains a tower in two parts, and saves when it is asked to stop."""

    def make(name):
        one = toy(name, phases=(PHASE,), optim=OptimConfig(batch=4, accumulate=2, warmup=0.0))
        one.module = Tower()
        return one

    return make


def test_a_run_in_parts_resumes_bit_for_bit(towers, terminate_after):
    straight = towers("straight")
    torch.manual_seed(1)
    expected = straight.run()
    cut = towers("cut")
    terminate_after(7)
    torch.manual_seed(1)
    with pytest.raises(Interrupted):
        cut.run()
    again = towers("cut")
    terminate_after(0)
    session = again.run()
    assert "toy: going on from the checkpoint at phase phase0, step 7\n" in again.said
    assert [p["terms"] for p in session.history] == [p["terms"] for p in expected.history]
    for name, x in straight.module.state_dict().items():
        assert torch.equal(x, again.module.state_dict()[name]), name


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_in_parts_that_is_skipped_leaves_nothing_in_the_buffers(towers, value):
    one, seen = towers("bad"), {}
    clean = one.rows.x.clone()

    def before(step):
        one.rows.x = clean.clone()
        if step == 13:
            one.rows.x[3, 2:] = value  # the second part of the batch
        seen[step] = {name: x.clone() for name, x in one.module.state_dict().items()}

    one.rows.before = before
    assert len(one.run().watch.memory.skipped) == 1
    assert all(torch.equal(x, seen[14][name]) for name, x in seen[13].items())
    assert not torch.equal(seen[14]["seen"], seen[15]["seen"])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match=r"8 pairs a process does not divide into optim\.accumulate=3 parts"):
        list(split(batch(), 3))
