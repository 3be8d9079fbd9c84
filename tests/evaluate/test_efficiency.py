"""What a model costs: FLOPs against known figures, memory of allocations one knows, and the task itself."""

import json
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from cmapkd_core.catalog import EVALUATIONS
from cmapkd_core.config import EfficiencyConfig, EvaluateConfig, ModelConfig
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError
from cmapkd_core.evaluate import Subject, count_parameters
from cmapkd_core.evaluate.efficiency import disk_bytes, run_efficiency, towers_of
from cmapkd_core.evaluate.measure import flops, memory_rise, quartiles, timed
from cmapkd_core.models.architecture import read_architecture
from cmapkd_core.models.build import build, save_model
from cmapkd_core.models.compose import with_text_of
from cmapkd_core.models.construct import construct
from cmapkd_core.models.headed import ImageHead
from cmapkd_core.places import evaluation_url, reads_data
from cmapkd_core.recipes import resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate, prepare
from cmapkd_core.stages.artifact import Artifact

torch.set_num_threads(1)
CPU, META = torch.device("cpu"), torch.device("meta")
FAST = EfficiencyConfig(batches=(1, 3), warmup=0, repeats=2)


def subject_of(backbone, tmp_path, config=FAST, said=None):
    shards = ShardSet("", tmp_path, {"classes": [], "max_pixels": 0, "splits": {}}, {})
    settings = EvaluateConfig(efficiency=config)
    say = (lambda line: None) if said is None else said.append
    return Subject(backbone, shards, settings, 0, CPU, tmp_path, say)


def cost(tower, n=1):
    """FLOPs of a batch of n."""
    return flops(partial(tower.encode, tower.inputs(n)))


# Parameters in millions and GFLOPs, 2 a multiply-add: open_clip's docs/model_profile.csv.
@pytest.mark.parametrize(
    ("name", "image", "text"),
    [("ViT-B-16", (86.19, 35.13), (63.43, 5.96)), ("ViT-L-14", (303.97, 162.03), (123.65, 13.30))],
)
def test_the_papers_models_cost_what_is_known_of_them(name, image, text, tmp_path):
    architecture = read_architecture(name)
    with META:  # sizes without weights
        backbone = construct(name, architecture.config, architecture.files, 0)
        towers = towers_of(backbone, META)
        found = [(tower.parameters / 1e6, cost(tower) / 1e9) for tower in towers]
    print(name, found)
    assert found == [pytest.approx(image, rel=5e-3), pytest.approx(text, rel=5e-3)]
    assert found[0][0] == pytest.approx(image[0], abs=0.006)
    assert found[0][1] == pytest.approx(image[1], abs=0.006)


def test_attention_counts_its_matrix_products_also_where_they_are_fused():
    b, n, d = 2, 10, 16
    attention, x = nn.MultiheadAttention(d, 4, batch_first=True).eval(), torch.randn(b, n, d)
    fast = torch.backends.mha.get_fastpath_enabled()
    found = flops(lambda: attention(x, x, x, need_weights=False))
    assert found == b * (2 * n * d * 3 * d + 2 * n * n * d * 2 + 2 * n * d * d)  # q, k, v; two products; the output
    assert torch.backends.mha.get_fastpath_enabled() is fast


def test_a_learned_query_counts_its_attention(tmp_path):
    """SigLIP pools with one: an input of a module that is a parameter."""
    text = {"context_length": 12, "width": 16, "heads": 2, "layers": 4}
    vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"}
    (tmp_path / "own.json").write_text(json.dumps({"embed_dim": 192, "vision_cfg": vision, "text_cfg": text}))
    architecture = read_architecture(str(tmp_path / "own.json"))
    with META:
        image, _ = towers_of(construct("own", architecture.config, {}, 0), META)
        found = cost(image)
    n, t, d = 196, 197, 192  # patches; tokens of the blocks, this tower's CLS among them
    blocks = 12 * (2 * t * d * d * 12 + 2 * t * t * d * 2)
    pool = 2 * d * d * 2 + 2 * n * d * 2 * d + 2 * n * d * 2 + 2 * d * 4 * d * 2  # query, output; k, v; products; MLP
    assert found == 2 * n * d * 3 * 16 * 16 + blocks + pool


def test_convolutions_in_groups_count_what_they_compute():
    x = torch.randn(1, 8, 6, 6)
    assert flops(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8)(x)) == 2 * 8 * 9 * 36
    assert flops(lambda: nn.Conv2d(8, 4, 1)(x)) == 2 * 8 * 4 * 36


@pytest.mark.parametrize("name", ["tiny-student", "tiny-teacher", "lite0-minilm3"])
def test_the_same_model_costs_the_same_with_weights_and_per_image(name, tmp_path):
    backbone = build(ModelConfig(name, "random"), 0, tmp_path)
    for tower in towers_of(backbone, CPU):
        one = cost(tower)
        assert cost(tower, 4) == 4 * one
        linear = 2 * tower.parameters  # a lookup's or a depthwise filter's parameters count otherwise
        assert one > 0.02 * linear


def test_a_hugging_face_tower_is_measured_on_a_caption_that_fills_its_context(tmp_path):
    backbone = build(ModelConfig("lite0-minilm3", "random"), 0, tmp_path)
    image, text = towers_of(backbone, CPU)
    assert text.inputs(2).shape == (2, backbone.spec.context_length)
    layers, d, n = 3, 384, backbone.spec.context_length
    blocks = layers * (2 * n * d * d * 12 + 2 * n * n * d * 2)  # q, k, v, o and the MLP of 4 d; attention
    assert cost(text) == pytest.approx(blocks, rel=0.02)  # and the projection
    assert image.inputs(1).shape[-1] == backbone.spec.image_size


def test_memory_rises_by_what_a_call_holds_at_once_every_time():
    def call():
        first = torch.ones(25_000_000)
        second = first + 1
        del first
        return second + 1

    rises = [memory_rise(call, CPU) for _ in range(3)]
    if rises[0] is None:
        pytest.skip("this system keeps no mark of its peak")
    print("MB", [rise / 1e6 for rise in rises])
    assert rises == [pytest.approx(200e6, rel=0.03)] * 3
    assert memory_rise(lambda: torch.ones(10), CPU) < 2e6


def test_only_calls_after_the_warm_up_are_timed():
    calls = []
    taken = timed(lambda: calls.append(1) or (time.sleep(0.05) if len(calls) <= 2 else None), CPU, warmup=2, repeats=5)
    assert len(calls) == 7
    assert len(taken) == 5
    assert min(one.clock for one in taken) < 0.05
    (asleep,) = timed(lambda: time.sleep(0.05), CPU, warmup=0, repeats=1)
    assert asleep.clock >= 0.05 > asleep.processor
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([1.0]) == (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return build(ModelConfig("tiny-student", "random"), 0, tmp_path_factory.mktemp("models"))


def test_the_outcome_has_every_figure_and_says_how_it_was_found(student, tmp_path):
    said = []
    outcome = run_efficiency(subject_of(student, tmp_path, said=said))
    per_tower = ("parameters", "gflops", "latency_ms/b1", "latency_ms/b3", "throughput/b1", "throughput/b3")
    names = {f"{tower}/{name}" for tower in ("image", "text") for name in per_tower}
    wanted = names | {"total/parameters", "total/gflops", "disk_mb", "peak_memory_mb"}
    assert set(outcome.metrics) | {"peak_memory_mb"} == wanted
    assert all(value > 0 for value in outcome.metrics.values())
    counts = count_parameters(student)
    assert outcome.metrics["image/parameters"] == counts["parameters/image"]
    assert outcome.metrics["total/parameters"] == sum(counts.values())
    assert outcome.metrics["image/throughput/b3"] == pytest.approx(3e3 / outcome.metrics["image/latency_ms/b3"])
    detail = json.loads(json.dumps(outcome.detail))
    assert detail["environment"]["threads"] == 1
    assert {"device", "torch", "precision", "load_average"} <= set(detail["environment"])
    assert "multiply-add" in detail["flops"]["convention"]
    assert "FlopCounterMode" in detail["flops"]["tool"]
    times = detail["towers"]["image"]["batches"]["b3"]["latency_ms"]
    assert times["fastest"] <= times["first_quartile"] <= times["median"] <= times["third_quartile"]
    assert any("multiply-add" in line for line in said)


def test_the_size_on_disk_is_that_of_the_folder(student, tmp_path):
    save_model(student, tmp_path)
    assert disk_bytes(student) == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    weights = sum(x.numel() * x.element_size() for x in student.model.state_dict().values())
    assert weights < disk_bytes(student) < weights + 200_000


def test_a_composed_model_pays_for_its_head_and_the_other_models_text_tower(student, tmp_path):
    teacher = build(ModelConfig("tiny-teacher", "random"), 0, tmp_path)
    head = ImageHead(student.spec.embed_dim, teacher.spec.embed_dim)
    composed = with_text_of(student, head, teacher)
    ours, theirs, true = ([cost(t) for t in towers_of(m, CPU)] for m in (student, teacher, composed))
    linear = sum(p.numel() for p in head.parameters() if p.dim() == 2)
    assert true == [ours[0] + 2 * linear, theirs[1]]


@pytest.mark.parametrize("config", [{"batches": ()}, {"batches": (0,)}, {"repeats": 0}, {"warmup": -1}])
def test_a_configuration_that_measures_nothing_is_refused(student, tmp_path, config):
    with pytest.raises(InputError, match="evaluate.efficiency measures nothing"):
        run_efficiency(subject_of(student, tmp_path, EfficiencyConfig(**{**vars(FAST), **config})))


SETTINGS = "evaluate.efficiency.batches=1,2 evaluate.efficiency.repeats=2 runtime.threads=1"


def test_the_stage_prepares_no_data_for_it(tmp_path, capsys):
    url = evaluate.run(Request("tiny", str(tmp_path), overrides=SETTINGS), model="tiny-student", task="efficiency")
    assert {path.name for path in tmp_path.iterdir()} == {"evaluate"}
    artifact = Artifact.open(url)
    assert artifact.files() == ["efficiency.json", "journal.jsonl", "metrics.json", "model.json"]
    assert artifact.manifest["inputs"] == {}
    assert artifact.manifest["metrics"]["efficiency/image/gflops"] > 0
    assert "GFLOPs" in capsys.readouterr().out
    evaluate.run(Request("tiny", str(tmp_path), overrides=SETTINGS), model="tiny-student", task="efficiency")
    assert "already complete" in capsys.readouterr().out


def test_given_shards_are_not_read_by_it_and_do_not_count(tmp_path):
    recipe, other = (resolve("tiny", overrides=f"runtime.threads={n}") for n in (1, 2))
    place = evaluation_url("/r", "a", "/r/prepare/1", recipe, "efficiency")
    assert place == evaluation_url("/r", "a", "/r/prepare/2", recipe, "efficiency")
    assert place != evaluation_url("/r", "a", "/r/prepare/1", other, "efficiency")
    seeded = resolve("tiny", seed=1)  # draws the weights of a model that is a name, and none of an artifact's
    assert place != evaluation_url("/r", "a", "/r/prepare/1", seeded, "efficiency")
    artifact = evaluation_url("/r", "/r/joint/1", "", recipe, "efficiency")
    assert artifact == evaluation_url("/r", "/r/joint/1", "", seeded, "efficiency")
    retrieval = evaluation_url("/r", "a", "/r/prepare/1", recipe, "retrieval")
    assert retrieval == evaluation_url("/r", "a", "/r/prepare/1", other, "retrieval")
    request = Request("tiny", str(tmp_path), overrides=SETTINGS)
    assert evaluate.run(request, model="tiny-student", shards="/nowhere", task="efficiency").startswith(str(tmp_path))


def test_a_task_reads_data_where_its_result_depends_on_the_split():
    assert [name for name in EVALUATIONS if not reads_data((name,))] == ["efficiency"]
    assert reads_data(("efficiency", "retrieval"))


def test_beside_other_tasks_it_reads_the_same_data(tmp_path):
    request = Request("tiny", str(tmp_path), overrides=f"{SETTINGS} evaluate.tasks=retrieval,efficiency")
    url = evaluate.run(request, model="recipe:student", shards=prepare.run(request))
    metrics = Artifact.open(url).manifest["metrics"]
    assert {"retrieval/i2t/R@1", "efficiency/text/latency_ms/b2"} <= set(metrics)


def test_every_baseline_is_measured_as_it_answers(tiny_shards, tiny_teacher, tmp_path):
    """promptkd's artifact holds the teacher's text tower, kd's the student's own."""
    from cmapkd_core.stages import train

    found = {}
    for row in ("kd", "promptkd"):
        request = Request("tiny", str(tmp_path), ablation=row, overrides=f"{SETTINGS} optim.batch=29")
        model = train.run(request, stage="warmup", shards=tiny_shards, teacher=tiny_teacher)
        found[row] = Artifact.open(evaluate.run(request, model=model, task="efficiency")).manifest["metrics"]
    request = Request("tiny", str(tmp_path), overrides=SETTINGS)
    for name, model in (("student", "recipe:student"), ("teacher", tiny_teacher)):
        found[name] = Artifact.open(evaluate.run(request, model=model, task="efficiency")).manifest["metrics"]
    for name in ("parameters", "gflops"):
        text, image = (
            {row: metrics[f"efficiency/{t}/{name}"] for row, metrics in found.items()} for t in ("text", "image")
        )
        assert text["promptkd"] == text["teacher"] != text["student"] == text["kd"]
        assert image["promptkd"] > image["kd"] == image["student"]


@pytest.mark.slow
def test_full_size_models_cost_the_same_with_their_weights(tmp_path):
    backbone = build(ModelConfig("ViT-B-16", "random"), 0, Path(tmp_path))
    work = [cost(t) / 1e9 for t in towers_of(backbone, CPU)]
    print(work, disk_bytes(backbone) / 1e6)
    assert work == pytest.approx([35.13, 5.96], abs=0.006)
