"""A small made suite: evaluations and trainings of five rows with numbers that are easy to recognise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cmapkd_core.recipes import ROWS, resolve
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


def ranked_suite(
    folder: Path,
    effects: dict[str, float],
    seeds: int = 5,
    concepts: int = 60,
    spread: tuple[float, float, float] = (0.02, 0.3, 0.3),
) -> SuiteInputs:
    """A suite whose evaluations keep the ranks of their queries, and whose numbers are those of the ranks.

    Args:
        effects: row -> what it adds to the logarithm of a rank.
        concepts: of two pictures each, with one caption that is right for both.
        spread: of the logarithm of a rank, by row and seed, by row and concept, by all three.
    """
    draw, names = np.random.default_rng(0), [str(seed) for seed in range(seeds)]
    level = draw.normal(2, 1, concepts)  # the same concepts are hard for all
    pictures, texts = [f"p{i}" for i in range(2 * concepts)], [f"caption {i}" for i in range(concepts)]
    answers = {p: [texts[i // 2]] for i, p in enumerate(pictures)} | {
        t: pictures[2 * i : 2 * i + 2] for i, t in enumerate(texts)
    }
    cells = {}
    for row, effect in effects.items():
        of_concept = level + effect + draw.normal(0, spread[1], concepts)
        for seed in names:
            log = of_concept + draw.normal(0, spread[0]) + draw.normal(0, spread[2], (3, concepts))
            ranks = 1 + np.floor(np.exp(np.clip(log, -9, 6))).astype(int)
            asked = {"i2t": dict(zip(pictures, ranks[:2].T.ravel(), strict=True))}
            asked["t2i"] = dict(zip(texts, ranks[2], strict=True))
            detail = {
                side: {query: {"rank": int(rank), "correct": answers[query]} for query, rank in of.items()}
                for side, of in asked.items()
            }
            cells[row, seed] = files(folder, f"evaluation {row}/{seed}", metrics=of_ranks(asked), retrieval=detail)
    trainings = {
        (row, s): RowTraining(
            one_file(folder, f"training {row}/{s}", "history.json", history(int(s), 40 * _times(row))), 90.0
        )
        for row, s in cells
    }
    return SuiteInputs(
        suite="made",
        run="suite <ranked>",
        recipe=resolve("demo"),
        overrides="",
        rows=tuple(effects),
        seeds=tuple(names),
        methods={row: resolve("demo", row) for row in effects},
        evaluations=cells,
        trainings=trainings,
        before={},
        teacher=Source("teacher"),
        executions=60,
        naive=201,
    )


def _times(row: str) -> int:
    return int(ROWS[row].get("schedule.times", 1))


def files(folder: Path, name: str, **values: object) -> Source:
    """An artifact with several JSON files."""
    place = folder / name.replace(" ", "-").replace("/", "-")
    place.mkdir(exist_ok=True)
    for file, value in values.items():
        (place / f"{file}.json").write_text(json.dumps(value))
    return Source(
        name, f"s3://bucket/{name}", frozenset(f"{file}.json" for file in values), lambda wanted: place / wanted
    )


def of_ranks(asked: dict[str, dict[str, int]]) -> dict[str, float]:
    """metrics.json of a retrieval with these ranks, written out by hand."""
    found, logs = {"retrieval/images": 1.0, "retrieval/captions": 1.0, "zeroshot/top1": 40.0}, []
    for side, ranks in asked.items():
        every = np.array(list(ranks.values()))
        found |= {f"retrieval/{side}/R@{k}": 100 * float(np.mean(every <= k)) for k in (1, 5, 10)}
        logs.append(np.log(every).mean())
    return found | {"retrieval/geometric_rank": float(np.exp(np.mean(logs)))}
