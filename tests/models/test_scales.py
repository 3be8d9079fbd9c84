"""The learned scales of similarities stay within CLIP's bound and can leave it again."""

from __future__ import annotations

import math

import pytest
import torch

from cmapkd_core.models.bridge import Bridge
from cmapkd_core.models.scales import MAX_SCALE, bound, trained_scales


def test_a_scale_above_the_bound_is_clamped_after_an_update_and_one_below_is_not() -> None:
    high, low, tiny = Bridge(4), Bridge(4), Bridge(4)
    with torch.no_grad():
        high.log_scale.fill_(math.log(112.3))
        low.log_scale.fill_(math.log(99.0))
        tiny.log_scale.fill_(math.log(0.5))
    assert high.scale().item() == pytest.approx(112.3)  # as a frozen model came
    bound([high.log_scale, low.log_scale, tiny.log_scale])
    assert tiny.scale().item() == 1.0
    assert high.scale().item() == pytest.approx(MAX_SCALE)
    assert low.log_scale.item() == torch.tensor(math.log(99.0)).item()


def test_a_scale_at_the_bound_hears_the_loss() -> None:
    bridge = Bridge(4)
    with torch.no_grad():
        bridge.log_scale.fill_(math.log(MAX_SCALE))
    bridge.scale().backward()
    assert bridge.log_scale.grad.item() == pytest.approx(MAX_SCALE)


def test_frozen_scales_are_left_alone() -> None:
    bridge = Bridge(4)
    assert trained_scales(bridge) == [bridge.log_scale]
    bridge.requires_grad_(False)
    assert trained_scales(bridge) == []
