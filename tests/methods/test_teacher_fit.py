"""What is fitted on the frozen teacher: it learns, does not collapse, and leaves the towers alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.config import ALL_LEVELS, Phase, Rates, TeacherFitConfig
from cmapkd_core.evaluate.teacher_levels import Variance
from cmapkd_core.methods.teacher_fit import FrozenFeatures, PyramidFit, SpaceFit
from cmapkd_core.models.scales import trained_scales

PHASE = Phase(1, Rates(pyramid=1e-3))
SPACE = Phase(1, Rates(heads=1e-3))


@pytest.fixture
def fit(tiny_models) -> PyramidFit:
    torch.manual_seed(0)
    return PyramidFit(tiny_models("tiny-teacher").requires_grad_(False), 4, 16, TeacherFitConfig())


@pytest.fixture
def features(tiny_models, batch) -> FrozenFeatures:
    backbone, pairs = tiny_models("tiny-teacher"), batch()
    with torch.no_grad():
        return FrozenFeatures(backbone.vision(pairs.images["teacher"]), backbone.text(pairs.tokens["teacher"]))


def spread(vectors: torch.Tensor) -> float:
    """1 - the mean cosine between different samples: 0 where all are the same."""
    n = len(vectors)
    cosines = F.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    return 1 - float(cosines.sum() - n) / (n * (n - 1))


def test_fitting_learns_and_keeps_samples_apart_at_every_level(fit, features):
    (params,) = fit.groups(PHASE).values()
    optimiser = torch.optim.AdamW(params, lr=1e-2)
    first = fit(None, features, PHASE, 0)
    for step in range(40):
        terms = fit(None, features, PHASE, step).terms
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
    assert terms["contrast"] < 0.5 * first.terms["contrast"]
    assert terms["contrast"] < 0.5 * math.log(5)
    assert terms["reconstruction"] < 0.8 * first.terms["reconstruction"]
    levels = fit.levels(features.vision, features.text, ALL_LEVELS)
    for name in ALL_LEVELS:
        assert spread(levels.vectors[name].detach()) > 0.05, name


def test_every_parameter_of_the_fit_gets_a_gradient(fit, features):
    terms = fit(None, features, PHASE, 0).terms
    assert set(terms) == {"contrast", "reconstruction", "prior"}
    sum(terms.values()).backward()
    chosen = {id(p) for p in fit.groups(PHASE)["pyramid"]}
    for name, p in fit.named_parameters():
        assert (p.grad is not None) == (id(p) in chosen), name


def test_alpha_starts_at_the_diagonal_prior_and_stays_a_distribution(fit, features):
    alpha = fit.alpha()
    assert alpha.sum().item() == pytest.approx(1)
    assert (alpha.diagonal() / alpha[0, 1]).tolist() == pytest.approx([2.0] * 4)
    assert fit(None, features, PHASE, 0).terms["prior"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        fit.table[0, 0] += 5
    assert fit.alpha().sum().item() == pytest.approx(1)
    assert fit(None, features, PHASE, 0).terms["prior"].item() > 0.5


def test_a_fixed_alpha_is_not_trained(tiny_models):
    fit = PyramidFit(tiny_models("tiny-teacher"), 4, 16, TeacherFitConfig(alpha="fixed"))
    assert all(p is not fit.table for p in fit.groups(PHASE)["pyramid"])


def test_reconstruction_compares_the_normalised_taps(fit, features):
    pairs = fit.reconstructions(fit.levels(features.vision, features.text, ALL_LEVELS), features)
    assert list(pairs) == list(ALL_LEVELS)
    for name, (x, guess) in pairs.items():
        assert x.shape == guess.shape, name
        assert x.shape == ((5 * 36, 32) if name.startswith("P") else (5, 32))
        assert torch.allclose(x.mean(1), torch.zeros(len(x)), atol=1e-4)
        assert torch.allclose(x.var(1, unbiased=False), torch.ones(len(x)), atol=1e-2)


def test_the_heads_travel_with_the_pyramids_checkpoint_and_are_not_trained(fit):
    assert len([name for name in fit.state_dict() if name.startswith("heads.")]) == 3
    chosen = {id(p) for p in fit.groups(PHASE)["pyramid"]}
    assert not chosen & {id(p) for p in fit.heads}


def test_space_fit_trains_the_heads_alone(tiny_models):
    backbone = tiny_models("tiny-teacher")
    fit = SpaceFit(backbone, TeacherFitConfig(dropout=0.0)).train()
    generator = torch.Generator().manual_seed(0)
    rows = {side: torch.randn(6, 32, generator=generator) for side in ("image", "text")}
    assert set(fit.state_dict()) == {f"heads.{i}" for i in range(3)}
    optimiser = torch.optim.AdamW(fit.groups(SPACE)["heads"], lr=1e-2)
    losses = []
    for step in range(30):
        loss = fit(rows, None, SPACE, step).terms["task"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    heads = {id(p) for p in backbone.heads()}
    assert all((p.grad is not None) == (id(p) in heads) for p in backbone.parameters())


def test_explained_variance_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])
    # spread around the columns' means 3 and 2: (4 + 0 + 4) + (4 + 4 + 16) = 32
    measure = Variance()
    measure.add(x, x + torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))  # error 8
    assert measure.value() == pytest.approx(1 - 8 / 32)


def test_explained_variance_adds_up_over_batches_and_knows_its_ends():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) + 10
    whole, parts, mean = Variance(), Variance(), Variance()
    whole.add(x, 0.9 * x)
    for part in x.split(6):
        parts.add(part, 0.9 * part)
    mean.add(x, x.mean(0).expand_as(x))
    assert parts.value() == pytest.approx(whole.value(), rel=1e-6)
    assert mean.value() == pytest.approx(0, abs=1e-5)
    perfect, constant = Variance(), Variance()
    perfect.add(x, x)
    constant.add(torch.ones(4, 2), torch.zeros(4, 2))
    assert perfect.value() == 1
    assert constant.value() == 0


def test_the_scale_of_the_space_is_among_those_that_are_bounded(tiny_models):
    backbone = tiny_models("tiny-teacher")
    assert [p is backbone.model.logit_scale for p in trained_scales(SpaceFit(backbone, TeacherFitConfig()))] == [True]
