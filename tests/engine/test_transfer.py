"""What a step tells the host comes at once: a second wait for the device would be noticed here."""

import dataclasses
import math

import pytest
import torch
from waits import waits

from cmapkd_core.config import OptimConfig, Phase, Rates
from cmapkd_core.engine.passes import Made
from cmapkd_core.engine.transfer import gather_report

BOTH = (Phase(1, Rates(student=1e-2, pyramid=1e-2)),)


def test_what_counts_as_a_wait():
    x = torch.ones(2)
    with waits() as since:
        float(x.sum())
        assert since() == {"__float__": 1, "_local_scalar_dense": 1}
        assert x.sum() > 0
        assert "__bool__" in since()
        x.tolist()
        assert since() == {"tolist": 1}
        x[x > 0]
        assert since() == {"masked index": 1}
        x[[1, 0]]
        x.new_tensor([1.0])
        assert since() == {"index by a list": 1, "new_tensor": 1}
        (x[1:] * 2).sum()
        assert since() == {}


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_waits_once(toy, parts):
    """Logging each step, and measuring shares in the fifth."""
    runtime = dataclasses.replace(toy().runtime, checkpoint_every=100, shares_every=5)
    one = toy(phases=BOTH, runtime=runtime, optim=OptimConfig(batch=4, accumulate=parts, warmup=0.0))
    found = {}
    with waits() as since:
        one.rows.before = lambda step: found.update({step: since()})
        session = one.run()
    assert [found[step] for step in range(1, 10)] == [{"tolist": 1}] * 9
    assert session.history[4]["shares"]


def test_numbers_arrive_where_they_belong():
    terms = {"a": torch.tensor(1.5), "b": torch.tensor(2.0)}
    made = Made(terms, {"mean": torch.tensor(7.0)}, {"a": torch.tensor(3.0), "b": torch.tensor(1.0)})
    told = gather_report(made, torch.tensor(9.0), (False, True), stats=True)
    assert (told.own, told.terms, told.stats) == ({"a": 1.5, "b": 2.0}, {"a": 1.5, "b": 2.0}, {"mean": 7.0})
    assert (told.shares, told.norm, told.stopping, told.saving) == ({"a": 0.75, "b": 0.25}, 9.0, False, True)
    assert gather_report(made, torch.tensor(9.0), (True, False), stats=False).stats == {}
    assert math.isnan(
        gather_report(Made({"a": torch.tensor(math.nan)}, {}), torch.tensor(1.0), (True, False), False).terms["a"]
    )
