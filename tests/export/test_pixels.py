"""Every export prepares pictures as its student was evaluated, whatever resize mode and interpolation it has."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cmapkd_core.config import RESIZE_MODES, ModelConfig
from cmapkd_core.data.augment import View, eval_view
from cmapkd_core.export import ParityError, huggingface, onnx, open_clip_folder, parity, preprocess
from cmapkd_core.models.build import build
from cmapkd_core.models.named import CONFIGS

KINDS = [(mode, how) for mode in RESIZE_MODES for how in ("bicubic", "bilinear")]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def student(request, tmp_path_factory):
    """The tiny student with another resize mode and interpolation, and a grey to fill with."""
    mode, how = request.param
    folder = tmp_path_factory.mktemp("config")
    told = json.loads((CONFIGS / "tiny-student.json").read_text())
    told["preprocess_cfg"] |= {"resize_mode": mode, "interpolation": how, "fill_color": 90}
    (folder / "own.json").write_text(json.dumps(told))
    return build(ModelConfig(str(folder / "own.json"), "random"), 0, folder)


def test_open_clips_pixels(student, given, tmp_path):
    open_clip_folder.write(student, tmp_path)
    found = parity.measure(open_clip_folder.load(tmp_path), given(student))
    parity.check("open_clip", found)
    assert found["levels"] < 1e-3


def test_transformers_pixels(student, given, tmp_path):
    if student.identity.resize_mode == "longest":
        assert huggingface.obstacles(student.config) == ["preprocess_cfg.resize_mode=longest"]
        return
    huggingface.write(student, tmp_path / "hf")
    parity.check("huggingface", parity.measure(huggingface.load(tmp_path / "hf"), given(student)))


def test_the_pixels_beside_the_graphs(student):
    """preprocess.py, which needs neither this package nor torch, bit for bit."""
    settings, view = onnx._settings(student), View.of(student.identity.plain())
    for width, height in ((48, 33), (20, 64), (300, 90), (9, 8)):
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        found = preprocess.pixels(Image.fromarray(noise), settings)
        assert np.abs(found[0] - eval_view(Image.fromarray(noise), view).numpy()).max() < 1e-5


@pytest.mark.parametrize(
    "change",
    [{"resample": 2}, {"do_center_crop": False, "size": {"height": 32, "width": 32}}, {"image_mean": [0.4] * 3}],
)
def test_other_pixels_are_noticed(change, plain, given, tmp_path):
    huggingface.write(plain, tmp_path / "hf")
    file = tmp_path / "hf" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ParityError, match="prepares pictures otherwise than the student does: .* grey levels of 255"):
        parity.check("huggingface", parity.measure(huggingface.load(tmp_path / "hf"), given(plain)))


def test_the_settings_say_what_the_model_is(tmp_path):
    told = json.loads((CONFIGS / "tiny-student.json").read_text()) | {"custom_text": True, "init_logit_bias": -10}
    (tmp_path / "biased.json").write_text(json.dumps(told))
    biased = build(ModelConfig(str(tmp_path / "biased.json"), "random"), 0, tmp_path)
    plain = build(ModelConfig("tiny-student", "random"), 0, tmp_path)
    assert (onnx._settings(biased)["logit_bias"], onnx._settings(plain)["logit_bias"]) == (-10.0, 0.0)
    assert onnx._settings(plain)["activations"] == {"image": "gelu", "text": "gelu"}
    size = biased.spec.image_size
    _, _, scale, bias = biased.model(torch.zeros(1, 3, size, size), biased.tokenize(["a"]))  # as open_clip scores
    settings = onnx._settings(biased)
    assert (scale.item(), bias.item()) == pytest.approx((settings["scale"], settings["logit_bias"]))
