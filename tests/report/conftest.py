"""A small made run: every file that a report reads, with numbers that are easy to recognise."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_suites import suite_inputs
from PIL import Image
from sklearn.manifold import TSNE

from cmapkd_core.config import ALL_LEVELS
from cmapkd_core.evaluate import level_distances as measured
from cmapkd_core.models.identity import Identity
from cmapkd_core.recipes import resolve
from cmapkd_core.report.figures import figure5_map
from cmapkd_core.report.read.artifacts import Source, no_pictures
from cmapkd_core.report.read.run_inputs import RunInputs
from cmapkd_core.report.read.suite_inputs import SuiteInputs

EVALUATIONS = {"teacher_eval": 50, "before_eval": 0, "reference_eval": 20, "student_eval": 30}
KEYS = [f"k{i}" for i in range(20)]


class Remembered(TSNE):
    """The map of points that were asked before is the same: tests draw one made run many times."""

    maps: ClassVar[dict[tuple[bytes, str], np.ndarray]] = {}

    def fit_transform(self, points: np.ndarray, y: None = None) -> np.ndarray:
        asked = (points.tobytes(), str(self.get_params()))
        if asked not in self.maps:
            self.maps[asked] = super().fit_transform(points)
        return self.maps[asked]


@pytest.fixture(scope="session", autouse=True)
def _quick(quick_pdf: None) -> Iterator[None]:
    """Many of these tests draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure5_map, "TSNE", Remembered)
        yield


def retrieval_of(first: int) -> dict[str, Any]:
    """Twenty images with a caption each; the first `first` percent of them find it at once, the others seventh."""
    hits = round(len(KEYS) * first / 100)

    def side(asked: list[str], answers: list[str]) -> dict[str, Any]:
        return {
            query: {
                "rank": 1 if i < hits else 7,
                "correct": [answers[i]],
                "top": [[answers[(i + (0 if i < hits else 1) + j) % 20], 0.9 - j / 10] for j in range(5)],
            }
            for i, query in enumerate(asked)
        }

    texts = [f"caption <{i}> & more" for i in range(20)]
    return {"i2t": side(KEYS, texts), "t2i": side(texts, KEYS)}


def identity_of(name: str) -> dict[str, Any]:
    """A teacher with QuickGELU and a student of SigLIP's kind; model.json as stage evaluate writes it."""
    teacher = name == "teacher_eval"
    activation = "quick_gelu" if teacher else "gelu"
    return Identity(
        architecture="ViT-L-14" if teacher else "own.json",
        activations={"image": activation, "text": "quick_gelu" if teacher else "gelu_tanh"},
        image_size=224 if teacher else 64,
        mean=(0.48145466, 0.4578275, 0.40821073) if teacher else (0.5,) * 3,
        std=(0.26862954, 0.26130258, 0.27577711) if teacher else (0.5,) * 3,
        resize_mode="shortest" if teacher else "squash",
        interpolation="bicubic",
        fill_color=0,
        tokenizer="open_clip's BPE (49408 entries)",
        context_length=77,
        embed_dim=768 if teacher else 256,
        logit_bias=not teacher,
    ).plain()


def metrics_of(first: int, place: int) -> dict[str, float]:
    """Values that occur nowhere else: 30 + place / 10 and so on."""
    recalls = {"R@1": float(first), "R@5": 61.0 + place / 10, "R@10": 71.0 + place / 10, "median_rank": 3.0 + place}
    flipped = {"R@1": float(first), "R@5": 62.0 + place / 10, "R@10": 72.0 + place / 10, "median_rank": 13.0 + place}
    chances = {"chance/R@1": 5.0, "chance/R@5": 25.0, "chance/R@10": 55.0}
    return {
        "retrieval/images": 20.0,
        "retrieval/captions": 20.0,
        "retrieval/geometric_rank": 23.0 + place / 10,
        **{f"retrieval/i2t/{k}": v for k, v in (recalls | chances).items()},
        **{f"retrieval/t2i/{k}": v for k, v in (flipped | chances).items()},
        "zeroshot/top1": 41.3 + place / 10,
        "zeroshot/top5": 81.3 + place / 10,
        "zeroshot/chance/top1": 12.5,
        "zeroshot/chance/top5": 62.5,
        "zeroshot/images": 20.0,
        "zeroshot/classes": 8.0,
        "zeroshot/majority": 35.0,
        "parameters/image": 1.23e6 + place * 1e6,
        "parameters/text": 11.45e6 + place * 1e6,
    }


def point(phase: str, step: int, terms: dict[str, float], weights: dict[str, float], lr: dict[str, float]) -> Any:
    stats = {f"weight/{n}": 0.25 for n in ("P2", "P3", "P4", "P5", "L1", "L2", "L3", "L4")}
    return {
        "step": step,
        "phase": phase,
        "epoch": 1,
        "terms": terms,
        "weighted": {name: weights[name] * value for name, value in terms.items()},
        "lr": lr,
        "stats": stats | {"entropy/vision": 1.3, "entropy/text": 1.2},
        "shares": {name: 1 / len(terms) for name in terms},
    }


def histories() -> dict[str, list[Any]]:
    weights = {"intra": 1.0, "task": 0.5, "policy": 1.0, "kd": 0.0}

    def student(phase: str, start: int, stop: int, policy: float) -> list[Any]:
        lr = {"student": 1e-3, "pyramid": 2e-3}
        return [
            point(phase, s, {"intra": 2 - s / 20, "task": 3 - s / 20, "policy": policy, "kd": 1.0}, weights, lr)
            for s in range(start, stop)
        ]

    return {
        "warmup": student("coarse", 1, 6, 0.0) + student("medium", 6, 11, 0.0),
        "alsn": [point("alsn", s, {"policy": 1 - s / 20}, weights, {"selector": 1e-3}) for s in range(1, 9)],
        "joint": student("fine", 1, 9, 0.4),
        "reference": [point("fine", s, {"task": 2.8 - s / 20}, {"task": 1.0}, {"student": 1e-3}) for s in range(1, 9)],
    }


def weight_table(samples: int = 64) -> pa.Table:
    """P2 rises with difficulty and P5 falls; the text levels do not depend on the sample."""
    difficulty = np.linspace(-1, 1, samples)
    columns = {"P2": 0.25 + 0.1 * difficulty, "P3": np.full(samples, 0.25), "P4": np.full(samples, 0.25)}
    columns["P5"] = 0.25 - 0.1 * difficulty
    columns |= {name: np.full(samples, 0.25) for name in ("L1", "L2", "L3", "L4")}
    keys = [f"t{i}" for i in range(samples)]
    return pa.table({"key": keys, **{f"w_{k}": v for k, v in columns.items()}, "difficulty": difficulty})


def statistics_table(samples: int = 64) -> pa.Table:
    """Teacher embeddings on a circle: neighbours in the table are neighbours there; later captions lie farther off."""
    turn = np.linspace(0, np.pi, samples)
    image = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    text = np.stack([np.cos(2 * turn), np.sin(2 * turn)], axis=1)
    columns = {name: pa.array(list(rows)) for name, rows in (("teacher_image", image), ("teacher_text", text))}
    return pa.table({"key": weight_table(samples)["key"], **columns, "difficulty": np.linspace(-1, 1, samples)})


def index_table(samples: int = 64) -> pa.Table:
    """Sample t<i> has two captions of i + 1 words each; the test pictures' keys are there too."""
    keys = [f"t{i}" for i in range(samples)] + KEYS
    captions = [[" ".join([f"w{i}"] * (i + 1)), " ".join([f"v{i}"] * (i + 1))] for i in range(samples)]
    captions += [[f"caption {i}"] for i in range(len(KEYS))]
    splits = ["train"] * samples + ["test"] * len(KEYS)
    return pa.table({"split": splits, "key": keys, "captions": captions})


def pooled(toward: float, pairs: int = 16, width: int = 8) -> measured.PooledLevels:
    """Levels that are the teacher's where `toward` is 1, and noise where it is 0; the diagonal leads by `toward`."""
    known, noise = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    vectors = {
        name: toward * torch.randn(pairs, width, generator=known)
        + (1 - toward) * torch.randn(pairs, width, generator=noise)
        for name in ALL_LEVELS
    }
    own = toward * torch.eye(4).expand(pairs, 4, 4) + 0.01 * torch.randn(pairs, 4, 4, generator=known)
    return measured.PooledLevels(vectors, own, torch.zeros(pairs, 4, 4))


def write_levels(folder: Path) -> None:
    models = {"teacher": pooled(1.0), "before": pooled(0.0), "after": pooled(0.8)}
    keys, captions = [f"k{i}" for i in range(16)], [f"caption {i}" for i in range(16)]
    folder.mkdir()
    pq.write_table(measured.as_table(keys, captions, models), folder / "levels.parquet")
    (folder / "metrics.json").write_text(json.dumps(measured.metrics(models)))
    (folder / "levels.json").write_text(json.dumps({"split": "test", "levels": list(ALL_LEVELS), "pairs": 16}))


def classes_of(place: int) -> dict[str, Any]:
    """Class c<i> has i images; models later in the list are worse on later classes."""
    rows = [{"class": f"c{i}", "images": i, "top1": max(0.0, 90.0 - place * i)} for i in range(1, 13)]
    return {"classes": [*rows, {"class": "empty", "images": 0, "top1": None}]}


def write_run(folder: Path) -> None:
    for place, (name, first) in enumerate(EVALUATIONS.items()):
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.json").write_text(json.dumps(metrics_of(first, place)))
        (folder / name / "model.json").write_text(json.dumps(identity_of(name)))
        (folder / name / "retrieval.json").write_text(json.dumps(retrieval_of(first)))
        (folder / name / "zeroshot.json").write_text(json.dumps(classes_of(place)))
    for name, trace in histories().items():
        (folder / name).mkdir()
        (folder / name / "history.json").write_text(json.dumps({"points": trace}))
    pq.write_table(weight_table(), folder / "joint" / "weights.parquet")
    pq.write_table(statistics_table(), folder / "joint" / "sample_stats.parquet")
    write_levels(folder / "levels")
    (folder / "teacher").mkdir()
    levels = {n: {"explained_variance": 0.5, "r1": 0.1} for n in ("P2", "P3", "P4", "P5", "L1", "L2", "L3", "L4")}
    fit = {"levels": levels, "alpha": [[1 / 16] * 4] * 4, "pairs": 10, "chance_r1": 0.1}
    (folder / "teacher" / "fit.json").write_text(json.dumps(fit))
    (folder / "shards").mkdir()
    pq.write_table(index_table(), folder / "shards" / "index.parquet")
    counts = {"seen": 87, "used": 84, "quarantined": 3, "splits": {"train": {"count": 64}, "test": {"count": 20}}}
    (folder / "shards" / "shards.json").write_text(json.dumps(counts))
    bad = {11: "picture 11.png: truncated", 12: "picture 12.png: truncated", 40: "no <caption>"}
    lines = [json.dumps({"row": row, "key": f"b{row}", "reason": reason}) for row, reason in bad.items()]
    (folder / "shards" / "quarantine.jsonl").write_text("\n".join(lines) + "\n")


def picture(key: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 12), (3 * int(key[1:]), 60, 90)).save(out, "PNG")
    return out.getvalue()


VQA = {"vqa/overall": 50.0, "vqa/yes_no": 60.0, "vqa/number": 30.0, "vqa/other": 40.0}
VQA |= {"vqa/questions": 100.0, "vqa/majority": 20.0, "vqa/sayable": 99.0}
DETAIL = {
    "flops": {"convention": "2 FLOPs a multiply-add", "tool": "a counter"},
    "environment": {"device": "a machine", "threads": 1, "precision": "float32", "torch": "2"},
}


def costs_of(scale: float) -> dict[str, float]:
    """Work and times that are `scale` times those of a small model."""
    found = {f"efficiency/{tower}/gflops": scale * work for tower, work in (("image", 2.0), ("text", 0.5))}
    found |= {"efficiency/image/latency_ms/b1": 10.0 * scale, "efficiency/image/throughput/b1": 100.0 / scale}
    return found | {"efficiency/image/latency_ms/b32": 80.0 * scale, "efficiency/image/throughput/b32": 400.0 / scale}


def given(folder: Path, name: str, **files: Any) -> Source:
    """An artifact with JSON files, `metrics` for metrics.json and so on."""
    here = folder / f"given-{name.replace('/', '-')}"
    here.mkdir(exist_ok=True)
    for file, value in files.items():
        (here / f"{file}.json").write_text(json.dumps(value))
    return Source(name, f"s3://bucket/{name}", frozenset(f"{file}.json" for file in files), lambda file: here / file)


def further_of(folder: Path) -> dict[str, Source]:
    """VQA of teacher and student on easy_vqa, and what both cost: the teacher twice as much."""
    folder.mkdir()
    overall = {"teacher": 61.0, "student": 55.5}
    found = [given(folder, f"vqa-easy_vqa/{r}", metrics=VQA | {"vqa/overall": v}) for r, v in overall.items()]
    for role, scale in (("teacher", 2.0), ("student", 1.0)):
        found.append(given(folder, f"efficiency/{role}", metrics=costs_of(scale), efficiency=DETAIL))
    return {one.name: one for one in found}


@pytest.fixture
def further(tmp_path: Path) -> dict[str, Source]:
    """Further evaluations of the made run."""
    return further_of(tmp_path / "more")


def source(folder: Path, name: str) -> Source:
    here = folder / name
    return Source(name, f"s3://bucket/{name}/0123", frozenset(p.name for p in here.iterdir()), lambda file: here / file)


@pytest.fixture
def make_inputs(tmp_path: Path) -> Callable[..., RunInputs]:
    """Inputs of the made run; `without` leaves artifacts out, `ablation` names the recipe's row."""
    run = tmp_path / "run"
    run.mkdir()
    write_run(run)

    def make(without: tuple[str, ...] = (), ablation: str = "none", more: dict[str, Source] | None = None) -> RunInputs:
        return inputs_of(run, without, ablation, more)

    return make


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> RunInputs:
    """The made run, for tests that only read it."""
    run = tmp_path_factory.mktemp("made")
    write_run(run)
    return inputs_of(run)


def inputs_of(
    run: Path, without: tuple[str, ...] = (), ablation: str = "none", more: dict[str, Source] | None = None
) -> RunInputs:
    names = [p.name for p in sorted(run.iterdir()) if p.name not in without]
    sources = {name: source(run, name) for name in names} | (more or {})
    pictures = no_pictures if "shards" in without else picture
    return RunInputs(resolve("tiny", ablation), ablation, "run <one>", sources, pictures)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> RunInputs:
    """The made run with its further evaluations, for tests that only read it."""
    folder = tmp_path_factory.mktemp("whole")
    run = folder / "run"
    run.mkdir()
    write_run(run)
    sources = {p.name: source(run, p.name) for p in sorted(run.iterdir())} | further_of(folder / "more")
    return RunInputs(resolve("tiny"), "none", "run <one>", sources, picture)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., SuiteInputs]:
    """Inputs of the made suite; see made_suites.suite_inputs."""
    return partial(suite_inputs, tmp_path)
