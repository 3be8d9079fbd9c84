"""A small made run: every file that a report reads, with numbers that are easy to recognise."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cmapkd_core.recipes import resolve
from cmapkd_core.report.inputs import Inputs, Source, no_pictures

EVALUATIONS = {"teacher_eval": 50, "before_eval": 0, "reference_eval": 20, "student_eval": 30}
KEYS = [f"k{i}" for i in range(20)]


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


def metrics_of(first: int, place: int) -> dict[str, float]:
    """Values that occur nowhere else: 30 + place / 10 and so on."""
    recalls = {"R@1": float(first), "R@5": 61.0 + place / 10, "R@10": 71.0 + place / 10, "median_rank": 3.0 + place}
    flipped = {"R@1": float(first), "R@5": 62.0 + place / 10, "R@10": 72.0 + place / 10, "median_rank": 13.0 + place}
    chances = {"chance/R@1": 5.0, "chance/R@5": 25.0, "chance/R@10": 55.0}
    return {
        "retrieval/images": 20.0,
        "retrieval/captions": 20.0,
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
    keys = [str(i) for i in range(samples)]
    return pa.table({"key": keys, **{f"w_{k}": v for k, v in columns.items()}, "difficulty": difficulty})


def write_run(folder: Path) -> None:
    for place, (name, first) in enumerate(EVALUATIONS.items()):
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.json").write_text(json.dumps(metrics_of(first, place)))
        (folder / name / "retrieval.json").write_text(json.dumps(retrieval_of(first)))
    for name, trace in histories().items():
        (folder / name).mkdir()
        (folder / name / "history.json").write_text(json.dumps({"points": trace}))
    pq.write_table(weight_table(), folder / "joint" / "weights.parquet")
    (folder / "teacher").mkdir()
    levels = {n: {"explained_variance": 0.5, "r1": 0.1} for n in ("P2", "P3", "P4", "P5", "L1", "L2", "L3", "L4")}
    fit = {"levels": levels, "alpha": [[1 / 16] * 4] * 4, "pairs": 10, "chance_r1": 0.1}
    (folder / "teacher" / "fit.json").write_text(json.dumps(fit))
    (folder / "shards").mkdir()


def picture(key: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 12), (10 * int(key[1:]), 60, 90)).save(out, "PNG")
    return out.getvalue()


def source(folder: Path, name: str) -> Source:
    here = folder / name
    return Source(name, f"s3://bucket/{name}/0123", frozenset(p.name for p in here.iterdir()), lambda file: here / file)


@pytest.fixture
def make_inputs(tmp_path: Path) -> Callable[..., Inputs]:
    """Inputs of the made run; `without` leaves artifacts out, `ablation` names the recipe's row."""
    write_run(tmp_path)

    def make(without: tuple[str, ...] = (), ablation: str = "none") -> Inputs:
        names = [p.name for p in sorted(tmp_path.iterdir()) if p.name not in without]
        sources = {name: source(tmp_path, name) for name in names}
        return Inputs(
            resolve("tiny", ablation), ablation, "run <one>", sources, no_pictures if "shards" in without else picture
        )

    return make
