"""The first losses of the tiny recipe for every method, kept as JSON beside this file.

    python tests/golden/regenerate.py        writes them anew; say in the commit why they changed

A curve that moves says that training has changed: an equation, a default, the order of the data, a seed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from cmapkd_core.fingerprints import reads
from cmapkd_core.recipes import ROWS, WEIGHTS, resolve
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare, teacher, train
from cmapkd_core.stages.artifact import Artifact

FOLDER = Path(__file__).parent
OVERRIDES = "schedule.fine.epochs=2"  # ten steps of the joint phase, from the untrained student
# Rows that are one in recipe tiny: its student begins at random weights, and of the embedding terms it has the task.
SAME = [{"finetune", "scratch"}, {"one_stage", "one_stage_embedding"}]
CURVES = (
    "teacher",
    "warmup",
    *(row for row in ROWS if row not in WEIGHTS),
)  # other weights of a loss are no other code

Curve = list[dict[str, float]]


def read_curve(url: str) -> Curve:
    """The raw terms of each step and their weighted sum, of an artifact with a history."""
    points = json.loads(Artifact.open(url).fetch("history.json").read_text())["points"]
    return [{**point["terms"], "total": sum(point["weighted"].values())} for point in points]


def run_curve(name: str, root: str, shards: str, fitted: str) -> Curve:
    """Train what the curve shows: stage teacher, cmapkd's warm-up, or a row.

    Of a row: the phases of its warm-up where they are not cmapkd's, then its joint stage from the untrained student;
    with a teacher of its own where its fit is another.
    """
    torch.set_num_threads(1)
    if name == "teacher":
        return read_curve(fitted)
    if name == "warmup":
        return read_curve(train.run(Request("tiny", root), stage="warmup", shards=shards, teacher=fitted))
    request = Request("tiny", root, ablation=name, overrides=OVERRIDES)
    if _differs(request, "teacher"):
        fitted = teacher.run(request, shards=shards)
    stages = ("warmup", "joint") if _differs(request, "warmup") else ("joint",)
    urls = [train.run(request, stage=stage, shards=shards, teacher=fitted) for stage in stages]
    return [step for url in urls for step in read_curve(url)]


def _differs(request: Request, stage: str) -> bool:
    """True where the row's stage is another than cmapkd's."""
    return reads(request.resolved(), stage) != reads(resolve("tiny", overrides=OVERRIDES), stage)


def main() -> int:
    """Write every curve."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        shards = prepare.run(Request("tiny", root))
        fitted = teacher.run(Request("tiny", root), shards=shards)
        for name in CURVES:
            rows = [json.dumps(step) for step in run_curve(name, root, shards, fitted)]
            (FOLDER / f"{name}.json").write_text("[\n " + ",\n ".join(rows) + "\n]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
