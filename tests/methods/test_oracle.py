"""The oracle's scores are the derivatives that they are said to be, and its weights follow from them alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.engine.optim import Optimiser
from cmapkd_core.losses.streamed import info_nce
from cmapkd_core.methods.base import Rows
from cmapkd_core.methods.cmapkd import Cmapkd
from cmapkd_core.methods.oracle import slopes, toward_lower_loss
from cmapkd_core.recipes import resolve

RECIPE = resolve("tiny", "oracle_alsn", "optim.batch=5")


@pytest.fixture
def looked(make_method, make_teacher, batch, ask) -> Callable[..., tuple[Cmapkd, Rows]]:
    """A method whose selector has validation pairs, and the rows of a batch."""

    def make() -> tuple[Cmapkd, Rows]:
        teacher, pairs = make_teacher(), batch()
        method = make_method(RECIPE, teacher).train()
        return method, method.represent(pairs, ask(teacher, pairs, ALL_LEVELS), RECIPE.schedule.fine)

    return make


def plain(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
    return gradient


def test_slopes_are_the_gradients_along_the_direction(looked):
    method, rows = looked()
    method.eval()
    direction = toward_lower_loss(method, rows.given[0][0], plain)
    found = slopes(method, rows, direction, ALL_LEVELS)
    student = dict(method.student.named_parameters())
    d = method.distances(*rows.given[0], ALL_LEVELS)
    for pair, level in ((0, 0), (1, 3), (2, 4), (4, 7)):
        grads = torch.autograd.grad(
            d[pair, level], [student[n] for n in direction], retain_graph=True, allow_unused=True
        )
        exact = sum(float((g * v).sum()) for g, v in zip(grads, direction.values(), strict=True) if g is not None)
        assert found[pair, level].item() == pytest.approx(exact, rel=0.02, abs=1e-5)
    assert (found != 0).all()


def test_the_direction_is_the_gradient_of_the_task_on_the_validation_pairs(looked):
    method, rows = looked()
    method.eval()
    pairs = rows.given[0][0]
    vision, text = method.towers(pairs)
    loss = info_nce(method.logits(vision.embedding, text.embedding))
    direction = toward_lower_loss(method, pairs, plain)
    loss.backward()
    for name, p in method.student.named_parameters():
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(direction.get(name, torch.zeros_like(p)), expected)


def test_the_level_whose_step_helps_most_weighs_most(looked):
    method, rows = looked()
    method.selector.look(method, rows, 0, ALL_LEVELS)
    method.eval()
    s = slopes(method, rows, toward_lower_loss(method, rows.given[0][0], plain), ALL_LEVELS)
    weights = method.selector.choose(rows.teacher["image"], rows.teacher["text"], ALL_LEVELS)
    for w, own in zip(weights, s.split(4, dim=1), strict=True):
        assert torch.equal(w.argsort(1), own.argsort(1))
        z = (own - own.mean(1, keepdim=True)) / (own - own.mean(1, keepdim=True)).square().mean().sqrt()
        torch.testing.assert_close(w, z.softmax(1), rtol=1e-3, atol=1e-4)


def test_a_look_changes_nothing(looked):
    method, rows = looked()
    before = {name: x.clone() for name, x in method.state_dict().items()}
    modes, stream = [module.training for module in method.modules()], torch.get_rng_state()
    method.selector.look(method, rows, 0, ALL_LEVELS)
    assert all(torch.equal(x, before[name]) for name, x in method.state_dict().items())
    assert [module.training for module in method.modules()] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(p.grad is None for p in method.parameters())


def test_a_student_that_stands_still_has_equal_weights(looked):
    method, rows = looked()
    method.student.requires_grad_(False)
    method.selector.look(method, rows, 0, ALL_LEVELS)
    for w in method.selector.choose(rows.teacher["image"], rows.teacher["text"], ALL_LEVELS):
        torch.testing.assert_close(w, torch.full((5, 4), 0.25))


def test_a_selector_without_pairs_says_who_gives_them(looked):
    method, rows = looked()
    method.selector.pairs = None
    with pytest.raises(AssertionError, match="stage joint gives the pairs"):
        method.selector.look(method, rows, 0, ALL_LEVELS)


def stepped(parameter: torch.nn.Parameter, gradients: list[Any], rate: float = 1.0) -> tuple[Optimiser, torch.Tensor]:
    """AdamW without momentum and decay after all but the last gradient, and what the last one then takes off."""
    config = resolve("tiny", overrides="optim.beta1=0 optim.weight_decay=0").optim
    optimiser = Optimiser({"student": [parameter]}, RECIPE.schedule.fine, config, 10, scaled=False)
    for row in optimiser.adamw.param_groups:
        row["lr"] = rate
    for gradient in gradients[:-1]:
        parameter.grad = torch.tensor(gradient)
        optimiser.adamw.step()
    before = parameter.detach().clone()
    asked = optimiser.as_step(parameter, torch.tensor(gradients[-1]))
    parameter.grad = torch.tensor(gradients[-1])
    optimiser.adamw.step()
    torch.testing.assert_close(before - parameter.detach(), asked)
    return optimiser, asked


def test_as_step_is_what_adamw_takes_without_momentum():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    stepped(parameter, [[0.5, -1.0, 0.0], [0.1, 2.0, 0.3], [-0.2, 1e-3, 4.0]])
    first = stepped(torch.nn.Parameter(torch.zeros(2)), [[0.3, -5.0]])[1]
    assert first.tolist() == pytest.approx([1, -1], rel=1e-4)
