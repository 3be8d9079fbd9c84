"""Both towers in ONNX Runtime: the same embeddings whatever the batch, or a reason."""

import json

import onnxruntime
import pytest
import torch
from torch import nn

from cmapkd_core.export import Inexpressible, parity
from cmapkd_core.export.onnx import load, write
from cmapkd_core.export.quiet import quiet


@pytest.fixture(
    scope="module", params=["plain", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("foreign", "lifted"))]
)
def written(request, tmp_path_factory):
    """A student and its folder; translating takes seconds."""
    torch.set_num_threads(1)
    student, folder = request.getfixturevalue(request.param), tmp_path_factory.mktemp(request.param) / "onnx"
    with quiet():
        write(student, folder)
    return student, folder


def test_the_same_embeddings(written, given):
    student, folder = written
    found = parity.measure(load(folder), given(student))
    parity.check("onnx", found)
    assert found["captions_otherwise"] == []
    assert found["image"]["max_difference"] < 1e-5
    assert found["text"]["max_difference"] < 1e-5


def test_the_batch_is_free_and_embeddings_have_unit_norm(written):
    student, folder = written
    towers, size = load(folder), student.spec.image_size
    for batch in (1, 5):
        for found in (
            towers.image(torch.randn(batch, 3, size, size)),
            towers.text(student.tokenize(["a cat"] * batch)),
        ):
            assert found.shape == (batch, student.spec.embed_dim)
            torch.testing.assert_close(found.norm(dim=-1), torch.ones(batch))


def test_what_a_program_needs_is_beside_the_graphs(written):
    student, folder = written
    settings = json.loads((folder / "towers.json").read_text())
    assert settings["image_size"] == student.spec.image_size
    assert settings["mean"] == list(student.identity.mean)
    assert settings["scale"] == pytest.approx(student.scale().item())
    session = onnxruntime.InferenceSession(str(folder / "text.onnx"))
    assert [node.name for node in session.get_inputs()] == ["tokens"]
    assert [node.name for node in session.get_outputs()] == ["text_embedding"]
    assert session.get_inputs()[0].shape == ["batch", student.spec.context_length]


def test_a_graph_holds_one_tower_alone(written):
    student, folder = written
    image = sum(x.numel() * x.element_size() for x in student.model.visual.state_dict().values())
    every = sum(x.numel() * x.element_size() for x in student.model.state_dict().values())
    allowance = 1_000_000  # the graph itself
    assert (folder / "image.onnx").stat().st_size < image + allowance
    assert (folder / "text.onnx").stat().st_size < every - image + allowance


class Unusual(nn.Module):
    """Looks at values, as no graph can."""

    def forward(self, images):
        return images.flatten(1)[:, :24] * (2.0 if images.sum().item() > 0 else 1.0)


def test_a_tower_that_cannot_be_translated_gives_a_reason(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(plain.model._modules, "visual", Unusual())
    with quiet(), pytest.raises(Inexpressible, match=r"cannot translate the tower of image\.onnx"):
        write(plain, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
