"""ALSN learns what was measured: memory between measurements, the stage's fit, what resumes."""

import math

import pytest
import torch

from cmapkd_core.config import ALL_LEVELS, SelectorConfig
from cmapkd_core.engine.finite import Buffers
from cmapkd_core.losses.policy import utilities
from cmapkd_core.methods.policy_fit import PolicyFit, PolicyMemory, policy_loss
from cmapkd_core.models.selector import ALSN, FixedSelector
from cmapkd_core.recipes import resolve

CONFIG = SelectorConfig()


def samples(n: int, width: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = {"teacher_image": torch.randn(n, width, generator=generator)}
    rows["teacher_text"] = torch.randn(n, width, generator=generator)
    rows = {name: torch.nn.functional.normalize(x, dim=-1) for name, x in rows.items()}
    return rows | {"u": torch.rand(n, 8, generator=generator) * 2 - 1, "d": torch.rand(n, 8, generator=generator)}


def test_the_loss_of_uniform_weights_against_even_utilities_is_zero():
    fixed = FixedSelector(8, 8, CONFIG)
    rows = samples(4)
    loss = policy_loss(fixed, rows | {"u": torch.full((4, 8), 0.3)}, ALL_LEVELS, CONFIG)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_target_is_the_softmax_of_the_utilities():
    fixed, rows = FixedSelector(8, 8, CONFIG), samples(1)
    u = torch.tensor([[0.1 * math.log(2), 0.0, 0.0, 0.0] * 2])  # tau_u = 0.1: twice the weight of the others
    q = torch.tensor([2.0, 1, 1, 1]) / 5
    expected = 2 * float((q * (q / 0.25).log()).sum())
    loss = policy_loss(fixed, rows | {"u": u}, ALL_LEVELS, CONFIG)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_papers_objective_prefers_the_easiest_level():
    config, alsn, rows = SelectorConfig(objective="seed"), FixedSelector(8, 8, CONFIG), samples(1)
    d = torch.tensor([[0.1, 0.2, 0.3, 0.4] * 2])
    expected = 2 * (0.25 - 0.1 * math.log(4))  # sum_i w_i d_i - 0.1 H(w) of uniform weights, two modalities
    assert policy_loss(alsn, rows | {"d": d}, ALL_LEVELS, config).item() == pytest.approx(expected, rel=1e-5)


def test_memory_is_empty_until_something_was_measured():
    torch.manual_seed(0)
    memory, alsn, rows = PolicyMemory(4, 8), ALSN(8, 8, CONFIG).eval(), samples(4)
    assert memory.loss(alsn, ALL_LEVELS, CONFIG).item() == 0
    memory.keep(rows)
    expected = policy_loss(alsn, rows, ALL_LEVELS, CONFIG)
    assert memory.loss(alsn, ALL_LEVELS, CONFIG).item() == pytest.approx(expected.item())
    other = PolicyMemory(4, 8)
    other.load_state_dict(memory.state_dict())  # a resumed run remembers the same samples
    assert other.loss(alsn, ALL_LEVELS, CONFIG).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("row", ["none", "promptkd"])
def test_what_a_skipped_update_remembered_is_forgotten(make_method, make_teacher, batch, ask, row):
    """How much is held is known without asking the buffers, which go back to what they were."""
    recipe, teacher, pairs = resolve("tiny", row, "optim.batch=5"), make_teacher(), batch()
    method, phase = make_method(recipe, teacher).train(), recipe.schedule.fine
    buffers, holder = Buffers(method), method.memory if row == "none" else method
    method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0)
    assert holder.held() == 5
    buffers.restore()
    assert holder.held() == 0


def test_utilities_are_measured_every_few_steps_of_a_selecting_phase(make_method, make_teacher, batch, ask):
    recipe = resolve("tiny", overrides="optim.batch=5 selector.every=3")
    teacher, pairs, phase = make_teacher(), batch(), recipe.schedule.fine
    method = make_method(recipe, teacher).train()

    def measured(step: int, phase=phase) -> bool:
        method.memory.filled.zero_()
        method(pairs, ask(teacher, pairs, method.active(phase)), phase, step)
        return bool(method.memory.filled)

    assert [measured(step) for step in range(5)] == [True, False, False, True, False]
    assert not measured(0, recipe.schedule.medium)
    method.eval()
    assert not measured(0)


def test_utilities_in_memory_are_those_of_the_batch(make_method, make_teacher, batch, ask):
    recipe = resolve("tiny", overrides="optim.batch=5")
    teacher, pairs, phase = make_teacher(), batch(), recipe.schedule.fine
    method = make_method(recipe, teacher).train()
    said = ask(teacher, pairs, method.active(phase))
    method(pairs, said, phase, 0)
    rows = method.statistics(pairs, said)
    assert torch.allclose(method.memory.u, rows["u"], atol=1e-4)
    assert torch.allclose(method.memory.d, rows["d"], atol=1e-6)
    assert torch.equal(method.memory.teacher_image, said.image)


@pytest.mark.parametrize("toward", ["task", "fd,icl", "kd,task"])
def test_of_some_pairs_the_utilities_are_those_that_they_have_in_the_batch(
    make_method, make_teacher, batch, ask, toward
):
    weights = " ".join(f"method.weights.{term}=1" for term in toward.split(","))
    fields = f"optim.batch=5 selector.toward={toward} {weights} selector.measured"
    teacher, pairs, found = make_teacher(), batch(), {}
    for share in (1.0, 0.4):
        recipe = resolve("tiny", overrides=f"{fields}={share}")
        method = make_method(recipe, teacher).train()
        phase = recipe.schedule.fine
        method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0)
        found[share] = method.memory
        assert all(module.training for module in method.modules())
    assert (found[1.0].held(), found[0.4].held()) == (5, 2)
    for name in ("u", "d", "teacher_image", "teacher_text"):
        whole, some = (found[share].get_buffer(name)[:2] for share in (1.0, 0.4))
        assert torch.allclose(some, whole, atol=1e-4), name
        assert whole.abs().sum() > 0


def test_the_memory_keeps_the_samples_that_were_measured_last():
    memory, alsn = PolicyMemory(4, 8), ALSN(8, 8, CONFIG).eval()
    parts = [{name: x[n : n + 3] for name, x in samples(9).items()} for n in (0, 3)]
    memory.keep(parts[0])
    first = policy_loss(alsn, parts[0], ALL_LEVELS, CONFIG).item()
    assert memory.loss(alsn, ALL_LEVELS, CONFIG).item() == pytest.approx(first)  # of three samples, not of four
    other = PolicyMemory(4, 8)
    assert other.held() == 0
    other.load_state_dict(memory.state_dict())
    assert other.held() == 3
    memory.keep(parts[1])
    assert memory.held() == 4
    assert torch.equal(memory.u, torch.cat((parts[1]["u"], parts[0]["u"][:1])))


@pytest.mark.parametrize("toward", [("task",), ("fd",), ("task", "fd")])
def test_utilities_are_measured_against_the_weighted_terms_that_are_named(
    make_method, make_teacher, batch, ask, toward
):
    weights = {"task": 0.5, "fd": 4.0}
    fields = " ".join(f"method.weights.{term}={weight}" for term, weight in weights.items())
    recipe = resolve("tiny", overrides=f"optim.batch=5 {fields} selector.toward={','.join(toward)}")
    teacher, pairs, phase = make_teacher(), batch(), recipe.schedule.coarse  # P5 and L4 alone: intra is their distance
    method = make_method(recipe, teacher).eval()
    outcome = method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0)
    goal = sum(weights[term] * outcome.terms[term] for term in toward)
    said = ask(teacher, pairs, method.active(recipe.schedule.fine))
    found = method.statistics(pairs, said)["u"]
    for root, column in zip(outcome.roots, (3, 7), strict=True):
        pull, aim = (torch.autograd.grad(x, root, retain_graph=True)[0] for x in (outcome.terms["intra"], goal))
        expected = torch.cosine_similarity(pull.flatten(1), aim.flatten(1), dim=1, eps=1e-20)
        assert torch.allclose(found[:, column], expected, atol=1e-4)


def test_the_alsn_stage_learns_the_levels_of_use():
    torch.manual_seed(0)
    rows = samples(32)
    rows["u"] = torch.zeros(32, 8)
    rows["u"][:, 1] = 0.5  # P3 helps every sample; L4 only those of the second half
    rows["u"][16:, 7] = 0.5
    fit = PolicyFit(ALSN(8, 8, CONFIG), CONFIG, ALL_LEVELS)
    phase = resolve("tiny").schedule.alsn
    optimiser = torch.optim.AdamW(fit.groups(phase)["selector"], lr=1e-2)
    for step in range(60):
        outcome = fit(rows, None, phase, step)
        optimiser.zero_grad()
        outcome.terms["policy"].backward()
        optimiser.step()
    w_v, w_l = fit.eval().selector(rows["teacher_image"], rows["teacher_text"], ALL_LEVELS)
    assert (w_v.argmax(1) == 1).all()
    assert w_l[16:, 3].mean() > w_l[:16, 3].mean() + 0.3
    assert set(outcome.terms) == {"policy"}
    assert 0 < float(outcome.stats["entropy/vision"]) < math.log(4)


def test_frozen_towers_make_no_level_useful():
    distance = torch.rand(3, 4, requires_grad=True)
    assert torch.equal(utilities(distance, distance.sum(), torch.rand(3, 5)), torch.zeros(3, 4))
