"""Models made of two: an image tower with a head beside another's text tower, and inherited layers."""

import json

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.config import ModelConfig
from cmapkd_core.models import compose
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build, load_model, save_model
from cmapkd_core.models.compose import inherit, layers_of, text_state, with_text_of
from cmapkd_core.models.headed import ImageHead

CAPTIONS = ["a dog", "two cats on a red mat"]
PAIRS = {
    "tiny": (ModelConfig("tiny-student", "random"), ModelConfig("tiny-teacher", "random")),  # plain CLIP, GELUs differ
    "demo": (ModelConfig("lite0-minilm3", "packages"), ModelConfig("lite2-minilm", "packages")),  # timm, Hugging Face
}


@pytest.fixture(scope="module", params=list(PAIRS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Backbone]:
    torch.set_num_threads(1)
    student, teacher = (
        build(c, seed, tmp_path_factory.mktemp("models")) for seed, c in enumerate(PAIRS[request.param])
    )
    return student, teacher


def test_a_composed_model_answers_as_its_parts_also_from_its_folder(pair, tmp_path):
    student, teacher = pair
    torch.manual_seed(0)
    head = ImageHead(student.spec.embed_dim, teacher.spec.embed_dim).eval()
    images = torch.randn(2, 3, student.spec.image_size, student.spec.image_size)
    made = with_text_of(student, head, teacher)
    save_model(made, tmp_path)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        image = F.normalize(head(student.encode_image(images)), dim=1)
        text = teacher.encode_text(teacher.tokenize(CAPTIONS))
        for model in (made, loaded):
            assert torch.equal(model.encode_image(images), image)
            assert torch.equal(model.vision(images).embedding, image)
            assert torch.equal(model.encode_text(model.tokenize(CAPTIONS)), text)
        assert torch.equal(loaded.scale(), student.scale())
        assert loaded.project_map(loaded.final_map(loaded.vision(images))).shape[2] == teacher.spec.embed_dim
    assert loaded.spec.embed_dim == teacher.spec.embed_dim
    assert loaded.spec.image_size == student.spec.image_size
    assert len(loaded.heads()) >= len(list(head.parameters()))
    told = loaded.identity
    assert told.architecture.endswith(f"below a head, texts by {teacher.identity.architecture}")
    assert told.activations["text"] == teacher.identity.activations["text"]
    assert (told.mean, told.resize_mode) == (student.identity.mean, student.identity.resize_mode)
    assert set(student.identity.activations["image"].split("+")) <= set(told.activations["image"].split("+"))


def test_its_folder_has_the_parts_that_answer_and_no_others(pair, tmp_path):
    student, teacher = pair
    made = with_text_of(student, ImageHead(student.spec.embed_dim, teacher.spec.embed_dim), teacher)
    save_model(made, tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert config["image_head"]["embed_dim"] == student.spec.embed_dim
    text = sum(x.numel() for x in text_state(teacher).values())
    total = sum(x.numel() for x in made.model.state_dict().values())
    visual = sum(x.numel() for x in made.model.visual.state_dict().values())
    assert total == visual + text + 1


def test_its_weights_are_copies(pair):
    student, teacher = pair
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    made = with_text_of(student, ImageHead(student.spec.embed_dim, teacher.spec.embed_dim), teacher)
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())
    assert student.scale() > 0


def test_the_demo_students_text_tower_inherits_layers_0_2_and_4_and_its_image_tower_none(tmp_path):
    student, teacher = (build(config, 0, tmp_path) for config in PAIRS["demo"])
    found = inherit(student, teacher)
    assert found["text"] == "inherited: 54 of 54 tensors"
    assert found["image"].startswith("not inherited: trunk.blocks.")
    ours, theirs = text_state(student), text_state(teacher)
    name = "transformer.encoder.layer.{}.output.dense.weight"
    for mine, source in {0: 0, 1: 2, 2: 4}.items():
        assert torch.equal(ours[name.format(mine)], theirs[name.format(source)])


def test_layers_are_every_nth_from_the_first():
    assert layers_of(24, 12) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]
    assert layers_of(12, 10) == list(range(10))
    assert layers_of(2, 3) == [0, 1, 2]  # the last has no source


def numbered(**depths: int) -> dict[str, torch.Tensor]:
    """Stages of so many blocks, whose tensors are numbers of their own; their inner modules are numbered too."""
    names = [f"{stage}.{i}" for stage, depth in depths.items() for i in range(depth)]
    return {
        f"trunk.{name}.mlp.{j}.weight": torch.tensor([10.0 * k + j]) for k, name in enumerate(names) for j in (0, 2)
    }


@pytest.mark.parametrize("inner", ["{}", "layers.{}.blocks"])
def test_each_stage_inherits_by_its_own_depth(inner):
    """Of 2, 6 and 2 blocks for 1, 3 and 2: the first; 0, 2 and 4; both."""
    deep, shallow = ({inner.format(i): n for i, n in enumerate(depths)} for depths in ((2, 6, 2), (1, 3, 2)))
    theirs, ours = numbered(**deep), {name: -x for name, x in numbered(**shallow).items()}
    assert compose._inherit(ours, theirs, set()) == "inherited: 12 of 12 tensors"
    chosen = {0: [0], 1: [0, 2, 4], 2: [0, 1]}
    for stage, blocks in chosen.items():
        for mine, source in enumerate(blocks):
            for j in (0, 2):
                name = f"trunk.{inner.format(stage)}.{{}}.mlp.{j}.weight"
                assert torch.equal(ours[name.format(mine)], theirs[name.format(source)]), name


def test_a_tower_deeper_than_the_teachers_inherits_nothing_and_says_so():
    said = compose._inherit(numbered(layer=3), numbered(layer=2), set())
    assert said == "not inherited: trunk.layer.2.mlp.0.weight is (1,) and the teacher has no such tensor"
