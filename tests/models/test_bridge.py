"""Similarities over the bridge, by their definition."""

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.config import ALL_LEVELS, TEXT_LEVELS, VISION_LEVELS
from cmapkd_core.models.bridge import Bridge, Levels, LevelTower, similarities
from cmapkd_core.models.features import Features, Spec

SPEC = Spec(32, 6, 5, (6, 6, 8, 8), (4, 4, 4, 4), 8, (6, 6, 8, 8), 8)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels_of(names: tuple[str, ...], batch: int, seed: int) -> Levels:
    vectors = {n: random(batch, 5, seed=seed + i) for i, n in enumerate(names)}
    mapped = {n: random(batch, 5, seed=seed + 100 + i) for i, n in enumerate(names)}
    return Levels({}, vectors, mapped)


def features(batch: int) -> tuple[Features, Features]:
    vision = Features(random(batch, 5), random(batch, 8), [random(batch, w, 4, 4, seed=w) for w in SPEC.vision_widths])
    taps = [random(batch, 6, w, seed=w) for w in SPEC.text_widths]
    return vision, Features(random(batch, 5), random(batch, 8), taps, torch.ones(batch, 6, dtype=torch.bool))


def test_similarity_is_the_mean_of_both_crossings_times_the_scale():
    images, texts = levels_of(("P4", "P5"), 3, 0), levels_of(("L2", "L3", "L4"), 3, 50)
    sims = similarities(images, texts, 7.0)
    assert sims.shape == (2, 3, 3, 3)
    for i, p in enumerate(("P4", "P5")):
        for j, l in enumerate(("L2", "L3", "L4")):
            for b in range(3):
                for c in range(3):
                    there = F.cosine_similarity(images.mapped[p][b], texts.vectors[l][c], dim=0)
                    back = F.cosine_similarity(images.vectors[p][b], texts.mapped[l][c], dim=0)
                    assert sims[i, j, b, c].item() == pytest.approx(3.5 * float(there + back), abs=1e-5)


def test_similarities_stay_within_the_scale():
    sims = similarities(levels_of(VISION_LEVELS, 9, 0), levels_of(TEXT_LEVELS, 9, 7), 10.0)
    assert sims.abs().max() <= 10


def test_the_scale_starts_as_clips():
    assert Bridge(4).scale().item() == pytest.approx(1 / 0.07, rel=1e-5)


def test_levels_are_named_finest_first_whatever_the_order_asked():
    torch.manual_seed(0)
    found = LevelTower(SPEC, 4, 8)(*features(2), ("L4", "P5", "L2", "P3"))
    assert found.vision() == ["P3", "P5"]
    assert found.text() == ["L2", "L4"]
    assert set(found.vectors) == set(found.mapped) == {"P3", "P5", "L2", "L4"}


def test_pooled_maps_and_mapped_vectors_are_what_the_sides_bridge_makes_of_them():
    torch.manual_seed(0)
    tower = LevelTower(SPEC, 4, 8)
    found = tower(*features(2), ALL_LEVELS)
    for name in VISION_LEVELS:
        assert torch.allclose(found.vectors[name], found.maps[name].flatten(2).mean(2), atol=1e-6)
        assert torch.allclose(found.mapped[name], tower.bridge.v2l(found.vectors[name]))
    for name in TEXT_LEVELS:
        assert torch.allclose(found.mapped[name], tower.bridge.l2v(found.vectors[name]))


def test_a_level_is_the_same_whatever_else_is_active():
    torch.manual_seed(0)
    tower, pair = LevelTower(SPEC, 4, 8), features(3)
    every = tower(*pair, ALL_LEVELS)
    some = tower(*pair, ("P4", "P5", "L3", "L4"))
    for name in some.vectors:
        assert torch.equal(some.vectors[name], every.vectors[name])
        assert torch.equal(some.mapped[name], every.mapped[name])


@pytest.mark.parametrize("levels", [("P5", "L4"), ("P4", "P5", "L3", "L4"), ("P2", "L1"), ALL_LEVELS])
def test_used_names_exactly_the_parameters_that_get_a_gradient(levels):
    torch.manual_seed(0)
    tower = LevelTower(SPEC, 4, 8)
    found = tower(*features(3), levels)
    loss = similarities(found, found, tower.bridge.scale()).square().sum()
    (loss + sum(m.square().sum() for m in found.maps.values())).backward()
    moved = {name for name, p in tower.named_parameters() if p.grad is not None}
    used = {id(p) for p in tower.used(levels)}
    assert moved == {name for name, p in tower.named_parameters() if id(p) in used}
