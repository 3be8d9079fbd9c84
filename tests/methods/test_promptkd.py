"""PromptKD: the image side learns the teacher's space, and what answers queries is more than the student."""

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.evaluate.subject import count_parameters
from cmapkd_core.models.build import load_model, save_model
from cmapkd_core.recipes import resolve


def by_hand(method, said, pairs, classes):
    q = F.normalize(method.projector(method.student.encode_image(pairs.images["student"])), dim=-1)
    teacher = (said.scale * said.image @ classes.T).log_softmax(1)
    student = (method.student.scale() * q @ classes.T).log_softmax(1)
    return F.kl_div(student, teacher, log_target=True, reduction="sum") / (len(q) * len(classes))


def test_the_term_is_the_kl_over_the_batchs_captions(terms_of_row):
    method, said, pairs, terms = terms_of_row("promptkd")
    assert torch.allclose(terms["prompt"], by_hand(method, said, pairs, said.text), rtol=1e-4)


def test_captions_of_earlier_batches_are_classes_first_in_first_out(make_method, make_teacher, batch, ask):
    recipe = resolve("tiny", "promptkd", "optim.batch=5 method.bank=7")
    teacher, pairs, phase = make_teacher(), batch(), resolve("tiny").schedule.fine
    method, said = make_method(recipe, teacher).train(), ask(teacher, pairs, ())
    captions = [F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(i)), dim=1) for i in range(3)]
    for step, text in enumerate(captions):
        said.text = text
        known = method.bank[: int(method.filled)].clone()
        assert len(known) == [0, 5, 7][step]
        term = method(pairs, said, phase, step).terms["prompt"]
        assert torch.allclose(term, by_hand(method, said, pairs, torch.cat([text, known])), rtol=1e-4)
    assert torch.equal(method.bank, torch.cat([captions[2], captions[1]])[:7])
    other = make_method(recipe, teacher)
    other.load_state_dict(method.state_dict())  # a resumed run meets the same classes
    assert torch.equal(other.bank, method.bank)
    assert other.filled == 7


def test_measuring_keeps_no_captions(terms_of_row):
    method, said, pairs, _ = terms_of_row("promptkd")
    before = method.bank.clone()
    method.eval()(pairs, said, method.recipe.schedule.fine, 1)
    assert torch.equal(method.bank, before)


@pytest.mark.parametrize("row", ["promptkd", "promptkd_cls"])
def test_the_students_text_tower_and_its_scale_are_not_trained(terms_of_row, row):
    method, *_ = terms_of_row(row)
    groups = method.groups(method.recipe.schedule.fine)
    visual = [id(p) for p in method.student.model.visual.parameters()]
    assert [id(p) for p in groups["student"]] == visual
    assert len(groups["extra"]) == 5


def test_the_exported_model_answers_as_the_method_does(make_method, make_teacher, batch, ask, tmp_path):
    teacher, pairs, phase = make_teacher(), batch(), resolve("tiny").schedule.fine
    method = make_method(resolve("tiny", "promptkd", "optim.batch=5"), teacher).train()
    method(pairs, ask(teacher, pairs, ()), phase, 0)  # batch norm has seen something
    method.eval()
    save_model(method.exported(teacher), tmp_path)
    shipped = load_model(tmp_path)
    with torch.no_grad():
        image = F.normalize(method.projector(method.student.encode_image(pairs.images["student"])), dim=-1)
        text = teacher.backbone.encode_text(pairs.tokens["teacher"])
        assert torch.equal(shipped.encode_image(pairs.images["student"]), image)
        assert torch.equal(shipped.encode_text(shipped.tokenize(["a red circle"] * 5))[0], text[0])
    assert shipped.spec.image_size == 32
    assert shipped.spec.embed_dim == 32


def test_inference_costs_the_teachers_text_tower(make_method, make_teacher):
    teacher = make_teacher()
    method = make_method(resolve("tiny", "promptkd"), teacher)
    ours, theirs, true = (count_parameters(m) for m in (method.student, teacher.backbone, method.exported(teacher)))
    extra = sum(p.numel() for p in method.projector.parameters())
    assert true["parameters/image"] == ours["parameters/image"] + extra
    assert true["parameters/text"] == theirs["parameters/text"]
    assert true["parameters/text"] > ours["parameters/text"]
