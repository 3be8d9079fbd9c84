"""The folder opens in open_clip alone, in a process that never sees this package."""

import subprocess
import sys

import pytest
import torch

from cmapkd_core.export import Inexpressible, parity
from cmapkd_core.export.open_clip_folder import load, usage, write
from cmapkd_core.models.compose import with_text_of
from cmapkd_core.models.headed import ImageHead

ALONE = """
import sys, torch
from PIL import Image
picture = Image.open("picture.png")
with torch.inference_mode():
{code}
assert not [name for name in sys.modules if name.startswith("cmapkd")], "cmapkd was imported"
torch.save(torch.cat([image, text]), "found.pt")
"""


@pytest.mark.parametrize("kind", ["plain", "foreign"])
def test_the_same_embeddings_in_a_process_of_its_own(kind, request, pictures, embed, tmp_path):
    student, picture = request.getfixturevalue(kind), pictures[0]
    write(student, tmp_path / "open_clip")
    picture.save(tmp_path / "picture.png")
    code = "\n".join(f"    {line}" for line in usage(student).splitlines())
    subprocess.run([sys.executable, "-c", ALONE.format(code=code)], cwd=tmp_path, check=True, timeout=300)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    expected = embed(student, picture, "a caption")
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("kind", ["plain", "quick", "foreign"])
def test_bounds(kind, request, given, tmp_path):
    student = request.getfixturevalue(kind)
    write(student, tmp_path)
    found = parity.measure(load(tmp_path), given(student))
    parity.check("open_clip", found)
    assert found["captions_otherwise"] == []
    assert found["levels"] < 1e-3  # open_clip's own pixels
    assert found["preprocessing"]["max_difference"] < 1e-5


def test_a_head_that_open_clip_lacks_gives_a_reason_and_keeps_the_folder(plain, quick, tmp_path):
    composed = with_text_of(plain, ImageHead(plain.spec.embed_dim, quick.spec.embed_dim), quick)
    write(composed, tmp_path)
    with pytest.raises(Inexpressible, match="no image tower with a trained head"):
        load(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
