"""A student whose image tokens are lifted to more channels: it begins as it was, and all that is read is lifted."""

import json
from contextlib import nullcontext

import pytest
import torch

from cmapkd_core.config import ModelConfig, StudentConfig
from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import reads
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.bridge import LevelTower
from cmapkd_core.models.build import build, build_student, load_model, save_model
from cmapkd_core.models.compose import inherit, with_lift, with_text_of
from cmapkd_core.models.headed import ImageHead
from cmapkd_core.models.named import check_lift
from cmapkd_core.places import RECIPE_STUDENT, evaluation_url
from cmapkd_core.recipes import resolve

WIDTH, LIFT = 24, 40  # of tiny-student, and to where it is lifted


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    torch.set_num_threads(1)
    return build(ModelConfig("tiny-student", "random"), 0, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def lifted(plain: Backbone) -> Backbone:
    return with_lift(plain, LIFT, seed=0)


@pytest.fixture(scope="module")
def images(plain: Backbone) -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_it_begins_as_the_student_that_it_was(plain, lifted, images):
    before, now = plain.vision(images), lifted.vision(images)
    assert torch.allclose(now.embedding, before.embedding, atol=1e-6)
    assert torch.allclose(lifted.encode_image(images), before.embedding, atol=1e-6)
    assert torch.equal(
        lifted.text(lifted.tokenize(["a cat"])).embedding, plain.text(plain.tokenize(["a cat"])).embedding
    )
    assert all(torch.equal(a, b) for a, b in zip(now.taps[:3], before.taps[:3], strict=True))
    ours, theirs = (model.project_map(model.final_map(x)) for model, x in ((lifted, now), (plain, before)))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_last_tap_the_pooled_state_and_the_levels_have_its_channels(lifted, images):
    assert lifted.spec.vision_widths == (WIDTH, WIDTH, WIDTH, LIFT)
    assert lifted.spec.vision_pooled == LIFT
    features = lifted.vision(images)
    assert features.taps[3].shape == lifted.final_map(features).shape == (3, LIFT, 4, 4)
    text = lifted.text(lifted.tokenize(["a", "b", "c"]))
    levels = LevelTower(lifted.spec, grid=4, width=16)(features, text, ("P5", "L4"))
    (gradient,) = torch.autograd.grad(levels.vectors["P5"].square().sum(), lifted.model.visual.lift.weight)
    assert (gradient.abs().sum(1) > 0).all()  # of every channel


def test_what_is_read_is_w_x_plus_b(lifted, images):
    """The channels of a normed token sum to 0, so a row of ones gives the bias: 2 everywhere, and 2 P in the answer."""
    visual = lifted.model.visual
    with torch.no_grad():
        raw = lifted.vision(images).raw
        visual.lift.weight[WIDTH] = 1.0
        visual.lift.bias[WIDTH] = 2.0
        visual.tower.proj[WIDTH, 5] = 3.0
        features = lifted.vision(images)
    assert torch.allclose(features.taps[3][:, WIDTH], torch.full((3, 4, 4), 2.0), atol=1e-5)
    assert torch.allclose(features.pooled[:, WIDTH], torch.full((3,), 2.0), atol=1e-5)
    added = torch.zeros_like(raw)
    added[:, 5] = 6.0
    assert torch.allclose(features.raw - raw, added, atol=1e-4)
    assert torch.allclose(lifted.encode_image(images), features.embedding, atol=1e-6)


def test_its_channels_beyond_the_towers_learn_from_the_first_step(lifted, images):
    """With zeros on both sides of them the embedding would never move either."""
    lifted.vision(images).raw.square().sum().backward()
    assert (lifted.model.visual.tower.proj.grad[WIDTH:].abs().sum(1) > 0).all()


def test_it_lies_behind_the_quarters_that_can_be_frozen(lifted):
    lift = {"model.visual.lift.weight", "model.visual.lift.bias"}
    assert not lift & lifted.before(2)
    assert lift <= lifted.before(3)
    assert {id(p) for p in lifted.heads()} == {
        id(p) for p in (lifted.model.visual.tower.proj, lifted.model.text_projection, lifted.model.logit_scale)
    }


def test_its_blocks_run_again_for_the_gradient_and_give_the_same(lifted, images):
    before = lifted.vision(images).embedding
    lifted.checkpoint_blocks()
    assert torch.equal(lifted.vision(images).embedding, before)
    assert len(lifted.blocks()) == 8  # of both towers; the lift is no depth


def test_it_is_saved_and_opened_as_it_is_also_as_a_teacher(lifted, images, tmp_path):
    save_model(lifted, tmp_path)
    opened = load_model(tmp_path), build(ModelConfig(f"local-dir:{tmp_path}", "own"), 7, tmp_path)
    for model in opened:
        assert model.spec == lifted.spec
        assert torch.equal(model.encode_image(images), lifted.encode_image(images))
    with pytest.raises(InputError, match="lifted to 40 channels already: leave student.lift at 0"):
        build_student(StudentConfig(f"local-dir:{tmp_path}", "own", 64), 0, tmp_path)


def test_a_head_stands_on_it(plain, lifted, images):
    head = ImageHead(plain.spec.embed_dim, plain.spec.embed_dim).eval()
    made = with_text_of(lifted, head, plain)
    expected = torch.nn.functional.normalize(head(lifted.encode_image(images)), dim=1)
    assert torch.equal(made.encode_image(images), expected)
    assert torch.equal(made.vision(images).embedding, expected)
    assert made.spec.vision_widths[3] == LIFT


def test_its_weights_are_copies_and_follow_the_seed(plain, lifted):
    again, other = with_lift(plain, LIFT, seed=0), with_lift(plain, LIFT, seed=1)
    ours, same, others = (model.model.visual.lift.weight for model in (lifted, again, other))
    assert torch.equal(ours, same)
    assert torch.equal(ours[:WIDTH], others[:WIDTH])
    assert not torch.equal(ours[WIDTH:], others[WIDTH:])
    with torch.no_grad():
        again.model.visual.tower.conv1.weight.zero_()
    assert plain.model.visual.conv1.weight.abs().sum() > 0


def test_layers_below_it_are_inherited(plain, lifted):
    with torch.no_grad():
        lifted.model.visual.tower.conv1.weight.zero_()
    found = inherit(lifted, plain)
    total = len(plain.model.visual.state_dict())
    assert found["image"] == f"inherited: {total - 1} of {total + 2} tensors"  # neither the lift nor what reads it
    assert torch.equal(lifted.model.visual.tower.conv1.weight, plain.model.visual.conv1.weight)


def test_a_lift_of_the_same_width_is_one_too(plain, images):
    made = with_lift(plain, WIDTH, seed=0)
    assert torch.allclose(made.encode_image(images), plain.encode_image(images), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "lift", "message"),
    [
        ("tiny-student", 23, "student.lift=23 is below the width of the student's image tower, 24"),
        ("lite0-minilm3", 64, "vision transformers of open_clip's own, not for EfficientNet"),
        ("RN50", 64, "vision transformers of open_clip's own, not for ModifiedResNet"),
    ],
)
def test_a_tower_without_a_place_for_it_is_named(model, lift, message, tmp_path):
    with pytest.raises(InputError, match=message):
        build_student(StudentConfig(model, "random", lift), 0, tmp_path)


def test_a_tower_that_pools_before_its_norm_is_named(plain, monkeypatch):
    monkeypatch.setattr(plain.model.visual, "final_ln_after_pool", True)
    with pytest.raises(InputError, match="pools by attention, before its norm"):
        with_lift(plain, LIFT, seed=0)


def test_artifacts_move_with_it_where_it_counts_and_nowhere_without_it():
    plain, lifted = resolve("tiny"), resolve("tiny", "lift_128")
    assert "student.lift" not in reads(plain, "joint")
    for stage in ("warmup", "alsn", "joint"):
        assert reads(lifted, stage) == reads(plain, stage) | {"student.lift": 128}
    for stage in ("prepare", "teacher"):
        assert reads(lifted, stage) == reads(plain, stage)
    before = [evaluation_url("root", RECIPE_STUDENT, "root/prepare/a", one, "retrieval") for one in (plain, lifted)]
    assert before[0] != before[1]


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"timm_model_name": "resnet18"}, "not for resnet18"),
        ({"width": 48, "attentional_pool": True}, "pools by attention"),
        ({"width": 48, "final_ln_after_pool": True}, "before its norm"),
        ({"width": 65}, "below the width .*, 65"),
        ({"width": 64}, ""),
    ],
)
def test_a_lift_is_checked_by_the_config_of_a_folder_and_of_a_file(folder, vision, message, tmp_path):
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {}}
    file = tmp_path / ("open_clip_config.json" if folder else "own.json")
    file.write_text(json.dumps({"model_cfg": config} if folder else config))
    student = StudentConfig(f"local-dir:{tmp_path}" if folder else str(file), "own", 64)
    with pytest.raises(InputError, match=message) if message else nullcontext():
        check_lift(student)


def test_a_lift_is_checked_by_the_config_of_a_name_with_a_slash():
    with pytest.raises(InputError, match="student.lift=512 is below the width .*, 768"):
        check_lift(StudentConfig("ViT-B/32", "random", 512))
    check_lift(StudentConfig("ViT-B/32", "random", 768))
