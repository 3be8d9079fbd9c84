"""Weights of levels: a distribution over the active ones, exactly zero elsewhere."""

import pytest
import torch

from cmapkd_core.catalog import SELECTORS, load
from cmapkd_core.config import ALL_LEVELS, TEXT_LEVELS, VISION_LEVELS, SelectorConfig
from cmapkd_core.models.selector import Uniform, restrict, reverse_ranks

PHASES = [("P5", "L4"), ("P4", "P5", "L3", "L4"), ("P2", "L1", "L4"), ALL_LEVELS]


def unit(batch: int, width: int, seed: int) -> torch.Tensor:
    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


def made(kind: str, width: int = 8, **settings: object):
    torch.manual_seed(0)
    return load("selector", kind, SELECTORS)(width, width, SelectorConfig(kind=kind, **settings)).eval()


@pytest.mark.parametrize("levels", PHASES)
@pytest.mark.parametrize("kind", list(SELECTORS))
def test_weights_sum_to_one_over_the_active_levels_and_are_zero_elsewhere(kind, levels):
    pair = made(kind)(unit(5, 8, 0), unit(5, 8, 1), levels)
    for w, known in zip(pair, (VISION_LEVELS, TEXT_LEVELS), strict=True):
        assert w.shape == (5, 4)
        assert torch.allclose(w.sum(1), torch.ones(5), atol=1e-6)
        active = torch.tensor([name in levels for name in known])
        assert (w[:, active] > 0).all()
        assert torch.equal(w[:, ~active], torch.zeros(5, int((~active).sum())))


def test_restrict_renormalises():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    assert restrict(logits, VISION_LEVELS, ("P4", "P5")).tolist()[0] == pytest.approx([0, 0, 3 / 7, 4 / 7])


def test_a_single_level_gets_all_the_weight_and_a_finite_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    w = restrict(logits, VISION_LEVELS, ("P5",))
    w.square().sum().backward()
    assert w.tolist() == [[0.0, 0.0, 0.0, 1.0]] * 3
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_fixed_weights_are_the_recipes_for_every_sample():
    selector = made("fixed", weights=(0.1, 0.2, 0.3, 0.4))
    for w in selector(unit(3, 8, 0), unit(3, 8, 1), ALL_LEVELS):
        assert torch.allclose(w, torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(3, 4))
    assert not list(selector.parameters())
    assert not selector.learns


def test_a_fixed_weight_of_zero_is_no_nan():
    w, _ = made("fixed", weights=(0.0, 0.0, 0.0, 1.0))(unit(2, 8, 0), unit(2, 8, 1), ("P2", "P3", "L4"))
    assert w.tolist()[0] == pytest.approx([0.5, 0.5, 0, 0])


def test_uniform_is_uniform_over_what_is_active():
    w_v, w_l = Uniform()(unit(2, 8, 0), unit(2, 8, 1), ("P4", "P5", "L4"))
    assert w_v.tolist()[0] == pytest.approx([0, 0, 0.5, 0.5])
    assert w_l.tolist()[0] == pytest.approx([0, 0, 0, 1])


def test_alsn_reads_both_embeddings():
    alsn, image, text = made("alsn"), unit(1, 8, 0), unit(1, 8, 1)
    first = torch.cat(alsn(image, text, ALL_LEVELS))
    assert not torch.allclose(first, torch.cat(alsn(unit(1, 8, 2), text, ALL_LEVELS)), atol=1e-4)
    assert not torch.allclose(first, torch.cat(alsn(image, unit(1, 8, 3), ALL_LEVELS)), atol=1e-4)


def test_alsn_is_a_function_of_the_sample_alone():
    alsn, image, text = made("alsn"), unit(6, 8, 0), unit(6, 8, 1)
    turn = torch.randperm(6)
    for a, b in zip(alsn(image, text, ALL_LEVELS), alsn(image[turn], text[turn], ALL_LEVELS), strict=True):
        assert torch.allclose(a[turn], b, atol=1e-6)


@pytest.mark.parametrize("width", [8, 512])
def test_alsns_input_has_unit_variance_at_every_width(width):
    alsn = made("alsn", width)
    seen: list[torch.Tensor] = []
    alsn.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    alsn(unit(64, width, 0), unit(64, width, 1), ALL_LEVELS)
    assert seen[0].square().mean().item() == pytest.approx(1.0, rel=1e-4)


def test_a_low_temperature_sharpens():
    image, text = unit(9, 8, 0), unit(9, 8, 1)
    plain, sharp = (made("alsn", tau=tau)(image, text, ALL_LEVELS)[0] for tau in (1.0, 0.05))
    assert torch.equal(plain.argmax(1), sharp.argmax(1))
    assert (sharp.amax(1) > plain.amax(1)).all()
    assert sharp.amax() > 0.6  # beyond the 0.475 to which a sigmoid before the softmax confines the weights


def test_the_table_says_who_learns():
    learning = {"alsn": True, "fixed": False, "random": False, "shuffled": True, "reversed": True, "oracle": False}
    assert {name: row.learns for name, row in SELECTORS.items()} == learning
    assert {name: load("selector", name, SELECTORS).learns for name in SELECTORS} == learning


def test_plain_selectors_use_what_they_train():
    for kind in ("alsn", "fixed"):
        selector, image, text = made(kind), unit(5, 8, 0), unit(5, 8, 1)
        for used, trained in zip(
            selector.choose(image, text, ALL_LEVELS), selector(image, text, ALL_LEVELS), strict=True
        ):
            assert torch.equal(used, trained)


def test_shuffled_weights_are_those_of_other_samples():
    selector, image, text = made("shuffled"), unit(5, 8, 0), unit(5, 8, 1)
    trained, _ = selector(image, text, ALL_LEVELS)
    used, _ = selector.choose(image, text, ALL_LEVELS)
    assert torch.equal(used[1:], trained[:-1])
    assert torch.equal(used[0], trained[-1])


def test_reversed_weights_exchange_the_largest_and_the_smallest():
    w = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2]])
    expected = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.4, 0.2, 0.3]])
    assert torch.equal(reverse_ranks(w, VISION_LEVELS, ALL_LEVELS), expected)
    partly = torch.tensor([[0.0, 0.0, 0.3, 0.7]])
    assert reverse_ranks(partly, VISION_LEVELS, ("P4", "P5")).tolist()[0] == pytest.approx([0, 0, 0.7, 0.3])


def test_random_weights_are_new_for_every_sample_and_step():
    selector, image, text = made("random"), unit(5, 8, 0), unit(5, 8, 1)
    first, second = (selector.choose(image, text, ALL_LEVELS)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_a_single_level_leaves_a_head_nothing_to_learn():
    selector = made("alsn")
    names = {id(p): name for name, p in selector.named_parameters()}
    used = {names[id(p)].split(".")[0] for p in selector.used(("P5", "L3", "L4"))}
    assert used == {"encoder", "text_head"}
    assert selector.used(("P5", "L4")) == []
