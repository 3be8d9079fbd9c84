"""What was measured of each model: the numbers of all its evaluations over seeds, and where each is from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cmapkd_core.catalog import EVALUATIONS
from cmapkd_core.errors import InputError
from cmapkd_core.report.read.artifacts import Missing, Source
from cmapkd_core.report.read.concept_sums import ConceptSums

SIDES = {"i2t": "Image to text", "t2i": "Text to image"}
KS = (1, 5, 10)
METRICS = "metrics.json"  # of an evaluation


def same(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """The values that all evaluations agree on; one that lacks a task takes no part in that task."""
    merged: dict[str, tuple[str, float]] = {}
    for name, facts in values.items():
        for key, value in facts.items():
            other, known = merged.setdefault(key, (name, value))
            if not math.isclose(known, value, rel_tol=1e-9):
                raise InputError(
                    f"{other} and {name} were measured on different data ({key} is {known:g} and {value:g}): "
                    "evaluate both on the same shards and split"
                )
    return {key: value for key, (_, value) in merged.items()}


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
class ModelResults:
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

    def names(self, task: str) -> list[str]:
        """TASK and TASK-DATASET of the evaluations of a task that gave a number."""
        first = dict.fromkeys(key.partition("/")[0] for key in self.values)
        return [name for name in first if name.partition("-")[0] == task]


def measure(name: str, label: str, evaluations: Iterable[Evaluation], kind: str = "") -> ModelResults:
    """All numbers of a model; of a number that two evaluations give, the first counts."""
    model = ModelResults(name, label, {})
    seeds: list[str] = []
    for one in evaluations:
        try:
            metrics = one.source.json(METRICS)
        except Missing:
            if not one.name:
                model.missing[one.seed] = one.source.url
            continue
        if not one.name:
            seeds.append(one.seed)
        for key, value in _renamed(metrics, one.name):
            if one.seed not in model.values.setdefault(key, {}):
                model.values[key][one.seed] = value
                model.origins.setdefault(key, {})[one.source.name] = one.source.url
        model.reasons.update(_reasons(metrics, one.source))
    return ModelResults(name, label, model.values, model.origins, tuple(seeds), model.missing, model.reasons, kind)


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
    reasons = {task: source.json(file).get("missing") for task, file in details.items()}
    return {task: str(reason) for task, reason in reasons.items() if reason}


def facts(rows: Iterable[ModelResults]) -> dict[str, float]:
    """Counts and rates of the data, that all models must agree on, as `TASK[-DATASET]/images` and so on.

    Raises:
        InputError: two models were measured on different data.
    """
    asked: dict[str, dict[str, float]] = {}
    for row in rows:
        for task, evaluation in EVALUATIONS.items():
            for key in (f"{name}/{fact}" for name in row.names(task) for fact in evaluation.facts):
                for seed, value in row.values.get(key, {}).items():
                    asked.setdefault(_asked_for(row, key, seed), {})[key] = value
    return same(asked)


def _asked_for(row: ModelResults, key: str, seed: str) -> str:
    """What a message calls the evaluation that gave a number: its artifact, or row and seed where there are several."""
    artifacts = list(row.origins.get(key, {}))
    return artifacts[0] if len(artifacts) == 1 else f"{row.name} {seed}".strip()


def chance(rows: Iterable[ModelResults]) -> ModelResults:
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
                given.setdefault(_asked_for(row, key, seed), {})[key.replace("chance/", "")] = value
    values = {key: {"": value} for key, value in same(given).items()}
    for name in {key.partition("/")[0] for key in values}:
        recalls = [values[f"{name}/{key}"][""] for key in RECALLS if f"{name}/{key}" in values]
        if len(recalls) == len(RECALLS):
            values[f"{name}/{MEAN_RECALL}"] = {"": float(np.mean(recalls))}
            origins[f"{name}/{MEAN_RECALL}"] = origins[f"{name}/{RECALLS[0]}"]
    return ModelResults("chance", "Chance", values, origins, kind="chance")


@dataclass(frozen=True)
class Results:
    """What all tables of one report share. rows: the models in the order of the tables."""

    rows: tuple[ModelResults, ...]
    chance: ModelResults
    facts: dict[str, float]
    data: str  # the recipe's source
    split: str
    tools: dict[str, str] = field(default_factory=dict)  # how efficiency was measured: what -> with what
    concepts: Mapping[str, ConceptSums] = field(default_factory=dict)  # TASK[-DATASET] -> what its concepts add

    @property
    def several(self) -> bool:
        """True where a row has more than one seed."""
        return any(len(row.seeds) > 1 for row in self.rows)

    @property
    def teacher(self) -> ModelResults:
        """The teacher's row."""
        return self.row("teacher")

    @property
    def trained(self) -> tuple[ModelResults, ...]:
        """The rows of models that were trained: neither the teacher nor the untrained student."""
        return tuple(row for row in self.rows if row.name not in ("teacher", "before"))

    def row(self, name: str) -> ModelResults:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def names(self, task: str) -> list[str]:
        """TASK[-DATASET] of the evaluations of a task, the one on the recipe's own data first."""
        return sorted({name for row in self.rows for name in row.names(task)})

    def where(self, name: str) -> str:
        """The data set of an evaluation, in words."""
        return name.partition("-")[2] or f"{self.data}, split “{self.split}”"


EFFICIENCY = "efficiency"


def efficiency_tools(sources: Iterable[Source]) -> dict[str, str]:
    """How costs were measured, from the efficiency.json of every model; what differs between models is said."""
    every: dict[str, dict[str, None]] = {}
    for source in sources:
        try:
            tools = _tools_of(source.json(f"{EFFICIENCY}.json"))
        except Missing:
            continue
        for what, words in tools.items():
            every.setdefault(what, {})[words] = None
    separator = "; or, so that models are not to be compared, "
    return {what: separator.join(words) for what, words in every.items()}


def _tools_of(detail: dict[str, Any]) -> dict[str, str]:
    tools = {}
    if "flops" in detail:
        tools["FLOPs"] = f"{detail['flops']['convention']} ({detail['flops']['tool']})"
    if "environment" in detail:
        environment = detail["environment"]
        threads = f"{environment['threads']} thread" + ("s" if environment["threads"] != 1 else "")
        tools["Times"] = (
            f"medians on {environment['device']}, {threads}, {environment['precision']}, torch {environment['torch']}"
        )
        if environment.get("load_average", 0) > environment["threads"] + 0.5:
            tools["Beware"] = "other work had the processor while some of these times were taken; measure again alone"
    return tools
