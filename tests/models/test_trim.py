"""Columns of token ids that a text tower never reads: left off by a loader, with the same features and gradients."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from open_clip.transformer import TextTransformer

from cmapkd_core.config import ModelConfig
from cmapkd_core.models.build import build
from cmapkd_core.models.text_towers import ClipText, Trim

CAPTIONS = ["a red circle", "two", "a blue square on a green cross", ""]


@pytest.fixture(scope="module", params=["tiny-student", "tiny-teacher"])
def backbone(request, tmp_path_factory):
    return build(ModelConfig(request.param, "random"), 0, tmp_path_factory.mktemp("models"))


def gradients(backbone, tokens):
    """Features, and the gradient of what a method reads of them."""
    found = backbone.text(tokens)
    taps = [tap * found.mask[..., None] for tap in found.taps]
    total = found.embedding[:, 0].sum() + torch.stack([tap.square().sum() for tap in taps]).sum()
    named = dict(backbone.model.named_parameters())
    wanted = {name: p for name, p in named.items() if not name.startswith("visual.") and p.requires_grad}
    return found, torch.autograd.grad(total, [*wanted.values()], allow_unused=True)


def test_what_is_left_is_all_that_counts(backbone):
    tokens = backbone.tokenize(CAPTIONS)
    short = backbone.trimming()(tokens)
    assert short.shape == (4, 9)  # start, seven words, end
    assert tokens.shape == (4, 16)
    (whole, pulled), (part, again) = gradients(backbone, tokens), gradients(backbone, short)
    assert torch.allclose(part.embedding, whole.embedding, atol=1e-6)
    assert torch.equal(part.mask, whole.mask[:, :9])
    for ours, theirs in zip(part.taps, whole.taps, strict=True):
        assert torch.allclose(ours, theirs[:, :9], atol=1e-5)
    for ours, theirs in zip(again, pulled, strict=True):
        if theirs is not None:
            assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()) + 1e-7)


def test_one_column_less_is_another_model(backbone):
    """The longest caption's end is the last column that is kept."""
    tokens = backbone.tokenize(CAPTIONS)
    whole, short = backbone.text(tokens).embedding, backbone.text(tokens[:, :8]).embedding
    assert not torch.allclose(short[2], whole[2], atol=1e-3)
    assert torch.allclose(short[[0, 1, 3]], whole[[0, 1, 3]], atol=1e-6)


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("trim", "tokens", "kept"),
    [
        (Trim("argmax"), ids([1, 5, 9, 0, 0], [1, 9, 0, 0, 0]), 3),
        (Trim("eos", 2), ids([1, 5, 2, 0, 0], [1, 7, 8, 2, 0]), 4),
        (Trim("eos", 2), ids([1, 5, 2, 0, 0], [1, 7, 8, 9, 9]), 5),  # cut: it has no end
        (Trim(), ids([1, 0, 0]), 3),
    ],
)
def test_how_much_is_kept(trim, tokens, kept):
    assert torch.equal(pickle.loads(pickle.dumps(trim))(tokens), tokens[:, :kept])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pool_type": "argmax"}, Trim("argmax", 2)),
        ({"pool_type": "eos"}, Trim("eos", 2)),
        ({"pool_type": "last"}, Trim()),
        ({"pool_type": "first"}, Trim()),
        ({"pool_type": "argmax", "no_causal_mask": True}, Trim()),  # it reads its padding
        ({"pool_type": "argmax", "no_causal_mask": True, "use_pad_mask": True}, Trim()),
    ],
)
def test_which_towers_read_nothing_behind_the_end(settings, expected):
    tower = TextTransformer(
        context_length=8, vocab_size=50, width=8, heads=2, layers=1, output_dim=4, eos_id=2, **settings
    )
    assert ClipText(tower, 2).trimming() == expected


def test_a_loader_trims_for_each_side_by_its_own_rule():
    from cmapkd_core.data.loader import _TrainBatches

    def tokenize(captions: list[str]) -> torch.Tensor:
        return ids(*([1, *[5] * len(c), 9, *[0] * (6 - len(c))] for c in captions))

    sides = {
        "student": SimpleNamespace(tokenize=tokenize, trim=Trim("argmax")),
        "teacher": SimpleNamespace(tokenize=tokenize, trim=Trim()),
        "third": SimpleNamespace(tokenize=tokenize, trim=Trim("argmax")),
    }
    found = _TrainBatches._tokens(SimpleNamespace(sides=sides), ["ab", "abc"])
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "student": (2, 5),
        "teacher": (2, 8),
        "third": (2, 5),
    }
    assert found["student"] is found["third"]
    assert found["student"].is_contiguous()
