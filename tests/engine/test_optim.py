"""Learning rates, precision, groups and their decay."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cmapkd_core.config import OptimConfig, Phase, Rates
from cmapkd_core.engine.optim import Optimiser, choose_precision, choose_teacher_precision, rate_factor, trainable
from cmapkd_core.errors import InputError

CPU = torch.device("cpu")


def test_rate_rises_linearly_then_falls_by_half_a_cosine():
    factors = [rate_factor(step, 10, 0.2) for step in range(10)]
    assert factors[:2] == [0.5, 1.0]
    assert factors[2:] == pytest.approx([0.5 * (1 + math.cos(math.pi * n / 8)) for n in range(8)])
    assert factors[2:] == sorted(factors[2:], reverse=True)


def test_rates_without_warm_up_start_at_the_peak():
    assert rate_factor(0, 100, 0.0) == 1.0
    assert rate_factor(99, 100, 0.0) < 0.001
    assert rate_factor(0, 1, 0.05) == 1.0  # a phase of one step still learns


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_factors_stay_between_zero_and_one(steps, warmup):
    assert all(0 < rate_factor(step, steps, warmup) <= 1 for step in range(steps))


def test_precision_on_a_cpu_is_full():
    assert choose_precision("auto", CPU) is None
    assert choose_precision("fp32", CPU) is None


@pytest.mark.parametrize(("generation", "expected"), [(7, torch.float16), (8, torch.bfloat16)])
def test_precision_on_a_gpu_is_what_it_has_instructions_for(monkeypatch, generation, expected):
    """A T4 (7.5) can make a bf16 tensor, and torch says that it supports the type."""
    properties = SimpleNamespace(major=generation, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert choose_precision("auto", torch.device("cuda")) is expected


@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
def test_half_precision_on_a_cpu_is_refused(wanted):
    with pytest.raises(InputError, match=rf"optim\.precision={wanted} .*use auto or fp32"):
        choose_precision(wanted, CPU)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ("fp32", "student", None),
        ("fp32", "fp16", torch.float16),
        ("fp16", "fp32", None),
        ("bf16", "student", torch.bfloat16),
        ("fp32", "auto", torch.bfloat16),
    ],
)
def test_a_teacher_has_its_students_precision_or_its_own(monkeypatch, student, teacher, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    config = OptimConfig(precision=student, teacher_precision=teacher)
    assert choose_teacher_precision(config, torch.device("cuda")) is expected


def test_a_teacher_in_half_precision_on_a_cpu_is_refused_by_its_own_name():
    with pytest.raises(InputError, match=r"optim\.teacher_precision=bf16 .*use auto or fp32"):
        choose_teacher_precision(OptimConfig(teacher_precision="bf16"), CPU)


def test_an_unknown_precision_names_the_known_ones():
    with pytest.raises(InputError, match=r"optim\.precision=fp8.*auto, fp32, bf16, fp16"):
        choose_precision("fp8", CPU)


def test_a_group_at_rate_zero_is_left_out():
    groups = {"student": [nn.Parameter(torch.ones(2))], "pyramid": [nn.Parameter(torch.ones(2))], "selector": []}
    assert list(trainable(groups, Phase(1, Rates(student=1e-3, selector=1.0)))) == ["student"]


def test_a_phase_that_trains_nothing_says_which_rates_there_are():
    groups = {"student": [nn.Parameter(torch.ones(2))], "pyramid": [nn.Parameter(torch.ones(2))]}
    with pytest.raises(InputError, match=r"trains nothing: set one of its lr\.student, lr\.pyramid above 0"):
        trainable(groups, Phase(1, Rates(selector=1.0)))


def optimiser(config: OptimConfig, steps: int = 4) -> tuple[Optimiser, nn.Linear, nn.Parameter]:
    torch.manual_seed(0)
    linear, scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(2.0))
    groups = {"student": list(linear.parameters()), "pyramid": [scale]}
    phase = Phase(1, Rates(student=1e-2, pyramid=1e-3))
    return Optimiser(groups, phase, config, steps, scaled=False), linear, scale


def test_scales_and_biases_are_not_decayed():
    made, linear, scale = optimiser(OptimConfig(weight_decay=0.5))
    decays = {id(p): row["weight_decay"] for row in made.adamw.param_groups for p in row["params"]}
    assert decays == {id(linear.weight): 0.5, id(linear.bias): 0.0, id(scale): 0.0}


def test_each_group_has_its_own_rate_on_the_same_curve():
    made, *_ = optimiser(OptimConfig(warmup=0.0))
    assert made.set_rates(0) == {"student": 1e-2, "pyramid": 1e-3}
    assert made.set_rates(3) == pytest.approx({"student": 2.5e-3, "pyramid": 2.5e-4})


@pytest.mark.parametrize("bound", [1e-3, 1e9, 0.0])
def test_the_norm_is_given_before_clipping(bound):
    made, linear, _ = optimiser(OptimConfig(clip_norm=bound))
    made.scaled(1000 * linear.weight.sum()).backward()
    assert float(made.clip()) == pytest.approx(1000 * math.sqrt(6), rel=1e-5)
    made.update()
    assert all(p.grad is None for p in linear.parameters())


def test_a_bound_of_zero_clips_nothing():
    """An update is that of a bound which no gradient reaches, bit for bit."""
    moved = []
    for bound in (0.0, 1e9):
        made, linear, _ = optimiser(OptimConfig(clip_norm=bound, weight_decay=0.0))
        before = linear.weight.detach().clone()
        made.scaled(1000 * linear.weight.square().sum()).backward()
        made.clip()
        made.update()
        # AdamW's step forgets the gradient's scale, its moment does not.
        moved.append((linear.weight.detach() - before, made.state()[0]["0.exp_avg"]))
    (step, moment), (expected_step, expected_moment) = moved
    assert torch.equal(step, expected_step)
    assert torch.equal(moment, expected_moment)
    assert (step != 0).all()


@pytest.mark.parametrize("config", [OptimConfig(), OptimConfig(weight_decay=0.0, beta1=0.0, clip_norm=0.0)])
def test_the_fused_update_is_that_of_the_plain_one(config):
    """One kernel for all parameters; torch's form without it, tensor by tensor, gives the same to fp32."""
    found = []
    for fused in (True, False):
        made, linear, scale = optimiser(config, steps=20)
        if not fused:
            rows = [{k: v for k, v in row.items() if k != "fused"} for row in made.adamw.param_groups]
            made.adamw = torch.optim.AdamW(rows, betas=(config.beta1, config.beta2), eps=1e-6, foreach=True)
        generator = torch.Generator().manual_seed(0)
        for step in range(20):
            made.set_rates(step)
            made.scaled((linear(torch.randn(4, 3, generator=generator)) * scale).square().sum()).backward()
            made.clip()
            made.update()
        moments = [x for name, x in sorted(made.state()[0].items()) if not name.endswith("step")]
        found.append([*linear.parameters(), scale, *moments])
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-8)


def test_state_survives_a_round_trip_bit_for_bit():
    made, linear, scale = optimiser(OptimConfig())
    other, linear2, scale2 = optimiser(OptimConfig())

    def step(o: Optimiser, l: nn.Linear, s: nn.Parameter) -> None:
        o.scaled((l(torch.ones(1, 3)) * s).square().sum()).backward()
        o.clip()
        o.update()

    step(made, linear, scale)
    moments, scaler = made.state()
    other.load({name: x.clone() for name, x in moments.items()}, scaler)
    linear2.load_state_dict(linear.state_dict())
    scale2.data.copy_(scale.data)
    for one in ((made, linear, scale), (other, linear2, scale2)):
        step(*one)
    assert torch.equal(linear.weight, linear2.weight)
    assert torch.equal(scale, scale2)
    assert all(torch.equal(a, b) for a, b in zip(made.state()[0].values(), other.state()[0].values(), strict=True))
