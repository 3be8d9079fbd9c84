"""The bank: what a student's similarities with fixed teacher embeddings cost."""

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.recipes import resolve


def test_the_term_written_out_where_widths_differ(make_method, make_teacher, batch, ask):
    """Pictures against captions and captions against pictures, at the teacher's scale on both sides."""
    recipe = resolve("tiny", "with_bank", "optim.batch=5 method.kd_tau=2")
    teacher, pairs = make_teacher(), batch()
    method, phase = make_method(recipe, teacher).train(), recipe.schedule.fine
    said = ask(teacher, pairs, method.active(phase))
    found = method(pairs, said, phase, 0).terms["bank"]
    model, bank = method.student.model, method.bank
    image = F.normalize(method.lifts.image(model.encode_image(pairs.images["student"], normalize=False)), dim=1)
    text = F.normalize(method.lifts.text(model.encode_text(pairs.tokens["student"], normalize=False)), dim=1)
    expected = 0.0
    for ours, theirs, kept in ((image, said.image, bank.text), (text, said.text, bank.image)):
        guess, wanted = ((said.scale / 2 * x @ kept.T).log_softmax(1) for x in (ours, theirs))
        expected += 0.5 * 4 * F.kl_div(guess, wanted, log_target=True, reduction="batchmean")
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    reached = torch.autograd.grad(found, [*method.student.heads()[:2], method.lifts.image.weight])
    assert all(x.abs().sum() > 0 for x in reached)


def test_a_student_that_is_the_teacher_pays_nothing(twins, batch, ask):
    recipe = resolve("tiny", "with_bank", "optim.batch=5")
    method, teacher = twins(recipe)
    method.keep(*(F.normalize(torch.randn(7, 32, generator=torch.Generator().manual_seed(i)), dim=1) for i in (1, 2)))
    pairs, phase = batch("tiny-teacher"), recipe.schedule.fine
    pairs.images["student"] = pairs.images["teacher"]
    said = ask(teacher, pairs, method.active(phase))
    assert method(pairs, said, phase, 0).terms["bank"].item() == pytest.approx(0, abs=1e-5)
    said.image = said.image.roll(1, 0)
    assert method(pairs, said, phase, 0).terms["bank"].item() > 0.01


def test_there_is_no_term_without_a_weight_and_no_state_with_one(make_method, make_teacher, batch, ask):
    teacher, pairs, phase = make_teacher(), batch(), resolve("tiny").schedule.fine
    method = make_method(resolve("tiny", "none", "optim.batch=5"), teacher)
    assert method.lacks() == 0
    assert "bank" not in method(pairs, ask(teacher, pairs, method.active(phase)), phase, 0).terms
    weighed = make_method(resolve("tiny", "with_bank", "optim.batch=5"), teacher)
    assert not [name for name in weighed.state_dict() if "bank" in name]
    assert "bank" in weighed(pairs, ask(teacher, pairs, method.active(phase)), phase, 0).terms


def test_a_bank_that_nobody_filled_is_no_term_of_zero(twins, batch, ask):
    recipe = resolve("tiny", "with_bank", "optim.batch=5 method.bank=9")
    method, teacher = twins(recipe)
    assert method.lacks() == 9
    pairs = batch("tiny-teacher")
    with pytest.raises(AssertionError, match="fills a bank"):
        method(pairs, ask(teacher, pairs, method.active(recipe.schedule.fine)), recipe.schedule.fine, 0)
