"""Every kind of tower: embeddings are open_clip's own, taps lie on the way to them, masks end with the caption."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast, RobertaConfig

from cmapkd_core import storage
from cmapkd_core.config import ModelConfig
from cmapkd_core.errors import InputError
from cmapkd_core.models.backbones import Backbone
from cmapkd_core.models.build import build, load_model, save_model
from cmapkd_core.models.vision_towers import quarters

CAPTIONS = ["a dog", "two cats on a red mat", "sky"]
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 4}
VIT = {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 8}


def timm(name: str, **more: object) -> dict[str, object]:
    return {"image_size": 64, "timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear", **more}


def hugging_face(kind: str, pooler: str) -> dict[str, object]:
    names = {"hf_model_name": kind, "hf_tokenizer_name": kind, "hf_pooler_type": pooler, "hf_proj_type": "mlp"}
    return {"context_length": 12, **names}


CASES: dict[str, dict[str, object]] = {
    "vit": {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "vit-avg": {"vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True}, "text_cfg": TEXT},
    "resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}, "text_cfg": TEXT},
    "siglip": {
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": timm("vit_tiny_patch16_224", timm_pool="map", timm_proj="none"),
        "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        "embed_dim": 192,
    },
    "eos": {"custom_text": True, "vision_cfg": VIT, "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407}},
    "classifier": {"vision_cfg": timm("mobilenetv3_small_050", timm_proj=""), "text_cfg": TEXT},
    "channels-last": {
        "vision_cfg": timm("swin_tiny_patch4_window7_224", image_size=56, timm_proj="mlp"),
        "text_cfg": TEXT,
    },
    "attention-pool": {
        "vision_cfg": timm("resnet18", timm_pool="abs_attn", timm_proj="", image_size=224),
        "text_cfg": TEXT,
    },
    "bert": {"vision_cfg": VIT, "text_cfg": hugging_face("bert", "mean_pooler")},
    "bert-cls": {"vision_cfg": VIT, "text_cfg": hugging_face("bert", "cls_pooler")},
    "roberta": {"vision_cfg": VIT, "text_cfg": hugging_face("roberta", "mean_pooler")},
}


def write_tokenizer(folder: Path, pad: int) -> None:
    """A word-level tokenizer whose pad token has the id that the architecture expects."""
    special = ["<pad>", "<s>"] if pad == 0 else ["<s>", "<pad>"]
    words = [*special, "</s>", "<unk>", *sorted({word for text in CAPTIONS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, words.index(word)) for word in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


def write_case(folder: Path, name: str) -> str:
    """The case's config file, with the folders that it names beside it."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 6, "intermediate_size": 32}
    for kind, config, pad in (("bert", BertConfig, 0), ("roberta", RobertaConfig, 1)):
        config(**sizes, vocab_size=32, max_position_embeddings=16).save_pretrained(folder / kind)
        write_tokenizer(folder / kind, pad)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"embed_dim": 16, **CASES[name]}))
    return str(path)


@pytest.fixture(scope="module", params=list(CASES))
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    return build(ModelConfig(write_case(folder, request.param), "random"), seed=0, cache=folder)


def batch(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    size = backbone.spec.image_size
    images = torch.randn(len(CAPTIONS), 3, size, size, generator=torch.Generator().manual_seed(0))
    return images, backbone.tokenize(CAPTIONS)


def test_embeddings_are_open_clips(backbone: Backbone) -> None:
    images, tokens = batch(backbone)
    with torch.no_grad():
        vision, text = backbone.vision(images), backbone.text(tokens)
        assert torch.equal(vision.embedding, backbone.encode_image(images))
        assert torch.equal(text.embedding, backbone.encode_text(tokens))
        assert torch.equal(vision.embedding, backbone.model.encode_image(images, normalize=True))
        torch.testing.assert_close(text.embedding, backbone.model.encode_text(tokens, normalize=True))
        assert torch.equal(backbone.project_image(vision.pooled), vision.embedding)
        assert torch.equal(backbone.project_text(text.pooled), text.embedding)
    torch.testing.assert_close(vision.embedding.norm(dim=1), torch.ones(len(CAPTIONS)))


def test_spec_describes_the_features(backbone: Backbone) -> None:
    images, tokens = batch(backbone)
    vision, text, spec = backbone.vision(images), backbone.text(tokens), backbone.spec
    count = len(CAPTIONS)
    assert tokens.shape == (count, spec.context_length)
    assert [t.shape for t in vision.taps] == [
        (count, width, side, side) for width, side in zip(spec.vision_widths, spec.vision_grids, strict=True)
    ]
    assert text.mask is not None
    assert [t.shape for t in text.taps] == [(*text.mask.shape, width) for width in spec.text_widths]
    assert vision.pooled.shape == (count, spec.vision_pooled)
    assert text.pooled.shape == (count, spec.text_pooled)
    assert vision.embedding.shape == text.embedding.shape == (count, spec.embed_dim)
    assert vision.mask is None


def test_taps_lie_between_the_parameters_and_the_embedding(backbone: Backbone) -> None:
    images, tokens = batch(backbone)
    for features, tower in ((backbone.vision(images), "visual"), (backbone.text(tokens), "")):
        weight = torch.randn(features.embedding.shape, generator=torch.Generator().manual_seed(1))
        assert all(
            gradient is not None
            for gradient in torch.autograd.grad((features.embedding * weight).sum(), features.taps, retain_graph=True)
        )
        for tap in features.taps:
            backbone.zero_grad()
            (tap * torch.randn_like(tap)).sum().backward(retain_graph=True)
            named = backbone.model.named_parameters()
            assert any(p.grad is not None and p.grad.any() for name, p in named if name.startswith(tower))


def test_every_position_of_the_last_map_has_an_embedding_of_its_own(backbone: Backbone) -> None:
    images, _ = batch(backbone)
    with torch.no_grad():
        maps = backbone.final_map(backbone.vision(images))
        patches = backbone.project_map(maps)
    side = maps.shape[-1]
    assert maps.shape[2] == side > 1
    assert patches.shape == (len(CAPTIONS), side * side, backbone.spec.embed_dim)
    torch.testing.assert_close(patches.norm(dim=2), torch.ones(patches.shape[:2]))
    with torch.no_grad():  # rows first, and no position depends on another
        moved = backbone.project_map(maps.roll(1, dims=3)).unflatten(1, (side, side))
    torch.testing.assert_close(moved, patches.unflatten(1, (side, side)).roll(1, dims=2))


def test_before_names_what_a_tap_depends_on(backbone: Backbone) -> None:
    depends = [backbone.before(tap) for tap in range(4)]
    assert depends[0] < depends[1] < depends[2] <= depends[3]
    everything = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert depends[3] < everything  # heads and the scale come after
    assert not backbone.training
    parameters = dict(backbone.named_parameters())
    heads = {id(p) for p in backbone.heads()}
    assert not any(id(parameters[name]) in heads for name in depends[1])


def test_mask_ends_with_the_caption(backbone: Backbone) -> None:
    mask = backbone.text(backbone.tokenize(CAPTIONS)).mask
    assert mask is not None
    assert mask.dtype == torch.bool
    # "a dog" is two words and "sky" one, plus start and end
    assert mask.sum(dim=1).tolist() == [4, 8, 3]
    assert (mask.int().diff(dim=1) <= 0).all()


def test_a_caption_does_not_depend_on_its_neighbours(backbone: Backbone) -> None:
    together = backbone.text(backbone.tokenize(CAPTIONS)).embedding
    alone = torch.cat([backbone.text(backbone.tokenize([caption])).embedding for caption in CAPTIONS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_heads_and_scale(backbone: Backbone) -> None:
    heads = backbone.heads()
    assert heads[-1] is backbone.model.logit_scale
    assert len({id(p) for p in heads}) == len(heads)
    assert backbone.scale().shape == ()
    assert backbone.scale().item() == pytest.approx(1 / 0.07)


def test_every_trainable_parameter_gets_a_gradient(backbone: Backbone) -> None:
    images, tokens = batch(backbone)
    backbone.zero_grad()
    logits = backbone.scale() * backbone.vision(images).embedding @ backbone.text(tokens).embedding.T
    torch.nn.functional.cross_entropy(logits, torch.arange(len(CAPTIONS))).backward()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


def test_saved_folder_gives_the_same_bits(backbone: Backbone, tmp_path: Path) -> None:
    images, tokens = batch(backbone)
    save_model(backbone, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.spec == backbone.spec
    assert torch.equal(loaded.tokenize(CAPTIONS), tokens)
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(images), backbone.encode_image(images))
        assert torch.equal(loaded.encode_text(tokens), backbone.encode_text(tokens))


def test_tokenizer_travels_to_workers(backbone: Backbone) -> None:
    copied = pickle.loads(pickle.dumps(backbone.tokenize))
    assert torch.equal(copied(CAPTIONS), backbone.tokenize(CAPTIONS))


def test_taps_of_a_vit_are_those_of_open_clip(tmp_path: Path) -> None:
    vit = build(ModelConfig(write_case(tmp_path, "vit"), "random"), 0, tmp_path)
    images, tokens = batch(vit)
    assert isinstance(vit.model, CLIP)
    expected = vit.model.forward_intermediates(images, tokens, image_indices=[1, 3, 5, 7], text_indices=[0, 1, 2, 3])
    for ours, theirs in zip(vit.vision(images).taps, expected["image_intermediates"], strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(vit.text(tokens).taps, expected["text_intermediates"], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["channels-last", "classifier", "siglip"])
def test_taps_of_timm_towers_are_those_of_timm(name: str, tmp_path: Path) -> None:
    model = build(ModelConfig(write_case(tmp_path, name), "random"), 0, tmp_path)
    images, _ = batch(model)
    trunk = model.model.visual.trunk
    every = trunk.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    for ours, index in zip(model.vision(images).taps, quarters(len(every)), strict=True):
        assert torch.equal(ours, every[index])


def test_a_cut_caption_is_masked_to_its_end(tmp_path: Path) -> None:
    for name in ("vit", "siglip", "eos", "roberta"):
        model = build(ModelConfig(write_case(tmp_path, name), "random"), 0, tmp_path)
        mask = model.text(model.tokenize(["dog " * 100])).mask
        assert mask is not None
        assert mask.sum() == model.spec.context_length


def test_quarters() -> None:
    assert quarters(12) == [2, 5, 8, 11]
    assert quarters(24) == [5, 11, 17, 23]
    assert quarters(5) == [1, 2, 3, 4]  # an EfficientNet's stages: strides 4, 8, 16, 32
    assert quarters(3) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"vision_cfg": {**VIT, "image_size": [32, 64]}, "text_cfg": TEXT}, "not square"),
        ({"vision_cfg": VIT, "text_cfg": TEXT, "multimodal_cfg": {}}, "CoCa"),
        ({"vision_cfg": {**VIT, "witdh": 8}, "text_cfg": TEXT}, "witdh"),
        ({"vision_cfg": timm("no_such_model"), "text_cfg": TEXT}, "no_such_model"),
        (
            {"vision_cfg": VIT, "text_cfg": {**hugging_face("bert", "mean_pooler"), "context_length": 17}},
            "16 positions",
        ),
        ({"vision_cfg": VIT, "text_cfg": {**hugging_face("roberta", "mean_pooler"), "context_length": 15}}, "14 pos"),
    ],
)
def test_models_that_cannot_serve_are_refused(config: dict[str, object], reason: str, tmp_path: Path) -> None:
    write_case(tmp_path, "vit")
    (tmp_path / "bad.json").write_text(json.dumps({"embed_dim": 16, **config}))
    with pytest.raises(InputError, match=reason):
        build(ModelConfig(str(tmp_path / "bad.json"), "random"), 0, tmp_path)


def test_patch_dropout_has_no_maps(tmp_path: Path) -> None:
    config = {"embed_dim": 16, "vision_cfg": {**VIT, "patch_dropout": 0.5}, "text_cfg": TEXT}
    (tmp_path / "dropout.json").write_text(json.dumps(config))
    model = build(ModelConfig(str(tmp_path / "dropout.json"), "random"), 0, tmp_path)
    with pytest.raises(InputError, match="square map"):
        model.train().vision(torch.zeros(1, 3, 32, 32))


def test_config_text_files_and_weights_on_s3(s3_root: str, tmp_path: Path) -> None:
    local = build(ModelConfig(write_case(tmp_path, "roberta"), "random"), 5, tmp_path)
    save_model(local, tmp_path / "model")
    for path in (
        tmp_path / "roberta.json",
        tmp_path / "model" / "model.safetensors",
        *(tmp_path / "roberta").iterdir(),
    ):
        storage.put(path, storage.join(s3_root, path.relative_to(tmp_path).as_posix()))
    config = ModelConfig(storage.join(s3_root, "roberta.json"), storage.join(s3_root, "model/model.safetensors"))
    remote = build(config, 0, tmp_path / "cache")
    tokens = local.tokenize(CAPTIONS)
    assert torch.equal(remote.tokenize(CAPTIONS), tokens)
    assert torch.equal(remote.encode_text(tokens), local.encode_text(tokens))
    with pytest.raises(InputError, match=r"no model config s3://.*/absent\.json"):
        build(ModelConfig(storage.join(s3_root, "absent.json"), "random"), 0, tmp_path)


def gradients(towers: Backbone) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of a loss on embeddings and taps, and of another one at the first taps alone; and all buffers after it."""
    size = towers.spec.image_size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(2)  # of dropout
    vision, text = towers.train().vision(images), towers.text(towers.tokenize(CAPTIONS))
    taps = [tap.square().mean() for side in (vision, text) for tap in side.taps]
    roots = [vision.taps[0], text.taps[0]]
    goal = (vision.embedding * text.embedding).sum()
    twice = [torch.autograd.grad(goal, roots, retain_graph=True) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*twice, strict=True))
    (goal + torch.stack(taps).sum()).backward()
    found = {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}
    towers.zero_grad()
    return found | {"image": twice[0][0], "text": twice[0][1]}, dict(towers.named_buffers())


def test_blocks_that_run_again_have_the_same_gradients_and_count_a_batch_once(backbone):
    """To the bit: dropout draws the same, and running statistics see a batch once."""
    plain, again = copy.deepcopy(backbone), copy.deepcopy(backbone)
    again.checkpoint_blocks()
    (ours, buffers), (expected, counted) = gradients(again), gradients(plain)
    assert ours.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(x, ours[name]), name
    for name, x in counted.items():
        assert torch.equal(x, buffers[name]), name
    assert not any("forward" in vars(module) for module in again.modules())


def test_most_of_what_is_kept_for_the_gradient_is_not_kept(backbone):
    def kept(towers: Backbone) -> int:
        held: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        size = towers.spec.image_size
        own = {x.untyped_storage().data_ptr() for x in [*towers.parameters(), *towers.buffers()]}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            found = towers.train().vision(torch.randn(3, 3, size, size)), towers.text(towers.tokenize(CAPTIONS))
        assert all(side.embedding.requires_grad for side in found)
        return sum(count for place, count in held.items() if place not in own)

    plain, again = copy.deepcopy(backbone), copy.deepcopy(backbone)
    again.checkpoint_blocks()
    assert kept(again) < 0.6 * kept(plain)  # of a ResNet the stem keeps most


def test_a_tower_without_a_list_of_layers_is_named(tmp_path):
    towers = build(ModelConfig(write_case(tmp_path, "bert"), "random"), seed=0, cache=tmp_path)
    towers.model.text.config.num_hidden_layers = 7
    with pytest.raises(
        InputError, match=r"runtime\.grad_checkpointing=true: the text tower BertModel has no list of 7"
    ):
        towers.checkpoint_blocks()


def test_frozen_quarters_are_as_at_inference_while_what_is_above_is_trained(backbone: Backbone) -> None:
    images, tokens = batch(backbone)
    with torch.no_grad():
        before = [side.taps[1] for side in (backbone.vision(images), backbone.text(tokens))]
    student = copy.deepcopy(backbone)
    student.freeze(2)
    student.train()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in student.frozen and name != "model.logit_bias")
    sides = student.vision(images), student.text(tokens)
    for side, tap in zip(sides, before, strict=True):
        torch.testing.assert_close(side.taps[1], tap)
        assert not side.taps[1].requires_grad
        assert side.root is side.taps[2]
        assert side.root.requires_grad or torch.equal(side.root, tap)  # the same block, in a tower of three
    (student.scale() * sum((side.embedding * side.embedding.roll(1, 0)).sum() for side in sides)).backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    moved = {name for name, x in student.named_buffers() if not torch.equal(x, backbone.get_buffer(name))}
    assert bool(moved) is any("running" in name for name, _ in student.named_buffers())
    student.eval()
    with torch.no_grad():
        torch.testing.assert_close(student.vision(images).taps[1], before[0])
    student.freeze(0)
    assert student.train().frozen == frozenset()
    assert all(module.training for module in student.modules())
