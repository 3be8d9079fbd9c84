"""Our figures beside those of published evaluation code; `pytest -s` prints the differences."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cmapkd_core.config import ModelConfig
from cmapkd_core.evaluate.protocol import FOLD, FOLDS, measure
from cmapkd_core.evaluate.retrieval import KS
from cmapkd_core.evaluate.zeroshot import TEMPLATES, accuracy, class_embeddings
from cmapkd_core.models.build import build

torch.set_num_threads(1)


def differences(ours, theirs):
    """theirs - ours of every figure, printed."""
    found = {name: theirs[name] - ours[name] for name in theirs}
    print({name: f"{theirs[name]:.4f} ({difference:+.1e})" for name, difference in found.items()})
    return found


def pairs(seed, images=200, width=16):
    """Embeddings of images with one to seven captions each, none of them alike; rows (image, text)."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 8, (images,), generator=generator)
    owner = torch.arange(images).repeat_interleave(counts)
    image = F.normalize(torch.randn(images, width, generator=generator), dim=1)
    text = F.normalize(image[owner] + torch.randn(len(owner), width, generator=generator), dim=1)
    return image, text, torch.stack((owner, torch.arange(len(owner))), dim=1)


def clip_benchmark(image, text, owner):
    """R@k both ways as clip-benchmark's `evaluate` takes them from `recall_at_k`, in percent."""
    reference = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owner] = True
    found = {}
    for k in KS:
        found[f"t2i/R@{k}"] = 100 * (reference.recall_at_k(scores, positive, k) > 0).double().mean().item()
        found[f"i2t/R@{k}"] = 100 * (reference.recall_at_k(scores.T, positive.T, k) > 0).double().mean().item()
    return found


@pytest.mark.parametrize("seed", range(5))
def test_recall_is_clip_benchmarks(seed):
    image, text, rows = pairs(seed)
    metrics, _ = measure(image, text, rows)
    theirs = clip_benchmark(image, text, rows[:, 0])
    assert max(map(abs, differences(metrics, theirs).values())) < 1e-9
    alone = {name: metrics[f"per_caption/{name}"] for name in theirs}
    assert alone == pytest.approx(theirs, abs=1e-9)


def test_where_images_share_texts_the_counting_by_caption_is_clip_benchmarks_but_for_ties():
    """A text that stands under two images ties with its copy: `topk` gives it to either, ours to the wrong one."""
    image, text, rows = pairs(9)
    copies = torch.tensor([[1, 0], [2, 0], [150, 30], [151, 30]])
    rows = torch.cat([rows, copies])
    theirs = clip_benchmark(image, text[rows[:, 1]], rows[:, 0])
    metrics, _ = measure(image, text, rows)
    ours = {name: metrics[f"per_caption/{name}"] for name in theirs}
    found = differences(ours, theirs)
    assert all(-1e-9 <= difference <= 100 * len(copies) / len(image) for difference in found.values())
    assert {name: d for name, d in found.items() if name.startswith("t2i")} == pytest.approx(
        {f"t2i/R@{k}": 0 for k in KS}, abs=1e-9
    )


def coco_test():
    """COCO's 5000 test images of Karpathy's split with five captions each, by the ids that eccv-caption carries."""
    spec = find_spec("eccv_caption")
    if spec is None or spec.origin is None:
        pytest.skip("eccv-caption is not installed: pip install -e .[test]")
    folder = Path(spec.origin).parent / "data"
    captions = {
        int(i): texts for i, texts in json.loads((folder / "original_image_to_caption.json").read_text()).items()
    }
    order = {int(t): int(i[0]) for t, i in json.loads((folder / "original_caption_to_image.json").read_text()).items()}
    return captions, order


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:failed to import `ujson`")
def test_coco_5k_and_its_folds_are_eccv_captions():
    _, owner_of = coco_test()
    reference = pytest.importorskip("eccv_caption").Metrics()
    texts = [int(number) for number in reference.coco_ids]
    images = list(dict.fromkeys(owner_of[text] for text in texts))
    assert (len(images), len(texts)) == (FOLD * FOLDS, 25_000)
    place = {image: i for i, image in enumerate(images)}
    owner = torch.tensor([place[owner_of[text]] for text in texts])
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(len(images), 32, generator=generator), dim=1)
    text = F.normalize(image[owner] + 0.3 * torch.randn(len(texts), 32, generator=generator), dim=1)
    ours, _ = measure(image, text, torch.stack((owner, torch.arange(len(texts))), dim=1))
    deep = 400  # enough that every fold has its ten best in it
    i2t = {images[i]: [texts[t] for t in best] for i, best in enumerate((image @ text.T).topk(deep).indices.tolist())}
    t2i = {texts[t]: [images[i] for i in best] for t, best in enumerate((text @ image.T).topk(deep).indices.tolist())}
    theirs = {}
    for prefix, function in (("", reference.coco_5k_recalls), ("1k/", reference.coco_1k_recalls)):
        for k in KS:
            found = function({"i2t": i2t, "t2i": t2i}, modality="all", K=k)
            theirs |= {f"{prefix}{side}/R@{k}": 100 * float(found[side]) for side in ("i2t", "t2i")}
    # Of 25,000 captions one or two lie within `retrieval.TIE` of a wrong answer at the edge of the first k.
    assert all(-1e-9 <= difference <= 0.01 for difference in differences(ours, theirs).values())


@pytest.mark.parametrize("seed", range(3))
def test_zero_shot_accuracy_is_scikit_learns(seed):
    """clip-benchmark's mean_per_class_recall is scikit-learn's; its own top-k does not run with numpy 2.4."""
    reference = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(40, (500,), generator=generator)
    logits = torch.randn(500, 40, generator=generator) + 2 * F.one_hot(labels, 40)
    metrics, rows = accuracy(logits, labels, [str(i) for i in range(40)])
    theirs = {f"top{k}": 100 * reference.top_k_accuracy_score(labels, logits, k=k) for k in (1, 5)}
    theirs["per_class_top1"] = 100 * reference.balanced_accuracy_score(labels, logits.argmax(1))
    assert max(map(abs, differences(metrics, theirs).values())) < 1e-9
    assert sum(row["images"] for row in rows) == 500


def test_class_embeddings_are_open_clips_and_clip_benchmarks(tmp_path):
    from open_clip import OPENAI_IMAGENET_TEMPLATES, build_zero_shot_classifier

    backbone = build(ModelConfig("tiny-student", "random"), 0, tmp_path)
    classes = ["tench", "great white shark", "toilet paper"]

    def encode(texts):
        with torch.no_grad():
            return backbone.encode_text(backbone.tokenize(texts))

    ours = class_embeddings(encode, [(name,) for name in classes], TEMPLATES["clip"])
    theirs = build_zero_shot_classifier(backbone.model, backbone.tokenize, classes, OPENAI_IMAGENET_TEMPLATES).T
    print("largest difference to open_clip", (ours - theirs).abs().max().item())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    reference = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    prompts = [template.replace("{}", "{c}") for template in TEMPLATES["clip"]]
    theirs = reference.zero_shot_classifier(backbone.model, backbone.tokenize, classes, prompts, "cpu", amp=False).T
    print("largest difference to clip-benchmark", (ours - theirs).abs().max().item())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
