"""Curves over training, from the stages' history.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.run_inputs import RunInputs

STAGES = ("warmup", "alsn", "joint")
POINTS = 150  # a curve has at most about this many; more are averaged in groups of neighbours
Point = dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """One phase of a curve; steps count training steps over the phases that the curve has."""

    phase: str
    steps: np.ndarray
    values: np.ndarray


Curve = list[Segment]


def logged_points(inputs: RunInputs, *names: str) -> list[Point]:
    """All logged points of the named stages in order of training, each (phase, step) once.

    Raises:
        Missing: none of the stages left a history.
    """
    points: dict[tuple[str, int], Point] = {}
    reasons = []
    for name in names:
        try:
            history = inputs.source(name).json("history.json")["points"]
        except Missing as reason:
            reasons.append(str(reason))
            continue
        points |= {(point["phase"], point["step"]): point for point in history}
    if not points:
        raise Missing(" ".join(reasons) or "Missing: the stages logged no point.")
    return list(points.values())


def missing_histories(inputs: RunInputs, *names: str) -> list[str]:
    """A sentence for each of the named stages that left no history."""
    return [reason for name in names if (reason := inputs.source(name).lack("history.json"))]


def training_curve(trace: list[Point], read: Callable[[Point], float | None]) -> Curve:
    """What `read` finds along the trace, phases laid end to end; phases without it take no room."""
    phases: dict[str, list[tuple[float, float]]] = {}
    for point in trace:
        value = read(point)
        if value is not None:
            phases.setdefault(point["phase"], []).append((point["step"], value))
    segments: Curve = []
    room = sum(len(rows) for rows in phases.values())
    offset = 0.0
    for phase, rows in phases.items():
        steps, values = np.array(rows, dtype=float).T
        first = min(point["step"] for point in trace if point["phase"] == phase)
        steps = steps - first + offset
        offset = float(steps[-1]) + (float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0)
        group = -(-room // POINTS)
        segments.append(Segment(phase, _group_means(steps, group), _group_means(values, group)))
    return segments


def _group_means(values: np.ndarray, group: int) -> np.ndarray:
    """Means of neighbours, [n] -> [ceil(n / group)]."""
    return np.array([values[i : i + group].mean() for i in range(0, len(values), group)])


def active_points(trace: list[Point], part: str, name: str) -> list[Point]:
    """Points of the phases in which the number was logged and was not always 0, such as a term before it acts."""
    phases = {point["phase"] for point in trace if reader(part, name)(point)}
    return [point for point in trace if point["phase"] in phases]


def alongside(trace: list[Point], base: Curve, read: Callable[[Point], float | None]) -> Curve:
    """Another run's curve, its phases moved to where `base` has the phases of the same name; others are left out."""
    starts = {segment.phase: segment.steps[0] for segment in base}
    own = [segment for segment in training_curve(trace, read) if segment.phase in starts]
    return [replace(s, steps=s.steps - s.steps[0] + starts[s.phase]) for s in own]


def logged_names(trace: list[Point], part: str) -> list[str]:
    """Names under one part of the points ("terms", "lr", ...), in order of appearance."""
    return list(dict.fromkeys(name for point in trace for name in point.get(part, {})))


def reader(part: str, name: str) -> Callable[[Point], float | None]:
    """A reader of one number: `point[part][name]`."""
    return lambda point: point.get(part, {}).get(name)


def last_weight(trace: list[Point], term: str) -> float | None:
    """The weight that the term had last: weighted over raw. None where the raw value never left 0."""
    for point in reversed(trace):
        raw, weighted = point.get("terms", {}).get(term), point.get("weighted", {}).get(term)
        if raw and weighted is not None:
            return float(weighted / raw)
    return None
