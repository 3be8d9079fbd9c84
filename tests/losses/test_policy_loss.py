"""Utilities of levels, and the loss by which the selector learns them."""

import math

import pytest
import torch

from cmapkd_core.losses.policy import entropy, policy, utilities


def test_utility_is_the_cosine_of_the_two_pulls():
    root = torch.zeros(2, 3, requires_grad=True)
    toward = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])  # the task's gradient per sample
    with_it, against_it, across = toward, -5 * toward, torch.tensor([[0.0, 0.0, 4.0], [0.0, 0.0, 1.0]])
    distance = torch.stack([(root * pull).sum(1) for pull in (with_it, against_it, across)], dim=1)
    u = utilities(distance, (root * toward).sum(), root)
    assert u.flatten().tolist() == pytest.approx([1, -1, 0] * 2, abs=1e-6)


def test_utility_against_finite_differences():
    torch.manual_seed(0)
    root = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    a, b = torch.randn(2, 4, 4, dtype=torch.float64)

    def level(x: torch.Tensor) -> torch.Tensor:
        return (x @ a).tanh().square().sum(1)

    def task(x: torch.Tensor) -> torch.Tensor:
        return (x @ b).logsumexp(1).sum() + x.mean(0).square().sum()  # one sample's gradient depends on the others

    def numeric(f) -> torch.Tensor:
        gradient, step = torch.zeros_like(root), 1e-6
        for i in range(root.numel()):
            shift = torch.zeros_like(root).view(-1).index_fill(0, torch.tensor(i), step).view_as(root)
            gradient.view(-1)[i] = (f(root + shift) - f(root - shift)).detach() / (2 * step)
        return gradient

    expected = torch.cosine_similarity(numeric(lambda x: level(x).sum()), numeric(task), dim=1)
    found = utilities(level(root).unsqueeze(1), task(root), root)[:, 0]
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_a_level_without_a_graph_has_utility_zero():
    root = torch.ones(2, 3, requires_grad=True)
    distance = torch.stack((root.sum(1), torch.zeros(2)), dim=1)
    assert utilities(distance, root.square().sum(), root)[:, 1].tolist() == [0.0, 0.0]


def test_tiny_gradients_keep_their_direction():
    """Gradients of a mean over a large batch are far below cosine_similarity's usual epsilon."""
    root = torch.ones(2, 3, requires_grad=True)
    u = utilities((1e-9 * root.sum(1)).unsqueeze(1), 1e-9 * root.sum(), root)
    assert u.flatten().tolist() == pytest.approx([1.0, 1.0], abs=1e-4)


def small_and_large(dtype: torch.dtype, goal: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distances, a goal of gradient about `goal` and their root, with a step in `dtype` between them."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 16, generator=generator).requires_grad_(True)
    a, b = torch.randn(2, 16, 4, generator=generator)
    hidden = root.to(dtype).float()
    return (hidden @ a).tanh(), goal * (hidden @ b).square().sum(), root


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scale_changes_no_bit_of_a_type_with_enough_range(dtype):
    distance, goal, root = small_and_large(dtype, 1e-9)
    assert torch.equal(utilities(distance, goal, root, 2.0**16), utilities(distance, goal, root))


def test_the_scale_saves_gradients_that_fp16_rounds_to_zero():
    exact, found = (utilities(*small_and_large(dtype, 1e-9), 2.0**16) for dtype in (torch.float32, torch.float16))
    assert (found - exact).abs().max() < 0.01


def test_a_gradient_that_overflows_is_not_taken_for_a_utility():
    assert not utilities(*small_and_large(torch.float16, 1e3), 2.0**16).isfinite().any()


def test_policy_by_hand():
    w, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.8, 0.1, 0.1]])
    towards = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    spread = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    assert policy(w, q, 0.0).item() == pytest.approx(towards, rel=1e-5)
    assert policy(w, q, 0.1).item() == pytest.approx(towards + 0.1 * spread, rel=1e-5)


def test_policy_counts_active_levels_only():
    two = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    four = tuple(torch.cat((torch.zeros(1, 2), x), dim=1) for x in two)
    assert policy(*four, 0.3).item() == pytest.approx(policy(*two, 0.3).item(), rel=1e-5)


def test_policy_is_zero_where_target_and_weights_are_uniform_and_never_below():
    even = torch.full((3, 4), 0.25)
    assert policy(even, even, 0.1).item() == pytest.approx(0, abs=1e-6)
    w, q = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    assert policy(w, q, 0.1).item() > 0


def test_a_one_hot_policy_has_finite_loss_and_gradient():
    logits = torch.tensor([[200.0, -200.0, 0.0, 0.0]], requires_grad=True)
    loss = policy(logits.softmax(-1), torch.full((1, 4), 0.25), 0.1)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()


def test_entropy_in_nats():
    assert entropy(torch.full((2, 4), 0.25)).item() == pytest.approx(math.log(4), rel=1e-6)
    assert entropy(torch.tensor([[0.0, 1.0, 0.0, 0.0]])).item() == pytest.approx(0, abs=1e-6)
    assert entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).item() == pytest.approx(math.log(2) / 2, rel=1e-5)
