"""Updates that would poison a stage are skipped, counted, named; above the bound it stops and what is saved is good."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from cmapkd_core.config import OptimConfig, Phase, Rates
from cmapkd_core.engine.checkpoint import NotFinite, Snapshot
from cmapkd_core.engine.finite import not_finite
from cmapkd_core.engine.optim import Optimiser
from cmapkd_core.engine.watch import Watch
from cmapkd_core.errors import Diverged, Interrupted

OPTIM = OptimConfig(batch=4, warmup=0.0)
BOTH = (Phase(3, Rates(student=1e-2, pyramid=1e-2)),)  # 30 updates
FAULTS = {"nan": math.nan, "inf": math.inf, "spike": 100.0}


def factor(kind: str) -> float:
    return FAULTS[kind]


@pytest.fixture
def make(toy):
    """`make(name, max_skipped=..)`: a toy of 30 updates with a checkpoint after each fifth."""

    def build(name: str = "toy", every: int = 5, phases=BOTH, **optim):
        runtime = dataclasses.replace(toy().runtime, checkpoint_every=every)
        return toy(name, phases=phases, optim=dataclasses.replace(OPTIM, **optim), runtime=runtime)

    return build


def in_gradient(one, value: float, *steps: int) -> None:
    """The gradient of one parameter is multiplied by `value` at these steps; the loss stays what it is."""
    now = [-1]
    before = one.rows.before
    one.rows.before = lambda step: (before(step), now.__setitem__(0, step))
    one.module.weight.register_hook(
        lambda grad: grad * value * (20 if value == 100 else 1) if now[0] in steps else grad
    )


def in_loss(one, value: float, *steps: int) -> None:
    before, clean = one.rows.before, one.rows.y.clone()

    def change(step: int) -> None:
        before(step)
        one.rows.y = torch.full_like(clean, 1000.0 if value == 100 else value) if step in steps else clean

    one.rows.before = change


def in_weights(one, value: float, step: int) -> None:
    """A cell flips before `step` and stays wrong."""
    before = one.rows.before

    def flip(now: int) -> None:
        before(now)
        if now == step:
            with torch.no_grad():
                one.module.weight[0, 0].mul_(value * (100 if value == 100 else 1))

    one.rows.before = flip


def tensors(one) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in one.module.state_dict().items()}


def watched(one, saved: dict[int, dict[str, torch.Tensor]]) -> None:
    """`saved[n]`: the weights that step n begins with."""
    before = one.rows.before
    one.rows.before = lambda step: (before(step), saved.__setitem__(step, tensors(one)))


@pytest.mark.parametrize("step", [13, 29])  # in the middle, and the last update
@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("fault", [in_gradient, in_loss])
def test_one_bad_update_is_skipped_counted_and_named(make, fault, kind, step):
    one, seen = make(), {}
    fault(one, factor(kind), step)
    watched(one, seen)
    session = one.run()
    seen[30] = tensors(one)
    assert all(torch.equal(x, seen[step + 1][name]) for name, x in seen[step].items())
    assert any(not torch.equal(x, seen[step - 1][name]) for name, x in seen[step].items())
    (row,) = session.watch.memory.skipped
    assert (row["phase"], row["phase_step"], row["step"]) == ("phase0", step + 1, step + 1)
    assert session.watch.metrics()["skipped_updates"] == 1
    assert not not_finite(tensors(one))
    lines = [line for line in one.said if "update skipped (1 of at most 20)" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"toy phase0: step {step + 1}: ")
    journal = [json.loads(line) for line in (one.folder / "journal.jsonl").read_text().splitlines()]
    assert [p["step"] for p in journal if "skipped_updates" in p["metrics"]] == [step + 1]
    json.dumps([session.history, session.watch.memory.skipped], allow_nan=False)


@pytest.mark.parametrize(
    ("fault", "value", "why"),
    [
        (in_gradient, math.nan, r"the norm of the gradient is nan on"),
        (in_gradient, math.inf, r"the norm of the gradient is inf on"),
        (in_gradient, 100.0, r"the norm of the gradient, .*, is \d+ times its running median"),
        (in_loss, math.nan, r"task of the loss is not finite on"),
    ],
)
def test_why_is_said(make, fault, value, why):
    one = make(max_skipped=0)
    fault(one, value, 13)
    with pytest.raises(Diverged, match=why):
        one.run()


def test_the_samples_are_named():
    watch = Watch()
    watch.see({"task": 1.0, "kd": math.nan}, math.nan, [f"k{i}" for i in range(12)])
    row = watch.skip(watch.judge(1.0, OPTIM, lambda: 1.0), "fine", 6, 16)
    assert row["why"] == "kd of the loss is not finite"
    assert row["keys"] == [f"k{i}" for i in range(12)]
    assert (row["step"], row["phase_step"], row["loss"]) == (16, 6, "nan")
    watch.done()
    watch.see({"task": 1.0}, 1.0, ["a", "b"])
    assert watch.skip(watch.judge(math.inf, OPTIM, lambda: 1.0), "fine", 7, 17)["keys"] == ["a", "b"]


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("fault", [in_gradient, in_loss])
def test_above_the_bound_it_stops_and_the_last_good_checkpoint_goes_on(make, fault, kind):
    straight = make("straight", max_skipped=2)
    straight.run()
    one = make(max_skipped=2)
    fault(one, factor(kind), 13, 14, 15, 16)
    says = (
        r"toy, phase phase0, step 16: 3 updates were skipped, more than optim\.max_skipped=2 \(steps phase0 14, phase0 "
        r"15, phase0 16\); the last: .* The same command goes on from the last good checkpoint, phase phase0, step 10\."
    )
    with pytest.raises(Diverged, match=says):
        one.run()
    again = make(max_skipped=2)  # what went wrong was the machine
    session = again.run()
    assert "toy: going on from the checkpoint at phase phase0, step 10\n" in again.said
    assert session.watch.memory.skipped == []
    assert all(torch.equal(x, tensors(again)[name]) for name, x in tensors(straight).items())


def test_a_larger_bound_leads_on(make):
    one = make(max_skipped=4)
    in_loss(one, math.nan, 13, 14, 15, 16)
    assert len(one.run().watch.memory.skipped) == 4


@pytest.mark.parametrize("kind", FAULTS)
def test_weights_that_are_wrong_reach_no_checkpoint(make, kind):
    """The flip is at step 43 of 50: the updates from there on are skipped, and the checkpoint of 45 is not made."""
    phases = (Phase(5, Rates(student=1e-2, pyramid=1e-2)),)
    straight = make("straight", phases=phases, max_skipped=3)
    straight.run()
    one = make(phases=phases, max_skipped=3)
    in_weights(one, factor(kind), 43)
    with pytest.raises(Diverged, match="step 47: 4 updates .* the last good checkpoint, phase phase0, step 40"):
        one.run()
    again = make(phases=phases, max_skipped=3)
    again.run()
    assert "toy: going on from the checkpoint at phase phase0, step 40\n" in again.said
    assert all(torch.equal(x, tensors(again)[name]) for name, x in tensors(straight).items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("last", [15, 30])
def test_what_an_update_makes_of_the_weights_is_not_saved(make, monkeypatch, value, last):
    """No gradient told of it: the snapshot does."""
    one, done, update = make(), [0], Optimiser.update

    def poisoned(self: Optimiser, taken: bool = True) -> None:
        update(self, taken)
        done[0] += 1
        if done[0] == last:
            one.module.spare.data[1] = value

    monkeypatch.setattr(Optimiser, "update", poisoned)
    good = last - 5
    with pytest.raises(
        Diverged, match=rf"spare of weights\.safetensors after step {last}\. .*phase0, step {good}\. If"
    ):
        one.run()
    assert one.checkpoints.latest().step == good


def test_moments_are_looked_at_too(make):
    one = make()
    snapshot = Snapshot.take(0, 5, {"optimiser.safetensors": {"0.exp_avg_sq": torch.tensor([1.0, math.inf])}}, {})
    with pytest.raises(NotFinite, match=r"0\.exp_avg_sq of optimiser\.safetensors after step 5"):
        one.checkpoints.write(snapshot)
    assert one.checkpoints.names() == []


def test_a_poisoned_checkpoint_of_earlier_code_is_passed_over(make, monkeypatch, caplog):
    one = make()
    one.run()
    (newest, *_) = one.checkpoints.names()
    saved = one.checkpoints.load(newest)
    saved.tensors["weights.safetensors"]["bias"].fill_(math.nan)
    with monkeypatch.context() as patch:
        patch.setattr("cmapkd_core.engine.checkpoint.not_finite", lambda named: [])
        one.checkpoints.write(Snapshot.take(0, 31, saved.tensors, saved.state))
    assert make().checkpoints.latest().step == 30
    assert "has values that are not finite (bias of weights.safetensors): trying the one before" in caplog.text


@pytest.mark.parametrize("stops", [(12,), (13,), (14,), (17,), (14, 16, 20)])
def test_a_run_with_skipped_updates_resumes_bit_for_bit(make, terminate_after, stops):
    def faulty(name: str):
        one = make(name, every=100)
        in_gradient(one, 100.0, 13, 15)
        in_loss(one, math.nan, 8, 16)
        return one

    straight = faulty("straight")
    expected = straight.run()
    done = 0
    for stop in stops:
        cut = faulty("cut")
        terminate_after(stop - done)
        with pytest.raises(Interrupted) as stopped:
            cut.run()
        # Weights that led to a skipped update are not saved: the attempt goes on from where it had begun.
        skipped = {9, 14, 16, 17} & {stop}
        assert ("is not saved" in str(stopped.value)) == bool(skipped)
        done = done if skipped else stop
    last = faulty("cut")
    terminate_after(0)
    session = last.run()
    assert session.watch.memory.skipped == expected.watch.memory.skipped
    assert [row["phase_step"] for row in expected.watch.memory.skipped] == [9, 14, 16, 17]
    assert [p["terms"] for p in session.history] == [p["terms"] for p in expected.history]
    assert session.watch.state() == expected.watch.state()
    assert all(torch.equal(x, tensors(last)[name]) for name, x in tensors(straight).items())


def test_a_phase_of_which_most_updates_are_skipped_is_no_training(make):
    one = make(phases=(Phase(1, Rates(student=1e-2)),))
    in_gradient(one, math.nan, *range(3, 10))
    with pytest.raises(Diverged, match=r"step 9: 6 updates were skipped, more than half of the phase's 10"):
        one.run()


def test_a_batch_in_parts_is_skipped_as_a_whole(make):
    one, seen = make(accumulate=2), {}
    clean = one.rows.y.clone()

    def change(step: int) -> None:
        one.rows.y = clean.clone()
        if step == 12:
            one.rows.y[2, 3] = math.inf  # of the second part alone

    one.rows.before = change
    watched(one, seen)
    (row,) = one.run().watch.memory.skipped
    assert row["phase_step"] == 13
    assert all(torch.equal(x, seen[13][name]) for name, x in seen[12].items())
    assert any(not torch.equal(x, seen[14][name]) for name, x in seen[13].items())


class Normed(nn.Module):
    """A batch norm has buffers, which a forward changes before anyone knows its gradient."""

    def __init__(self, line: nn.Module) -> None:
        super().__init__()
        self.line, self.norm, self.amp = line, nn.BatchNorm1d(2), None

    def groups(self, phase):
        return self.line.groups(phase)

    def forward(self, batch, *given):
        return self.line({"x": self.norm(batch["x"]), "y": batch["y"]}, *given)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_skipped_update_leaves_nothing_in_the_buffers(make, value):
    one, seen = make(), {}
    one.module = Normed(one.module)
    clean = one.rows.x.clone()
    one.rows.before = lambda step: setattr(one.rows, "x", clean * (value if step == 13 else 1))
    watched(one, seen)
    assert len(one.run().watch.memory.skipped) == 1
    assert torch.equal(seen[13]["norm.running_var"], seen[14]["norm.running_var"])
    assert not torch.equal(seen[14]["norm.running_var"], seen[15]["norm.running_var"])
    assert not not_finite(tensors(one))


def judged(watch: Watch, norms: list[float], scale: float = 1.0, **optim: float) -> list[bool]:
    """Which of these updates are taken."""
    config = dataclasses.replace(OPTIM, **optim)
    return [not watch.judge(norm, config, lambda: scale).why for norm in norms]


def test_fp16_looks_for_its_scale_and_its_overflows_are_no_faults():
    watch = Watch()
    assert judged(watch, [math.inf] * 3, scale=2.0**16) == [True] * 3
    assert watch.metrics() == {"skipped_updates": 0, "loss_spikes": 0, "overflows": 3}
    assert judged(watch, [math.nan], scale=1.0) == [False]  # no smaller scale mends that


def test_a_norm_is_a_spike_against_the_median_above_clip_norm():
    assert judged(Watch(), [1.0, 1.0, 1.0, 60.0]) == [True] * 4  # too early to tell
    assert judged(Watch(), [1.0, 1.2, 0.8, 1.0, 49.0, 51.0]) == [True] * 5 + [False]
    assert judged(Watch(), [0.01] * 4 + [0.9, 1.1]) == [True] * 5 + [False]  # clipping changes nothing below 1
    assert judged(Watch(), [0.01] * 4 + [0.9], clip_norm=0.0) == [True] * 4 + [False]
    assert judged(Watch(), [1.0] * 4 + [1e6], gradient_spike=0.0) == [True] * 5


def test_norms_that_stay_where_they_spiked_to_are_the_new_usual():
    assert judged(Watch(), [1.0] * 4 + [100.0] * 5) == [True] * 4 + [False] * 4 + [True]


def loss_spikes(losses: list[float], factor: float = 3.0) -> list[int]:
    watch = Watch()
    return [i for i, loss in enumerate(losses) if watch.loss_spike(loss, factor, i)]


def test_a_loss_that_leaves_its_median_is_reported_once():
    assert loss_spikes([1.0] * 20 + [2.9, 3.1, 3.2, 3.3, 1.0, 4.0]) == [21, 25]
    assert loss_spikes([-1.0] * 20 + [0.9, 1.1]) == [21]  # an entropy's bonus may exceed the rest
    assert loss_spikes([1.0] * 20 + [math.nan, 100.0], factor=0.0) == []


def test_a_loss_that_diverges_is_said_with_its_step_and_goes_on(make):
    one = make(phases=(Phase(3, Rates(student=1e-9)),), gradient_spike=0.0, loss_spike=30.0)
    in_loss(one, 100.0, 25)
    session = one.run()
    (line,) = [line for line in one.said if "times its median" in line]
    assert line.startswith("toy phase0: step 26: loss ")
    assert session.watch.metrics()["loss_spikes"] == 1
    assert session.watch.memory.skipped == []


def test_losses_that_jump_again_and_again_are_said_three_times_and_counted(make):
    one = make(phases=(Phase(4, Rates(student=1e-9)),), gradient_spike=0.0, loss_spike=30.0)
    in_loss(one, 100.0, 25, 27, 29, 31, 33)
    session = one.run()
    lines = [line for line in one.said if "times its median" in line]
    assert len(lines) == 3
    assert [line.endswith("only counted, as the metric loss_spikes\n") for line in lines] == [False, False, True]
    assert session.watch.metrics()["loss_spikes"] == 5


def test_a_loss_that_stays_high_is_a_divergence_where_that_may_go_back(make):
    one = make(phases=(Phase(3, Rates(student=1e-9)),), gradient_spike=0.0, loss_spike=30.0, rollbacks=1)
    in_loss(one, 100.0, 23, 24, 25)
    with pytest.raises(Diverged, match=r"step 26: the loss stays above 30 times .* phase phase0, step 20\. If"):
        one.run()


def test_a_checkpoint_made_before_there_was_a_watch_is_gone_on_from(make, monkeypatch):
    one = make()
    one.run()
    saved = one.checkpoints.latest()
    del saved.state["watch"], saved.state["rolled"]
    one.checkpoints.write(Snapshot.take(0, 30, saved.tensors, saved.state))
    found = make().session()
    assert (found.rollbacks, found.watch.metrics()["skipped_updates"]) == (0, 0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_not_finite_is_found_in_every_type_and_shape(kind):
    whole = {"n": torch.tensor(3), "empty": torch.zeros(0, dtype=kind), "one": torch.ones((), dtype=kind)}
    assert not_finite(whole | {"large": torch.full((3, 2), torch.finfo(kind).max, dtype=kind)}) == []
    for value in (math.nan, math.inf, -math.inf):
        bad = torch.ones(3, 4, dtype=kind)
        bad[2, 3] = value
        assert not_finite(whole | {"bad": bad}) == ["bad"]
