"""A small made suite: evaluations and trainings of five rows with numbers that are easy to recognise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cmapkd_core.recipes import resolve
from cmapkd_core.report.read.artifacts import Source
from cmapkd_core.report.read.results import RECALLS
from cmapkd_core.report.read.suite_inputs import RowTraining, SuiteInputs

EFFECTS = {"no_pyramid": -2.0, "no_alsn": -0.6, "no_align": -1.1, "one_stage": 0.3, "none": 0.0}
RECALLS = [f"retrieval/{key}" for key in RECALLS]


def one_file(folder: Path, name: str, file: str, value: object) -> Source:
    place = folder / name.replace(" ", "-").replace("/", "-")
    place.mkdir(exist_ok=True)
    (place / file).write_text(json.dumps(value))
    return Source(name, f"s3://bucket/{name}", frozenset([file]), lambda wanted: place / wanted)


def metrics_of(base: float) -> dict[str, float]:
    """Recalls that rise by ten; base is R@1 of image to text."""
    recalls = {key: base + 10.0 * i for i, key in enumerate(RECALLS)}
    facts = {"retrieval/images": 500.0, "retrieval/captions": 480.0, "zeroshot/images": 500.0}
    sizes = {"parameters/image": 4.0e6, "parameters/text": 17.0e6}
    return {**recalls, **facts, **sizes, "zeroshot/top1": base / 2, "retrieval/i2t/chance/R@1": 0.2}


def history(seed: int, steps: int = 40) -> dict[str, list[dict[str, object]]]:
    point = {"phase": "fine", "samples_per_second": 64.0 + seed, "shares": {"intra": 0.75, "task": 0.25, "kd": 0.0}}
    first = {"phase": "coarse", "samples_per_second": 500.0, "shares": {"intra": 0.1, "task": 0.9}, "step": 1}
    return {"points": [first, *({**point, "step": step} for step in (1, steps))]}


def suite_inputs(
    folder: Path,
    seeds: int = 5,
    without: tuple[str, ...] = (),
    steps: dict[str, int] | None = None,
    **more: object,
) -> SuiteInputs:
    """A suite over EFFECTS; `without` leaves evaluations out, `steps` sets the updates of single rows."""
    draw = np.random.default_rng(0)
    names, cells = [str(seed) for seed in range(seeds)], {}
    for seed in names:
        level = 40 + draw.normal(0, 1.5)
        for row, effect in EFFECTS.items():
            value = level + effect + draw.normal(0, 0.3)
            name = f"evaluation {row}/{seed}"
            cells[row, seed] = one_file(folder, name, "metrics.json", metrics_of(value))
            if f"{row}/{seed}" in without:
                cells[row, seed] = Source(name, f"s3://bucket/{name}")
    trainings = {
        (row, seed): RowTraining(
            one_file(folder, f"training {row}/{seed}", "history.json", history(int(seed), (steps or {}).get(row, 40))),
            seconds=90.0,
            metrics={"parameters/trained": 23.0e6},
        )
        for row, seed in cells
    }
    before = {s: one_file(folder, f"before {s}", "metrics.json", metrics_of(5.0)) for s in names}
    teacher = one_file(folder, "teacher", "metrics.json", metrics_of(45.0))
    return SuiteInputs(
        suite="table4",
        run="suite <one>",
        recipe=resolve("demo"),
        overrides="optim.batch=32",
        rows=tuple(EFFECTS),
        seeds=tuple(names),
        methods={row: resolve("demo", row) for row in EFFECTS},
        evaluations=cells,
        trainings=trainings,
        before=before,
        teacher=teacher,
        executions=60,
        naive=201,
        **more,  # type: ignore[arg-type]
    )
