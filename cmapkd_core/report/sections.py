"""What each section of the page shows, computed from the run's artifacts. Pure data: the template has the words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cmapkd_core.config import ALL_LEVELS, METHODS, TEXT_LEVELS, VISION_LEVELS
from cmapkd_core.report import figures, history, weights
from cmapkd_core.report.examples import collect
from cmapkd_core.report.inputs import Inputs, Missing
from cmapkd_core.report.table import KS, ROWS, Table, paired, standard_error

SIDES = {"i2t": "Image to text", "t2i": "Text to image"}
MODALITIES = {"Image levels": VISION_LEVELS, "Text levels": TEXT_LEVELS}
SHUFFLE_SEED = 0  # of the control that shuffles the weights across samples
EXAMPLES = {"i2t": 4, "t2i": 2}  # per group of examples.GROUPS

Section = dict[str, Any]


def results(inputs: Inputs, table: Table) -> Section:
    """Recall as dots with one standard error, the standard error of R@1, and the paired difference."""
    measured = [row for row in table.rows if "retrieval/i2t/R@1" in row.values]
    if not measured:
        raise Missing(" ".join(row.missing for row in table.rows) or "Missing: no retrieval was measured.")
    counts = {"i2t": table.facts["retrieval/images"], "t2i": table.facts["retrieval/captions"]}
    best = max(r.values[f"retrieval/{side}/R@10"] for r in measured for side in SIDES)
    top = min(100.0, 10.0 * math.ceil((best + 3) / 10))
    plots = [figures.recalls(t, table.rows, table.chance, side, counts[side], top) for side, t in SIDES.items()]
    row = measured[-1]
    errors = {t: standard_error(row.values[f"retrieval/{s}/R@1"], counts[s]) for s, t in SIDES.items()}
    return {
        "figures": plots,
        "errors": errors,
        "row": row.label,
        "paired": differences(inputs),
        "zeroshot": no_zeroshot(inputs),
        "sources": ROWS,
    }


def no_zeroshot(inputs: Inputs) -> str:
    """Why there is no zero-shot accuracy; "" where there is one or nobody asked."""
    for name in ROWS:
        try:
            reason = inputs.source(name).json("zeroshot.json").get("missing")
        except Missing:
            continue
        if reason:
            return str(reason)
    return ""


def differences(inputs: Inputs) -> list[dict[str, Any]]:
    """Distilled minus fine-tuned R@k with its paired intervals, both ways; [] where one is missing."""
    try:
        ours = inputs.source("student_eval").json("retrieval.json")
        theirs = inputs.source("reference_eval").json("retrieval.json")
    except Missing:
        return []
    found = []
    for side, title in SIDES.items():
        cells = []
        for k in KS:
            difference, half = paired(ours[side], theirs[side], k)
            cells.append({"k": k, "difference": difference, "low": difference - half, "high": difference + half})
        found.append({"side": title, "cells": cells})
    return found


def losses(inputs: Inputs, table: Table) -> Section:
    """Every term raw and weighted over training; its weight, first and last values and gradient share as numbers."""
    trace = history.points(inputs, *history.STAGES)
    absent = history.absent(inputs, *history.STAGES, "reference")
    reference = [] if history.absent(inputs, "reference") else history.points(inputs, "reference")
    plots, rows = [], []
    for term in history.names(trace, "terms"):
        part = history.live(trace, "terms", term)
        raw = history.curve(part, history.entry("terms", term))
        weight = history.weight(part, term)
        rows.append(_loss_row(part, term, weight, raw))
        if not raw:
            continue
        differs = weight and not math.isclose(weight, 1, rel_tol=1e-3)
        lines = {
            "raw": raw,
            "weighted": history.curve(part, history.entry("weighted", term)) if differs else [],
            "no teacher": history.alongside(reference, raw, history.entry("terms", term)),
        }
        known = "" if weight is None else f" (weight {weight:.3g})"
        plots.append(figures.curves(term + known, "loss", lines))
    plots += _rates(trace)
    return {"figures": plots, "rows": rows, "absent": absent, "sources": (*history.STAGES, "reference")}


def _loss_row(part: list[history.Point], term: str, weight: float | None, raw: history.Curve) -> dict[str, Any]:
    weighted = history.curve(part, history.entry("weighted", term))
    last = raw[-1].phase if raw else ""
    reads = (history.entry("shares", term)(point) for point in part if point["phase"] == last)
    shares = [share for share in reads if share is not None]
    return {
        "term": term,
        "weight": weight,
        "raw": (float(raw[0].values[0]), float(raw[-1].values[-1])) if raw else None,
        "weighted": (float(weighted[0].values[0]), float(weighted[-1].values[-1])) if weighted else None,
        "share": 100 * float(np.mean(shares)) if shares else None,
    }


def _rates(trace: list[history.Point]) -> list[str]:
    """Learning rate of each parameter group over training; a group that a phase does not name is frozen there."""
    groups = history.names(trace, "lr")
    peak = max((rate for point in trace for rate in point.get("lr", {}).values()), default=0.0)
    if not peak:
        return []
    power = math.floor(math.log10(peak))

    def read(group: str) -> Callable[[history.Point], float]:
        return lambda point: point.get("lr", {}).get(group, 0.0) / 10.0**power

    lines = {group: history.curve(trace, read(group)) for group in groups}
    return [figures.curves("learning rate by group", f"learning rate, 1e{power}", lines)]


def selector(inputs: Inputs, table: Table) -> Section:
    """Level weights against difficulty with the shuffled control; Spearman's rho as numbers (Figure 3)."""
    if "selector" not in METHODS[inputs.recipe.method.name].groups:
        return {
            "fixed": f"The method {inputs.recipe.method.name} has no levels, so there are no level weights to show."
        }
    if inputs.recipe.selector.kind == "fixed":
        total = sum(inputs.recipe.selector.weights)
        values = ", ".join(f"{value / total:.3g}" for value in inputs.recipe.selector.weights)
        return {
            "fixed": f"The selector is fixed: every sample has the weights {values} (finest level first) in both "
            "modalities. There is no ALSN and so no figure of weights against difficulty."
        }
    source = inputs.first("weights.parquet", "joint", "alsn")
    samples = source.parquet("weights.parquet")
    real = {title: weights.profile(samples, names) for title, names in MODALITIES.items()}
    control = {title: weights.profile(samples, names, SHUFFLE_SEED) for title, names in MODALITIES.items()}
    highest = max(float((level.mean + level.error).max()) for p in real.values() for level in p.levels)
    plots = []
    for title in MODALITIES:
        plots.append(figures.weights(title, real[title], 1.12 * highest))
        plots.append(figures.weights(f"{title}, shuffled", control[title], 1.12 * highest))
    pairs = [(a, b) for t in MODALITIES for a, b in zip(real[t].levels, control[t].levels, strict=True)]
    rows = [
        {
            "level": a.name,
            "mean": float(a.mean.mean()),
            "easy": a.mean[0],
            "hard": a.mean[-1],
            "rho": a.rho,
            "shuffled": b.rho,
        }
        for a, b in pairs
    ]
    count = next(iter(real.values())).samples
    return {"figures": plots, "rows": rows, "samples": count, "stage": source.name, "sources": (source.name,)}


def policy(inputs: Inputs, table: Table) -> Section:
    """ALSN's mean weights and entropies while it learns, in the ALSN stage and in joint training."""
    trace = history.points(inputs, "alsn", "joint")
    found = set(history.names(trace, "stats"))
    plots = []
    for title, names in MODALITIES.items():
        read = {name: history.curve(trace, history.entry("stats", f"weight/{name}")) for name in names}
        lines = {name: curve for name, curve in read.items() if curve}
        if lines:
            plots.append(figures.curves(f"{title}: mean weight", "mean weight", lines))
    entropies = {name: f"entropy/{name}" for name in ("vision", "text") if f"entropy/{name}" in found}
    if not plots or not entropies:
        raise Missing("Missing: the stages alsn and joint logged no weights of levels.")
    lines = {name: history.curve(trace, history.entry("stats", key)) for name, key in entropies.items()}
    plots.append(figures.curves("Entropy of the weights", "mean entropy, nats", lines, zero=False))
    return {"figures": plots, "uniform": math.log(len(VISION_LEVELS)), "sources": ("alsn", "joint")}


def teacher(inputs: Inputs, table: Table) -> Section:
    """How good the fitted teacher levels are, and which pairs of levels it holds compatible."""
    fit = inputs.source("teacher").json("fit.json")
    levels = fit.get("levels", {})
    rows = [
        {"level": name, "r1": 100 * levels[name]["r1"], "explained_variance": levels[name]["explained_variance"]}
        for name in ALL_LEVELS
        if name in levels
    ]
    return {
        "rows": rows,
        "pairs": fit.get("pairs"),
        "chance": 100 * fit.get("chance_r1", 0.0),
        "alpha": dict(zip(VISION_LEVELS, fit["alpha"], strict=True)),
        "highest": max(map(max, fit["alpha"])),
        "sources": ("teacher",),
    }


def examples(inputs: Inputs, table: Table) -> Section:
    """Pictures with the captions found, and captions with the pictures found."""
    groups = {side: collect(inputs, side, count) for side, count in EXAMPLES.items()}
    return {"groups": groups, "sources": ("shards", *ROWS)}


SECTIONS: dict[str, Callable[[Inputs, Table], Section]] = {
    "results": results,
    "losses": losses,
    "selector": selector,
    "policy": policy,
    "teacher": teacher,
    "examples": examples,
}


def build(inputs: Inputs, table: Table) -> dict[str, Section]:
    """Every section's data, with `urls` of what it was made from; one without its inputs has `missing` alone."""
    built: dict[str, Section] = {}
    for name, make in SECTIONS.items():
        try:
            section = make(inputs, table)
        except Missing as reason:
            section = {"missing": str(reason)}
        used = (inputs.source(source) for source in section.get("sources", ()))
        section["urls"] = {source.name: source.url for source in used if source.url}
        built[name] = section
    return built
