"""PromptKD over class names: the loss by hand, what it reads, what an answer costs."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from cmapkd_core.errors import InputError
from cmapkd_core.evaluate.embed import embed_texts
from cmapkd_core.evaluate.subject import count_parameters
from cmapkd_core.evaluate.zeroshot import TEMPLATES, class_embeddings
from cmapkd_core.fingerprints import reads
from cmapkd_core.models.build import load_model
from cmapkd_core.recipes import BASELINES, SUITES, resolve
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.data_set import open_shards
from cmapkd_core.stages.method_io import class_features


def test_the_term_by_hand(terms_of_row):
    method, said, pairs, terms = terms_of_row("promptkd_cls")
    q = F.normalize(method.projector(method.student.encode_image(pairs.images["student"])), dim=-1)
    total = 0.0
    for b in range(5):
        teacher = [said.scale.item() * torch.dot(said.image[b], w).item() for w in method.classes]
        student = [method.student.scale().item() * torch.dot(q[b], w).item() for w in method.classes]
        p, r = torch.tensor(teacher).softmax(0), torch.tensor(student).softmax(0)
        total += (p * (p / r).log()).sum().item()
    assert terms["prompt"].item() == pytest.approx(total / (5 * 7), rel=1e-4)


def test_two_classes_and_one_picture_with_numbers(make_method, make_teacher):
    teacher = make_teacher()
    teacher.classes = torch.eye(2, 32)
    method = make_method(resolve("tiny", "promptkd_cls"), teacher)
    with torch.no_grad():
        method.student.model.logit_scale.zero_()  # exp(0) = 1
    method.projector = torch.nn.Identity()
    # The teacher's logits are 2 (1, 0), the student's (0.6, 0.8).
    image, image_t = torch.zeros(1, 32), torch.zeros(1, 32)
    image[0, :2], image_t[0, 0] = torch.tensor([0.6, 0.8]), 1.0
    p, r = 0.880797, 0.450166  # 1 / (1 + e^-2), 1 / (1 + e^0.2)
    kl = p * torch.log(torch.tensor(p / r)) + (1 - p) * torch.log(torch.tensor((1 - p) / (1 - r)))
    found = method.divergence(image, image_t, torch.tensor(2.0), method.classes)
    assert found.item() == pytest.approx(kl.item() / 2, rel=1e-4)


def test_neither_captions_nor_the_students_text_tower_are_read(make_method, make_teacher, batch, ask):
    recipe = resolve("tiny", "promptkd_cls", "optim.batch=5")
    teacher, pairs = make_teacher(), batch()
    method = make_method(recipe, teacher).train()
    groups, said = method.groups(recipe.schedule.fine), ask(teacher, pairs, ())
    assert len(groups["student"]) == len(list(method.student.model.visual.parameters()))
    before = method(pairs, said, recipe.schedule.fine, 0).terms["prompt"]
    said.text = said.text.roll(1, 0)
    pairs.tokens["student"] = pairs.tokens["student"].roll(1, 0)
    assert torch.equal(method(pairs, said, recipe.schedule.fine, 0).terms["prompt"], before)


def test_inference_costs_are_said_with_the_text_tower_and_without(make_method, make_teacher):
    teacher = make_teacher()
    method = make_method(resolve("tiny", "promptkd_cls"), teacher)
    (line,) = method.begin(teacher)
    true = count_parameters(method.exported(teacher))
    assert f"{true['parameters/image'] / 1e6:.2f} M parameters of the image side" in line
    assert f"{true['parameters/text'] / 1e6:.2f} M of the teacher's text tower" in line
    assert "among the 7 stored classes" in line
    assert "7 x 32 numbers" in line


def test_templates_and_class_names_are_part_of_what_the_stage_reads():
    plain, other = (
        reads(resolve("tiny", "promptkd_cls", f"evaluate.templates={t}"), "joint") for t in ("plain", "clip")
    )
    assert {name for name in plain if plain[name] != other[name]} == {"evaluate.templates"}
    assert "evaluate.classes" in plain
    assert "evaluate.templates" not in reads(resolve("tiny", "promptkd"), "joint")
    assert not any(name.startswith("method.bank") for name in plain)


def test_it_stands_in_table_2_after_the_retrieval_form():
    rows = list(SUITES["table2"])
    assert rows[rows.index("promptkd") + 1] == "promptkd_cls"
    assert BASELINES["promptkd_cls"]["method.weights.prompt"] == 1000.0


def test_the_stage_gives_it_the_teachers_features_of_the_datas_classes(tmp_path, tiny_shards, tiny_teacher, capsys):
    from cmapkd_core.request import Request
    from cmapkd_core.stages import train

    request = Request("tiny", str(tmp_path), ablation="promptkd_cls", overrides="optim.batch=29")
    url = train.run(request, stage="joint", shards=tiny_shards, teacher=tiny_teacher)
    assert "promptkd_cls: inference takes" in capsys.readouterr().out
    artifact, shards = Artifact.open(url), open_shards(Artifact.open(tiny_shards))
    teacher = load_model(Artifact.open(tiny_teacher).fetch_folder("model"))
    expected = class_embeddings(
        lambda texts: embed_texts(teacher, texts, 32, torch.device("cpu")),
        [(name,) for name in shards.classes],
        TEMPLATES["plain"],
    )
    assert torch.allclose(load_file(artifact.fetch("method.safetensors"))["classes"], expected, atol=1e-6)
    points = json.loads(artifact.fetch("history.json").read_text())["points"]
    assert all(point["terms"]["prompt"] > 0 for point in points)


@pytest.mark.parametrize("classes", [[], ["one"]])
def test_data_without_two_classes_are_refused(tiny_shards, tiny_models, classes):
    shards = open_shards(Artifact.open(tiny_shards))
    shards.classes = classes
    with pytest.raises(InputError, match=rf"promptkd_cls compares .* has {len(classes)}: give the source's rows"):
        class_features(tiny_models("tiny-teacher"), shards, resolve("tiny", "promptkd_cls"))
