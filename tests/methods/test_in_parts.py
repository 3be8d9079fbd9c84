"""A batch that passes the towers in parts has the terms and the gradient of one that passes them at once."""

import pytest
import torch
from torch import Tensor
from waits import waits

from cmapkd_core.config import OptimConfig
from cmapkd_core.engine.finite import Buffers
from cmapkd_core.engine.loop import freeze_all_but
from cmapkd_core.engine.optim import Optimiser, trainable
from cmapkd_core.engine.passes import Made, passes_of
from cmapkd_core.engine.phase_plan import PhasePlan
from cmapkd_core.method_specs import METHODS
from cmapkd_core.methods.base import Method
from cmapkd_core.recipes import BASELINES, resolve

PAIRS = 4


@pytest.fixture
def passed(make_method, make_teacher, batch, ask):
    """`passed(row, parts, phase, overrides)`: one step's outcome, its gradient by name, and the method."""

    def run(
        row: str, parts: int, phase: str = "fine", overrides: str = "", between=dict, amp=None, scaler=None
    ) -> tuple[Made, dict, Method]:
        recipe, teacher = resolve("tiny", row, f"optim.batch={PAIRS} {overrides}"), make_teacher()
        method = make_method(recipe, teacher).train()
        method.amp = teacher.amp = amp
        rows = getattr(recipe.schedule, phase)
        groups = trainable(method.groups(rows), rows)
        freeze_all_but(method, [p for params in groups.values() for p in params])
        optim = OptimConfig(batch=PAIRS, accumulate=parts)
        plan = PhasePlan(0, phase, rows, 1, recipe.method.weights.within(rows), optim, PAIRS)
        optimiser = Optimiser(groups, rows, optim, 1, scaled=False)
        optimiser.scaler = scaler or optimiser.scaler
        known = METHODS[recipe.method.name].teacher

        def targets(part):
            return ask(teacher, part, method.active(rows)) if known else None

        torch.manual_seed(5)
        pairs = batch().part(slice(0, PAIRS))
        passes = passes_of(plan)(method, targets, plan, optimiser, Buffers(method))
        between()
        made = passes.run(pairs, 0, True, lambda: None)
        return made, {n: p.grad for n, p in method.named_parameters() if p.grad is not None}, method

    return run


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        scale = theirs[name].abs().max().item()
        assert torch.allclose(x, theirs[name], rtol=2e-4, atol=2e-5 * scale + 1e-9), name


@pytest.mark.parametrize("parts", [2, PAIRS])
@pytest.mark.parametrize("row", ["none", "no_alsn", "with_bank", "with_rd", *BASELINES])
def test_terms_gradient_and_shares_are_those_of_one_pass(passed, row, parts):
    """`none` measures utilities in this step, and two parts of one pair each have no negatives of their own."""
    (made, gradient, method), (whole, expected, at_once) = passed(row, parts), passed(row, 1)
    close(made.terms, whole.terms)
    close(made.stats, whole.stats)
    close(made.norms, whole.norms)
    close(gradient, expected)
    floats = ({n: x for n, x in m.named_buffers() if x.is_floating_point() and x.numel()} for m in (method, at_once))
    close(*floats)


@pytest.mark.parametrize("phase", ["coarse", "medium"])
@pytest.mark.parametrize("row", ["none", "fitnet", "llava_kd"])
def test_phases_that_train_a_part_of_the_student(passed, row, phase):
    (_, gradient, _), (_, expected, _) = passed(row, 2, phase), passed(row, 1, phase)
    close(gradient, expected)


def test_towers_that_are_frozen(passed):
    (_, gradient, _), (_, expected, _) = (
        passed("none", parts, "fine", "schedule.fine.lr.student=0") for parts in (2, 1)
    )
    assert not any(name.startswith("student.") for name in gradient)
    close(gradient, expected)


def test_some_pairs_are_measured_across_parts(passed):
    """Three of four pairs: a part, and one pair of the next."""
    fields = "selector.measured=0.75"
    (_, _, method), (_, _, expected) = passed("none", 2, "fine", fields), passed("none", 1, "fine", fields)
    assert method.memory.held() == expected.memory.held() == 3
    close(*(dict(m.memory.named_buffers()) for m in (method, expected)))


@pytest.mark.parametrize("row", ["none", "clip_kd"])
def test_towers_in_half_precision(passed, row):
    """bf16 rounds to three digits, so a gradient is compared as a whole."""
    (_, gradient, _), (_, expected, _) = (passed(row, parts, amp=torch.bfloat16) for parts in (2, 1))
    assert gradient.keys() == expected.keys()
    assert all(g.dtype is torch.float32 for g in gradient.values())
    ours, theirs = (torch.cat([x.flatten() for x in table.values()]) for table in (gradient, expected))
    assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_the_loss_scale_of_fp16_is_in_the_gradient_once(passed):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    (made, gradient, _), (whole, expected, _) = passed("none", 2, scaler=scaler), passed("none", 1)
    close(gradient, {name: 1024 * x for name, x in expected.items()})
    close(made.norms, {name: 1024 * x for name, x in whole.norms.items()})


def test_a_part_alone_would_have_another_gradient(passed, make_method, make_teacher, batch):
    """What parts were before: batches of their own."""
    _, expected, _ = passed("finetune", 1)
    recipe = resolve("tiny", "finetune", f"optim.batch={PAIRS}")
    method, pairs = make_method(recipe, make_teacher()).train(), batch()
    for part in (slice(0, 2), slice(2, 4)):
        (method(pairs.part(part), None, recipe.schedule.fine, 0).terms["task"] / 2).backward()
    name = "student.model.visual.conv1.weight"
    apart = (dict(method.named_parameters())[name].grad - expected[name]).norm() / expected[name].norm()
    assert apart > 0.1


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("row", ["none", "reversed_alsn", "random_alsn", "with_bank", "with_rd", *BASELINES])
def test_neither_way_waits_for_the_device(passed, row, parts):
    """Terms, gradient, utilities and shares: what the host learns of them it learns at the step's end."""
    with waits() as since:
        passed(row, parts, between=since)
        found = since()
    assert found == {}
