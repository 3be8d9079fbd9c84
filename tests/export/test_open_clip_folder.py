"""The folder opens in open_clip alone, in a process that never sees this package."""

import subprocess
import sys

import pytest
import torch

from cmapkd_core.export import Inexpressible, parity
from cmapkd_core.export.open_clip_folder import load, usage, write
from cmapkd_core.models.build import load_model
from cmapkd_core.models.compose import with_text_of
from cmapkd_core.models.headed import ImageHead

KINDS = ("plain", "foreign")
ALONE = """
import os, sys, torch
from PIL import Image
picture = Image.open("picture.png")
"""
OF_A_KIND = """
def say():
{code}
    return torch.cat([image, text])
os.chdir({folder!r})
with torch.inference_mode():
    torch.save(say(), "found.pt")
"""
AT_THE_END = 'assert not [name for name in sys.modules if name.startswith("cmapkd")], "cmapkd was imported"\n'


@pytest.fixture
def found(request, pictures, tmp_path) -> dict[str, torch.Tensor]:
    """What each kind's folder says, by its own usage text and in one process."""
    program = ALONE
    pictures[0].save(tmp_path / "picture.png")
    for kind in KINDS:
        student, folder = request.getfixturevalue(kind), tmp_path / kind
        write(student, folder / "open_clip")
        code = "\n".join(f"    {line}" for line in usage(student).splitlines())
        program += OF_A_KIND.format(folder=str(folder), code=code)
    subprocess.run([sys.executable, "-c", program + AT_THE_END], cwd=tmp_path, check=True, timeout=300)
    return {kind: torch.load(tmp_path / kind / "found.pt", weights_only=True) for kind in KINDS}


@pytest.mark.heavy
def test_the_same_embeddings_in_a_process_of_its_own(request, found, pictures, embed):
    for kind in KINDS:
        expected = embed(request.getfixturevalue(kind), pictures[0], "a caption")
        torch.testing.assert_close(found[kind][0], expected[0], atol=1e-5, rtol=0, msg=kind)
        torch.testing.assert_close(found[kind][1], expected[1], msg=kind)


@pytest.mark.parametrize("kind", ["plain", "quick", "foreign"])
def test_bounds(kind, request, given, tmp_path):
    student = request.getfixturevalue(kind)
    write(student, tmp_path)
    found = parity.measure(load(tmp_path), given(student))
    parity.check("open_clip", found)
    assert found["captions_otherwise"] == []
    assert found["levels"] < 1e-3  # open_clip's own pixels
    assert found["preprocessing"]["max_difference"] < 1e-5


def test_a_lift_that_open_clip_lacks_gives_a_reason_and_keeps_the_folder(lifted, tmp_path):
    write(lifted, tmp_path)
    with pytest.raises(Inexpressible, match=r"no image tower with a lift on it; .*load_model opens the folder"):
        load(tmp_path)
    assert load_model(tmp_path).spec == lifted.spec


def test_a_head_that_open_clip_lacks_gives_a_reason_and_keeps_the_folder(plain, quick, tmp_path):
    composed = with_text_of(plain, ImageHead(plain.spec.embed_dim, quick.spec.embed_dim), quick)
    write(composed, tmp_path)
    with pytest.raises(Inexpressible, match="no image tower with a trained head"):
        load(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
