"""What was measured of each model: the numbers of all its evaluations over seeds, and where each is from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from cmapkd_core.catalog import EVALUATIONS
from cmapkd_core.report.inputs import Missing, Source
from cmapkd_core.report.statistics import Interval, interval
from cmapkd_core.report.table import KS, same

RECALLS = tuple(f"{side}/R@{k}" for side in ("i2t", "t2i") for k in KS)
MEAN_RECALL = "mean_recall"
GEOMETRIC_RANK = "geometric_rank"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a model. name: "" for that of the recipe's own tasks, else TASK or TASK-DATASET."""

    name: str
    seed: str  # "": the result belongs to no seed
    source: Source


@dataclass(frozen=True)
class Measured:
    """One model, or one row of a suite.

    values: number -> seed -> value. A number's name is its name in metrics.json, with TASK-DATASET in the place of the
    task where the evaluation was made on a data set of its own. origins: number -> name of an artifact -> URL.
    """

    name: str
    label: str
    values: dict[str, dict[str, float]]
    origins: dict[str, dict[str, str]] = field(default_factory=dict)
    seeds: tuple[str, ...] = ()  # those whose main evaluation is there
    missing: dict[str, str] = field(default_factory=dict)  # seed -> URL of the main evaluation that is not complete
    reasons: dict[str, str] = field(default_factory=dict)  # task -> why the data cannot be asked it
    kind: str = ""  # "ours", "teacher", "chance", or "" for the others

    def interval(self, key: str) -> Interval | None:
        """The mean over the seeds; None where nothing was measured.

        What was measured of the row and not of a seed counts only where no seed has a value.
        """
        values = self.values.get(key, {})
        seeds = [value for seed, value in values.items() if seed] or list(values.values())
        return interval(seeds) if seeds else None

    def names(self, task: str) -> list[str]:
        """TASK and TASK-DATASET of the evaluations of a task that gave a number."""
        first = dict.fromkeys(key.partition("/")[0] for key in self.values)
        return [name for name in first if name.partition("-")[0] == task]


def measure(name: str, label: str, evaluations: Iterable[Evaluation], kind: str = "") -> Measured:
    """All numbers of a model; of a number that two evaluations give, the first counts."""
    found = Measured(name, label, {})
    seeds: list[str] = []
    for one in evaluations:
        try:
            metrics = one.source.json("metrics.json")
        except Missing:
            if not one.name:
                found.missing[one.seed] = one.source.url
            continue
        if not one.name:
            seeds.append(one.seed)
        for key, value in _renamed(metrics, one.name):
            if one.seed not in found.values.setdefault(key, {}):
                found.values[key][one.seed] = value
                found.origins.setdefault(key, {})[one.source.name] = one.source.url
        found.reasons.update(_reasons(metrics, one.source))
    return Measured(name, label, found.values, found.origins, tuple(seeds), found.missing, found.reasons, kind)


def _renamed(metrics: Mapping[str, float], name: str) -> Iterator[tuple[str, float]]:
    """The task's numbers under `name`, and those that were derived from them; sizes of the model as they are."""
    derived = dict(metrics)
    recalls = [metrics[f"retrieval/{key}"] for key in RECALLS if f"retrieval/{key}" in metrics]
    if len(recalls) == len(RECALLS):
        derived.setdefault(f"retrieval/{MEAN_RECALL}", float(np.mean(recalls)))
    towers = [metrics[key] for key in ("parameters/image", "parameters/text") if key in metrics]
    if len(towers) == 2:
        derived["parameters/both"] = sum(towers)
    task = name.partition("-")[0]
    for key, value in derived.items():
        head, _, rest = key.partition("/")
        yield (f"{name}/{rest}" if head == task else key), value


def _reasons(metrics: Mapping[str, float], source: Source) -> dict[str, str]:
    """What the tasks that gave no number say of it."""
    known = {key.partition("/")[0] for key in metrics}
    details = {task: f"{task}.json" for task in EVALUATIONS if task not in known and f"{task}.json" in source.files}
    found = {task: source.json(file).get("missing") for task, file in details.items()}
    return {task: str(reason) for task, reason in found.items() if reason}


def facts(rows: Iterable[Measured]) -> dict[str, float]:
    """Counts and rates of the data, that all models must agree on, as `TASK[-DATASET]/images` and so on.

    Raises:
        InputError: two models were measured on different data.
    """
    asked: dict[str, dict[str, float]] = {}
    for row in rows:
        for task, evaluation in EVALUATIONS.items():
            for key in (f"{name}/{fact}" for name in row.names(task) for fact in evaluation.facts):
                for seed, value in row.values.get(key, {}).items():
                    asked.setdefault(f"{row.name} {seed}".strip(), {})[key] = value
    return same(asked)


def chance(rows: Iterable[Measured]) -> Measured:
    """What guessing gives, as a model of its own under the names of the numbers that it is the chance of.

    Raises:
        InputError: two models have different chances, so they were measured on different data.
    """
    given: dict[str, dict[str, float]] = {}
    origins: dict[str, dict[str, str]] = {}
    for row in rows:
        for key in (key for key in row.values if "chance/" in key):
            origins.setdefault(key.replace("chance/", ""), row.origins[key])
            for seed, value in row.values[key].items():
                given.setdefault(f"{row.name} {seed}".strip(), {})[key.replace("chance/", "")] = value
    values = {key: {"": value} for key, value in same(given).items()}
    for name in {key.partition("/")[0] for key in values}:
        recalls = [values[f"{name}/{key}"][""] for key in RECALLS if f"{name}/{key}" in values]
        if len(recalls) == len(RECALLS):
            values[f"{name}/{MEAN_RECALL}"] = {"": float(np.mean(recalls))}
            origins[f"{name}/{MEAN_RECALL}"] = origins[f"{name}/{RECALLS[0]}"]
    return Measured("chance", "Chance", values, origins, kind="chance")
