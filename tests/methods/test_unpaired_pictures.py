"""Pictures without captions train by the terms that need none, and by no other."""

from dataclasses import replace

import pytest
import torch

from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.recipes import resolve


@pytest.fixture
def terms_with(make_method, make_teacher, batch, ask):
    """`terms_with(pictures, overrides)`: the method, its terms, and those of its pairs alone."""

    def run(change, overrides: str = ""):
        recipe, teacher, pairs = resolve("tiny", "no_alsn", f"optim.batch=5 {overrides}"), make_teacher(), batch()
        method = make_method(recipe, teacher).train()
        images = {side: change(x) for side, x in pairs.images.items()}
        more = replace(pairs, images=images, tokens={})
        targets = ask(teacher, pairs, ALL_LEVELS)
        own = method(pairs, targets, recipe.schedule.fine, 0).terms
        targets.pictures = teacher.of_pictures(teacher.image_outputs(images["teacher"], ALL_LEVELS), ALL_LEVELS)
        return method, method(replace(pairs, pictures=more), targets, recipe.schedule.fine, 0).terms, own

    return run


def test_the_pairs_own_pictures_once_more_change_nothing(terms_with) -> None:
    _, found, own = terms_with(lambda x: x)
    assert {name: x.item() for name, x in found.items()} == pytest.approx(
        {n: x.item() for n, x in own.items()}, abs=1e-6
    )


def test_other_pictures_move_the_terms_that_need_no_caption_alone(terms_with) -> None:
    _, found, own = terms_with(lambda x: x.flip(-1) * 0.3)
    moved = {name for name, x in found.items() if not torch.equal(x, own[name])}
    assert moved == {"intra", "fd"}


def test_the_weight_is_of_a_picture_beside_one_of_a_pair(terms_with) -> None:
    def other(x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1) * 0.3

    found = {w: terms_with(other, f"method.unpaired={w}")[1] for w in (1, 3, 1e6)}
    own = terms_with(other)[2]
    for name in ("intra", "fd"):
        alone = found[1e6][name]
        for weight in (1, 3):
            expected = (own[name] + weight * alone) / (1 + weight)
            assert found[weight][name].item() == pytest.approx(expected.item(), rel=1e-4)


def test_their_gradient_reaches_the_student(terms_with) -> None:
    """Of fd at such a weight that the pairs' own share is rounding."""
    method, found, own = terms_with(lambda x: x.flip(-1) * 0.3, "method.unpaired=1e6")
    pictures = [p for n, p in method.student.named_parameters() if "visual" in n]
    (ours, theirs) = (torch.autograd.grad(terms["fd"], pictures, allow_unused=True) for terms in (found, own))
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    assert sum(float(a.square().sum()) for a, _ in pairs) > 0
    assert any(not torch.allclose(a, b) for a, b in pairs)
