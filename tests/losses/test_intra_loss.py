"""Distances between levels and their weighting per sample."""

import pytest
import torch

from cmapkd_core.losses.intra import distances, map_distance, vector_distance, weighted


def test_map_distance_averages_positions_after_comparing_channels():
    # one sample, two channels, a row of four positions: equal, orthogonal, opposite, equal up to length
    ours = torch.tensor([[[1.0, 1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]).unsqueeze(0)
    theirs = torch.tensor([[[1.0, 0.0, -1.0, 9.0]], [[0.0, 1.0, 0.0, 0.0]]]).unsqueeze(0)
    assert map_distance(ours, theirs).tolist() == pytest.approx([(0 + 1 + 2 + 0) / 4])


def test_vector_distance_per_sample():
    ours = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    theirs = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert vector_distance(ours, theirs).tolist() == pytest.approx([0.0, 1 - 0.5**0.5], abs=1e-6)


def test_distances_lie_between_zero_and_two_at_every_size():
    torch.manual_seed(0)
    for side in (1, 7, 28):
        d = map_distance(torch.randn(16, 8, side, side), torch.randn(16, 8, side, side))
        assert d.shape == (16,)
        assert d.min() >= 0
        assert d.max() <= 2


@pytest.mark.parametrize("distance", [map_distance, vector_distance])
def test_gradients_are_finite_where_the_distance_is_zero(distance):
    x = torch.randn(3, 4, 2, 2) if distance is map_distance else torch.randn(3, 4)
    for ours in (x.clone(), torch.zeros_like(x)):
        ours.requires_grad_()
        d = distance(ours, x)
        d.sum().backward()
        assert torch.isfinite(d).all()
        assert torch.isfinite(ours.grad).all()


def test_the_teachers_levels_get_no_gradient():
    theirs = torch.randn(2, 4, 3, 3, requires_grad=True)
    map_distance(torch.randn(2, 4, 3, 3, requires_grad=True), theirs).sum().backward()
    assert theirs.grad is None


def test_a_level_that_is_not_active_has_distance_exactly_zero():
    student = {"P3": torch.randn(2, 4, 2, 2), "P5": torch.randn(2, 4)}
    teacher = {name: torch.randn_like(x) for name, x in student.items()}
    d = distances(student, teacher, ("P2", "P3", "P4", "P5"))
    assert d.shape == (2, 4)
    assert torch.equal(d[:, 0], torch.zeros(2))
    assert torch.equal(d[:, 2], torch.zeros(2))
    assert torch.equal(d[:, 1], map_distance(student["P3"], teacher["P3"]))
    assert torch.equal(d[:, 3], vector_distance(student["P5"], teacher["P5"]))


def test_weighted_sums_levels_and_averages_samples():
    d = torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    w = torch.tensor([[0.25, 0.75], [1.0, 0.0]], requires_grad=True)
    loss = weighted(d, w)
    loss.backward()
    assert loss.item() == pytest.approx((0.25 + 1.5 + 3.0) / 2)
    assert d.grad.tolist() == [[0.125, 0.375], [0.5, 0.0]]
    assert w.grad is None  # a policy that could lower the loss it weighs would choose the easiest level
