"""The language hierarchy: padding never matters, a phrase is three tokens, short captions work."""

import pytest
import torch

from cmapkd_core.config import TEXT_LEVELS
from cmapkd_core.models.features import Features
from cmapkd_core.models.hierarchy import LanguageHierarchy, PhraseAttention, SentenceAttention, heads_for, masked_mean

WIDTHS = (6, 8, 10, 12)


def caption(lengths: list[int], tokens: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    taps = [torch.randn(len(lengths), tokens, w, generator=generator) for w in WIDTHS]
    mask = torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]
    return Features(torch.zeros(len(lengths), 4), torch.randn(len(lengths), 12, generator=generator), taps, mask)


@pytest.fixture
def hierarchy() -> LanguageHierarchy:
    torch.manual_seed(0)
    return LanguageHierarchy(WIDTHS, 12, 16)


def test_levels_are_one_vector_per_caption_in_order(hierarchy):
    found = hierarchy(caption([3, 5], 9), TEXT_LEVELS)
    assert {name: x.shape for name, x in found.items()} == dict.fromkeys(TEXT_LEVELS, (2, 16))
    assert list(hierarchy(caption([3], 9), ("L4", "L2"))) == ["L2", "L4"]


def test_padding_never_changes_a_level(hierarchy):
    text = caption([2, 4, 7], 7)
    for tap in text.taps:
        tap[~text.mask] = 1e4
    plain = hierarchy(caption([2, 4, 7], 7), TEXT_LEVELS)
    loud = hierarchy(text, TEXT_LEVELS)
    cut = [
        hierarchy(Features(text.embedding[i : i + 1], text.pooled[i : i + 1], [t[i : i + 1, :n] for t in text.taps],
                           text.mask[i : i + 1, :n]), TEXT_LEVELS)
        for i, n in enumerate((2, 4, 7))
    ]  # fmt: skip
    for name in TEXT_LEVELS:
        assert torch.allclose(plain[name], loud[name], atol=1e-5), name
        assert torch.allclose(plain[name], torch.cat([c[name] for c in cut]), atol=1e-5), name


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_captions_are_finite_and_have_finite_gradients(hierarchy, length):
    text = caption([length], 6)
    for tap in text.taps:
        tap.requires_grad_()
    found = hierarchy(text, TEXT_LEVELS)
    sum(x.square().sum() for x in found.values()).backward()
    assert all(torch.isfinite(x).all() for x in found.values())
    for tap in text.taps[:3]:
        assert torch.isfinite(tap.grad).all()
        assert torch.equal(tap.grad[:, length:], torch.zeros_like(tap.grad[:, length:]))


def test_a_phrase_sees_three_tokens():
    torch.manual_seed(0)
    phrase = PhraseAttention(8)
    x = torch.randn(1, 9, 8, requires_grad=True)
    outs: list[torch.Tensor] = []
    phrase.attention.register_forward_hook(lambda module, args, out: outs.append(out[0]))
    phrase(x, torch.ones(1, 9, dtype=torch.bool))
    for position in range(9):
        (pull,) = torch.autograd.grad(outs[0][0, position].sum(), x, retain_graph=True)
        seen = {i for i in range(9) if pull[0, i].abs().sum() > 0}
        assert seen == {i for i in (position - 1, position, position + 1) if 0 <= i < 9}


def test_a_sentence_sees_every_valid_token():
    torch.manual_seed(0)
    sentence = SentenceAttention(8)
    x = torch.randn(1, 6, 8, requires_grad=True)
    mask = torch.tensor([[True] * 4 + [False] * 2])
    (pull,) = torch.autograd.grad(sentence(x, mask).sum(), x)
    assert (pull[0].abs().sum(-1) > 0).tolist() == [True] * 4 + [False] * 2


def test_the_order_of_captions_in_a_batch_does_not_matter(hierarchy):
    """`batch_first`: attention runs over the tokens of one caption, never over the batch."""
    text = caption([3, 6, 5], 6)
    turned = Features(text.embedding.flip(0), text.pooled.flip(0), [t.flip(0) for t in text.taps], text.mask.flip(0))
    a, b = hierarchy(text, TEXT_LEVELS), hierarchy(turned, TEXT_LEVELS)
    assert all(torch.allclose(a[name], b[name].flip(0), atol=1e-6) for name in TEXT_LEVELS)


def test_masked_mean_by_hand():
    x = torch.tensor([[[1.0], [3.0], [100.0]], [[7.0], [100.0], [100.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).flatten().tolist() == [2.0, 7.0]


@pytest.mark.parametrize(("width", "heads"), [(24, 1), (384, 6), (512, 8), (200, 2), (7, 1)])
def test_heads_divide_the_width(width, heads):
    assert heads_for(width) == heads


@pytest.mark.parametrize("levels", [("L4",), ("L3", "L4"), ("L1",), ("L2",), TEXT_LEVELS])
def test_used_names_exactly_the_parameters_that_get_a_gradient(hierarchy, levels):
    found = hierarchy(caption([4, 6], 6), levels)
    sum((x * torch.randn_like(x)).sum() for x in found.values()).backward()
    moved = {name for name, p in hierarchy.named_parameters() if p.grad is not None}
    used = {id(p) for p in hierarchy.used(levels)}
    assert moved == {name for name, p in hierarchy.named_parameters() if id(p) in used}
