"""TinyCLIP: the soft targets alone, from inherited layers."""

import copy

import pytest
import torch

from cmapkd_core.losses.similarity import relative_entropy
from cmapkd_core.models.compose import text_state
from cmapkd_core.models.construct import construct
from cmapkd_core.models.frozen_teacher import Teacher
from cmapkd_core.recipes import resolve


@pytest.fixture
def shallow(tiny_models):
    """The teacher's widths with two image and three text layers, and a smaller joint space for nothing else."""
    config = copy.deepcopy(tiny_models("tiny-teacher").config)
    config["model_cfg"]["vision_cfg"]["layers"] = 2
    config["model_cfg"]["text_cfg"]["layers"] = 3
    config["model_cfg"]["embed_dim"] = 20
    return construct("shallow", config, {}, seed=5)


def test_the_term_is_kd_alone_and_both_scales_are_50(terms_of_row):
    method, said, pairs, terms = terms_of_row("tinyclip")
    student = method.student
    logits = 50 * student.encode_image(pairs.images["student"]) @ student.encode_text(pairs.tokens["student"]).T
    assert set(terms) == {"kd"}
    assert said.scale.item() != pytest.approx(50)
    expected = relative_entropy(50 * said.image @ said.text.T, logits, 1.0)
    assert torch.allclose(terms["kd"], expected, rtol=1e-4)
    assert student.scale().item() == pytest.approx(50)  # the exported model's too
    trained = {id(p) for p in method.groups(method.recipe.schedule.fine)["student"]}
    assert {name for name, p in student.named_parameters() if id(p) not in trained} == {"model.logit_scale"}


def test_towers_of_other_widths_inherit_nothing_and_the_log_says_so(make_method, make_teacher):
    teacher = make_teacher()
    method = make_method(resolve("tiny", "tinyclip"), teacher)
    before = {name: x.clone() for name, x in method.state_dict().items()}
    said = method.begin(teacher)
    assert all(torch.equal(x, before[name]) for name, x in method.state_dict().items())
    assert said == [
        "image tower not inherited: class_embedding is (24,) and the teacher has (32,)",
        "text tower not inherited: positional_embedding is (16, 24) and the teacher has (16, 32)",
    ]


def test_towers_of_the_same_widths_inherit_every_nth_layer_from_the_first(make_teacher, shallow):
    from cmapkd_core.methods.tinyclip import TinyClip

    teacher: Teacher = make_teacher()
    projection = shallow.model.visual.proj.clone()
    said = TinyClip(resolve("tiny", "tinyclip"), shallow, teacher).begin(teacher)
    assert [line.split(":")[0] for line in said] == ["image tower inherited", "text tower inherited"]
    for ours, theirs, layers in (
        (shallow.model.visual.state_dict(), teacher.backbone.model.visual.state_dict(), {0: 0, 1: 2}),
        (text_state(shallow), text_state(teacher.backbone), {0: 0, 1: 1, 2: 2}),
    ):
        for mine, source in layers.items():
            name = "transformer.resblocks.{}.mlp.c_fc.weight"
            assert torch.equal(ours[name.format(mine)], theirs[name.format(source)])
    assert torch.equal(
        text_state(shallow)["token_embedding.weight"], text_state(teacher.backbone)["token_embedding.weight"]
    )
    assert torch.equal(shallow.model.visual.proj, projection)  # another joint space: its projection stays


def test_weights_of_the_student_are_its_own_copies(make_teacher, shallow):
    from cmapkd_core.methods.tinyclip import TinyClip

    teacher = make_teacher()
    before = teacher.backbone.model.visual.conv1.weight.clone()
    TinyClip(resolve("tiny", "tinyclip"), shallow, teacher).begin(teacher)
    with torch.no_grad():
        shallow.model.visual.conv1.weight.zero_()
    assert torch.equal(teacher.backbone.model.visual.conv1.weight, before)
