"""The terms from stored levels are those beside the running teacher: value, and gradient of the student."""

import pytest
import torch
from torch import Tensor

from cmapkd_core.catalog import LEVEL_CODES, load
from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.recipes import resolve

TERMS = ("intra", "align", "relation")


@pytest.mark.parametrize(("code", "bound", "least"), [("float16", 1e-3, 0.99999), ("int8", 1e-2, 0.9995)])
def test_terms_and_their_gradients(make_teacher, make_method, batch, code, bound, least):
    recipe, teacher, pairs = resolve("tiny", "no_alsn", "optim.batch=5"), make_teacher(), batch()
    method, images, tokens = make_method(recipe, teacher), pairs.images["teacher"], pairs.tokens["teacher"]
    coded = load("code", code, LEVEL_CODES)
    stored = coded(teacher.image_outputs(images, ALL_LEVELS)) | coded(teacher.text_outputs(tokens, ALL_LEVELS))
    live, cached = teacher.targets(images, tokens, ALL_LEVELS), teacher.cached_targets(stored, ALL_LEVELS)
    for term in TERMS:
        (value, gradient), (expected, exact) = (found(method, pairs, given, recipe, term) for given in (cached, live))
        assert float(value) == pytest.approx(float(expected), rel=bound)
        assert torch.nn.functional.cosine_similarity(gradient, exact, dim=0) > least
        assert float(gradient.norm()) == pytest.approx(float(exact.norm()), rel=2 * bound)


def found(method, batch, targets, recipe, term: str) -> tuple[Tensor, Tensor]:
    """A term, and its gradient by all parameters that it has."""
    value = method(batch, targets, recipe.schedule.fine, 1).terms[term]
    given = torch.autograd.grad(value, [p for p in method.parameters() if p.requires_grad], allow_unused=True)
    return value.detach(), torch.cat([x.flatten() for x in given if x is not None])
