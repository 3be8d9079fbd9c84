"""LLaVA-KD: three phases as values of the schedule, and terms on patches."""

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.models.pyramid import resize
from cmapkd_core.recipes import resolve


def names_of(method, phase):
    names = {id(p): name for name, p in method.named_parameters()}
    return {group: {names[id(p)] for p in params} for group, params in method.groups(phase).items()}


def test_the_phases_are_dpt_sft_and_dft(terms_of_row):
    method, *_ = terms_of_row("llava_kd")
    schedule = resolve("tiny", "llava_kd").schedule
    heads = {"student.model.visual.proj", "student.model.text_projection", "student.model.logit_scale"}
    coarse = names_of(method, schedule.coarse)
    assert coarse["heads"] == heads
    assert schedule.coarse.lr.student == 0
    assert not coarse["student"] & heads
    assert schedule.medium.terms == ("task",)
    for phase in (schedule.medium, schedule.fine):
        assert names_of(method, phase) == {"student": {n for n, _ in method.named_parameters()}, "heads": set()}
    assert schedule.fine.terms == ()


def test_the_patch_terms_written_out(terms_of_row):
    method, said, pairs, terms = terms_of_row("llava_kd")
    vision, text = method.towers(pairs)
    (teacher,) = method._frozen
    ours = [method.student.model.visual.ln_post(x) @ method.student.model.visual.proj for x in tokens(vision.taps[3])]
    small = resize(said.vision.taps[3], 4)  # 6x6 patches of the teacher's on the student's 4x4
    theirs = [teacher.model.visual.ln_post(x) @ teacher.model.visual.proj for x in tokens(small)]
    responses, relation = [], []
    for y_s, y_t in zip(ours, theirs, strict=True):
        y_s, y_t = F.normalize(y_s, dim=1), F.normalize(y_t, dim=1)
        p = (said.scale * y_t @ said.text.T).log_softmax(1)
        q = (method.student.scale() * y_s @ text.embedding.T).log_softmax(1)
        responses.append(F.kl_div(q, p, log_target=True, reduction="batchmean"))
        relation.append(1 - F.cosine_similarity((y_s @ y_s.T).flatten(), (y_t @ y_t.T).flatten(), dim=0))
    assert torch.allclose(terms["patches"], torch.stack(responses).mean(), rtol=1e-4)
    assert torch.allclose(terms["patch_relation"], torch.stack(relation).mean(), rtol=1e-4)


def tokens(maps: torch.Tensor) -> list[torch.Tensor]:
    """[B,C,h,w] -> B times [h*w,C]."""
    return list(maps.flatten(2).transpose(1, 2))


def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_it(twins, batch, ask):
    recipe = resolve("tiny", "llava_kd", "optim.batch=5")
    method, teacher = twins(recipe)
    pairs = batch("tiny-teacher")
    pairs.images["student"] = pairs.images["teacher"]
    terms = method.train()(pairs, ask(teacher, pairs, ()), recipe.schedule.fine, 0).terms
    for name in ("kd", "patches", "patch_relation"):
        assert terms[name].item() == pytest.approx(0, abs=1e-5), name


def test_the_teacher_is_no_part_of_its_state(terms_of_row):
    method, *_ = terms_of_row("llava_kd")
    assert all(name.startswith("student.") for name in method.state_dict())
