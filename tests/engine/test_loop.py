"""The loop on toy phases: what is trained, logged, saved and refused."""

import copy
import dataclasses
import json
import math
import time

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from cmapkd_core.config import OptimConfig, Phase, Rates
from cmapkd_core.engine.distribute import share_batch_statistics
from cmapkd_core.engine.loop import freeze_all_but
from cmapkd_core.engine.passes import gradient_norms, weighted_total
from cmapkd_core.engine.transfer import shares_of
from cmapkd_core.errors import Diverged, InputError, Interrupted
from cmapkd_core.methods.base import Outcome

BOTH = Phase(1, Rates(student=1e-2, pyramid=1e-2))


def weights_of(toy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in toy.module.named_parameters()}


def test_a_phase_learns_and_logs_every_term_raw_and_weighted(toy):
    one = toy(phases=(Phase(3, Rates(student=5e-2)),))
    points = one.run().history
    assert [p["step"] for p in points] == list(range(1, 31))
    assert [p["epoch"] for p in points] == [1] * 10 + [2] * 10 + [3] * 10
    assert points[-1]["terms"]["task"] < points[0]["terms"]["task"]
    for p in points:
        assert p["weighted"] == pytest.approx({"task": p["terms"]["task"], "intra": 0.5 * p["terms"]["intra"]})
        assert p["lr"].keys() == {"student"}
        assert p["gradient_norm"] > 0
        assert p["samples_per_second"] > 0
    lines = [json.loads(line) for line in (one.folder / "journal.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[0]["metrics"]["terms/task"] == points[0]["terms"]["task"]


def test_the_progress_line_has_epoch_step_loss_speed_and_time_left(toy):
    one = toy(phases=(Phase(2, Rates(student=1e-2)),))
    point = one.run().history[-1]
    loss = sum(point["weighted"].values())
    assert one.said[-2].startswith(f"toy phase0: epoch 2/2  step 20/20  loss {loss:.4f}  ")
    assert one.said[-2].endswith("samples/s  ETA 0:00")


def test_groups_without_a_rate_do_not_move_and_are_frozen(toy):
    one = toy(phases=(Phase(1, Rates(student=1e-2)),))
    before = weights_of(one)
    one.run()
    after = weights_of(one)
    assert torch.equal(before["spare"], after["spare"])
    assert not one.module.spare.requires_grad
    assert not torch.equal(before["weight"], after["weight"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_term_that_is_not_finite_and_may_not_be_skipped_stops_with_step_and_term(toy, value):
    one = toy(optim=OptimConfig(batch=4, warmup=0.0, max_skipped=0))
    one.rows.y[4, 0] = value
    with pytest.raises(Diverged, match=r"toy, phase phase0, step 5: 1 updates? .* task of the loss is not") as caught:
        one.run()
    assert "intra" not in str(caught.value)
    assert one.checkpoints.latest().step == 4


def test_half_precision_is_refused_before_the_first_step(toy):
    one = toy(optim=OptimConfig(batch=4, precision="fp16"))
    with pytest.raises(InputError, match="optim.precision=fp16"):
        one.run()


def test_a_phase_whose_groups_have_no_rate_is_refused(toy):
    with pytest.raises(InputError, match="trains nothing"):
        toy(phases=(Phase(1, Rates(selector=1.0)),)).run()


@pytest.mark.parametrize("stops", [(3,), (1, 4), (10,), (13, 17), (20,)])
def test_resuming_is_bit_for_bit_over_phases(toy, terminate_after, stops):
    phases = (Phase(1, Rates(student=1e-2)), Phase(1, Rates(student=1e-2, pyramid=1e-3)))
    straight = toy("straight", phases=phases)
    expected = [p["terms"] for p in straight.run().history]
    done = 0
    for stop in stops:
        one = toy("cut", phases=phases)
        terminate_after(stop - done)
        with pytest.raises(Interrupted, match="asked to stop; saved at phase"):
            one.run()
        done = stop
    last = toy("cut", phases=phases)
    terminate_after(0)
    session = last.run()
    assert any("going on from the checkpoint" in line for line in last.said)
    assert [p["terms"] for p in session.history] == expected
    assert [p["step"] for p in session.history] == list(range(1, 21))
    for name, p in weights_of(straight).items():
        assert torch.equal(p, weights_of(last)[name]), name
    lines = (last.folder / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))


def test_speed_after_resuming_counts_this_execution_only(toy, terminate_after, monkeypatch):
    from cmapkd_core.engine import session as module

    one = toy()
    terminate_after(8)
    with pytest.raises(Interrupted):
        one.run()
    now = iter(range(1000))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(now)))
    points = toy().run().history
    assert [p["samples_per_second"] for p in points[8:]] == [4.0, 4.0]  # a step a second of four samples


def test_checkpoints_come_every_few_steps_and_at_a_phases_end(toy):
    one = toy(runtime=dataclasses.replace(toy().runtime, checkpoint_every=4))
    saved: list[int] = []
    original = one.checkpoints.write
    one.checkpoints.write = lambda snapshot: (saved.append(snapshot.step), original(snapshot))  # type: ignore
    one.run()
    assert saved == [4, 8, 10]


def test_the_total_weighs_every_term_and_misses_none():
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert weighted_total(terms, {"a": 1.0, "b": 0.5, "c": 9.0}).item() == 3.5
    with pytest.raises(KeyError, match="b"):
        weighted_total(terms, {"a": 1.0})


def shares_at(*given) -> dict[str, float]:
    return shares_of({name: float(norm) for name, norm in gradient_norms(*given).items()})


def test_gradient_shares_by_hand():
    first, second = torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)
    terms = {
        "one": 3 * first[0] + 4 * second[0],  # norm 5
        "two": 15 * second[1],  # norm 15
        "off": 100 * first.sum(),
        "none": torch.tensor(1.0),
    }
    shares = shares_at(terms, {"one": 1.0, "two": 1.0, "off": 0.0, "none": 1.0}, [first, second])
    assert shares == pytest.approx({"one": 0.25, "two": 0.75, "off": 0.0})


def through_fp16(scale: float, large: float = 1e-8) -> dict[str, float]:
    """Shares of two terms whose gradients are 3e-8 and `large` in every entry."""
    root = torch.zeros(4, requires_grad=True)
    hidden = root.half().float()
    return shares_at({"a": 3e-8 * hidden.sum(), "b": large * hidden.sum()}, {"a": 1.0, "b": 1.0}, [root], scale)


def test_shares_at_the_scalers_scale_see_what_fp16_rounds_to_zero():
    assert through_fp16(2.0**16) == pytest.approx({"a": 0.75, "b": 0.25}, rel=1e-2)


def test_a_gradient_that_overflows_leaves_no_shares():
    assert through_fp16(2.0**16, large=10.0) == {}


def test_frozen_roots_have_no_shares():
    root = torch.zeros(2)
    assert shares_at({"a": torch.ones((), requires_grad=True) * 2}, {"a": 1.0}, [root]) == {}


def test_freeze_all_but():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).requires_grad_(False)
    freeze_all_but(module, [module[1].weight])
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, False]


def test_batch_norms_over_all_ranks_keep_their_activations():
    """torch's own converter drops what timm's batch norms do after the norm."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), BatchNormAct2d(8, act_layer=nn.ReLU6), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
    alone = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4)).train()
    x = torch.randn(16, 3, 6, 6)
    alone(x)  # statistics that are not those of a new layer
    shared = share_batch_statistics(copy.deepcopy(alone)).eval()
    assert [isinstance(shared[i], nn.SyncBatchNorm) for i in (1, 3, 6)] == [True] * 3
    assert shared.state_dict().keys() == alone.state_dict().keys()
    assert torch.equal(shared(x), alone.eval()(x))


def test_batch_norms_that_an_earlier_phase_has_shared_keep_their_activations_too():
    """Every phase of a stage shares the same module's batch norms; a layer may have joined it meanwhile."""
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8, act_layer=nn.ReLU6)).train()
    x = torch.randn(16, 3, 6, 6)
    alone(x)
    shared = share_batch_statistics(copy.deepcopy(alone))
    shared.append(nn.BatchNorm2d(8))
    again = share_batch_statistics(shared).eval()
    assert torch.equal(again[:2](x), alone.eval()(x))
    assert [isinstance(again[i], nn.SyncBatchNorm) for i in (1, 2)] == [True] * 2
    assert share_batch_statistics(again[1]) is again[1]


def test_the_time_of_earlier_attempts_counts(toy, terminate_after):
    """Of a student that was trained in three pods the report gives what it took, not what the last pod took."""
    for number in (1, 2):
        cut = toy("cut")
        cut.rows.before = lambda step: time.sleep(0.05)
        terminate_after(3)
        with pytest.raises(Interrupted):
            cut.run()
        assert toy("cut").session().earlier_seconds >= number * 3 * 0.05


def test_a_scale_that_an_update_takes_over_clips_bound_is_clamped(toy):
    one = toy(phases=(Phase(1, Rates(student=1.0)),))
    one.module.log_scale = nn.Parameter(torch.tensor(4.0))
    one.module.groups = lambda phase: {"student": [one.module.log_scale]}
    one.module.forward = lambda batch, targets, phase, step: Outcome(
        {"task": -one.module.log_scale, "intra": torch.zeros(())}
    )
    one.run()
    assert one.module.log_scale.item() == torch.tensor(math.log(100)).item()
