"""Sections on the selector: weights against difficulty, weights of four kinds of sample, weights over training."""

from __future__ import annotations

import math

import numpy as np

from cmapkd_core.catalog import SELECTORS
from cmapkd_core.config import TEXT_LEVELS, VISION_LEVELS
from cmapkd_core.method_specs import METHODS
from cmapkd_core.report.figures.curves import draw_curves
from cmapkd_core.report.figures.figure3_difficulty import LevelProfile, difficulty_profile, draw_profile
from cmapkd_core.report.figures.figure4_groups import LEAST, SHARE, SHOWN, SampleGroup, choose_groups, draw_radar
from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.history import logged_names, logged_points, reader, training_curve
from cmapkd_core.report.read.run_inputs import RunInputs, origins
from cmapkd_core.report.read.samples import WEIGHTS_FILE, read_samples, square_picture
from cmapkd_core.report.sections.section import Section
from cmapkd_core.report.significance import Interval
from cmapkd_core.report.tables.table import Cell, Head, Table, TableRow, mean_cell, number_cell

MODALITIES = {"Image levels": VISION_LEVELS, "Text levels": TEXT_LEVELS}
SHUFFLE_SEED = 0  # of the control that shuffles the weights across samples


def no_levels(inputs: RunInputs) -> str:
    """Why there are no level weights that depend on the sample; "" where there are."""
    recipe = inputs.recipe
    if "selector" not in METHODS[recipe.method.name].groups:
        return f"The method {recipe.method.name} has no levels, so there are no level weights to show."
    if recipe.selector.kind == "fixed":
        total = sum(recipe.selector.weights)
        values = ", ".join(f"{value / total:.3g}" for value in recipe.selector.weights)
        return (
            f"The selector is fixed: every sample has the weights {values} (finest level first) in both "
            "modalities. There is no ALSN and so no figure of its weights."
        )
    return ""


def no_weights(inputs: RunInputs) -> str:
    """Why there is no table of the samples' level weights; "" where there may be one."""
    if reason := no_levels(inputs):
        return reason
    if SELECTORS[inputs.recipe.selector.kind].validates:
        return (
            "The level weights of each batch followed from the gradient on validation pairs. They bound what a greedy "
            "selector could win and are no result; nothing was learned that gives a sample its weights."
        )
    return ""


def difficulty_section(inputs: RunInputs) -> Section:
    """Figure 3: level weights against difficulty with the shuffled control; Spearman's rho as numbers."""
    if reason := no_weights(inputs):
        return Section(missing=(reason,))
    source = inputs.first("weights.parquet", "joint", "alsn")
    samples = source.parquet("weights.parquet")
    real = {title: difficulty_profile(samples, names) for title, names in MODALITIES.items()}
    control = {title: difficulty_profile(samples, names, SHUFFLE_SEED) for title, names in MODALITIES.items()}
    highest = max(float((level.mean + level.error).max()) for p in real.values() for level in p.levels)
    plots = []
    for title in MODALITIES:
        plots.append(draw_profile(title, real[title], 1.12 * highest))
        plots.append(draw_profile(f"{title}, shuffled", control[title], 1.12 * highest))
    pairs = [(a, b) for t in MODALITIES for a, b in zip(real[t].levels, control[t].levels, strict=True)]
    n, urls = next(iter(real.values())).samples, origins(inputs, source.name)
    heads = ("mean weight", "easiest bin", "hardest bin", f"Spearman's rho with difficulty, n = {n}", "rho, shuffled")
    lines = [TableRow(a.name, _weight_cells(a, b, urls)) for a, b in pairs]
    caption = (
        f"Level weights against difficulty over {n} training samples, in bins of equal count, by the selector at the "
        f"end of stage {source.name}. Difficulty of a sample: the teacher's margin minus the student's, at the end of "
        "warm-up. Band: one standard error of the mean; dashed rule: the uniform weight. Shuffled: the same weights "
        "dealt to other samples, which shows how large a relation is by chance. What such weights win over equal ones, "
        "and beside it what weights that cheat win, is on the page of suite table4 (rows no_alsn and oracle_alsn)."
    )
    table = Table(
        "figure3",
        "Weights and their relation to difficulty",
        tuple(Head("", label) for label in heads),
        tuple(lines),
        stub="Level",
    )
    return Section(caption, tuple(plots), (table,), wide=True, urls=urls)


def _weight_cells(real: LevelProfile, shuffled: LevelProfile, urls: dict[str, str]) -> tuple[Cell, ...]:
    numbers = {"mean": float(real.mean.mean()), "easiest": float(real.mean[0]), "hardest": float(real.mean[-1])}
    cells = [number_cell(value, f"{real.name}/{name}", urls, 3) for name, value in numbers.items()]
    rhos = {"rho": real.rho, "rho shuffled": shuffled.rho}
    return (*cells, *(number_cell(value, f"{real.name}/{name}", urls, 2, "constant") for name, value in rhos.items()))


def groups_section(inputs: RunInputs) -> Section:
    """Figure 4: radars of the mean weights of four kinds of sample, with pictures and the rule of choice."""
    if reason := no_weights(inputs):
        return Section(missing=(reason,))
    samples = read_samples(inputs)
    chosen = choose_groups(samples)
    urls = origins(inputs, inputs.first(WEIGHTS_FILE, "joint", "alsn").name, "shards")
    known = [tuple(name for name in names if name in samples.names) for names in MODALITIES.values()]
    spokes = [" / ".join(pair) for pair in zip(*known, strict=True)]
    top = 0.05 * np.ceil(max(value for group in chosen for value in group.mean.values()) / 0.05)
    captions = {key: texts[0] if texts else "" for key, texts in zip(samples.keys, samples.captions, strict=True)}
    plots = []
    for group in chosen:
        polygons = {
            title.lower(): [group.mean[n] for n in names] for title, names in zip(MODALITIES, known, strict=True)
        }
        pictures = [(square_picture(inputs, key), captions[key]) for key in group.keys[:SHOWN]]
        title = f"{group.rule.name.capitalize()}, n = {len(group.keys)}"
        plots.append(draw_radar(title, polygons, spokes, float(top), 1 / len(spokes), pictures))
    every = {name: samples.weights[:, i] for i, name in enumerate(samples.names)}
    overall = tuple(_mean_cell(f"all/{name}", values, urls) for name, values in every.items())
    rows = [TableRow(group.rule.name, _group_cells(group, urls)) for group in chosen]
    rows.append(TableRow("all samples", (*overall, Cell(str(len(samples.keys)))), "chance"))
    rules = "; ".join(f"{group.rule.name}: {group.rule.words}" for group in chosen)
    caption = (
        f"Mean level weights of four kinds of training sample. A kind is the {100 * SHARE:.0f} % of the "
        f"{len(samples.keys)} samples (at least {LEAST}) that come first by a rule: {rules}. The rules read "
        "captions, teacher and difficulty, never the weights; nobody looked at the pictures. Pictures: the first ones "
        "of each kind. Finest level at the top, then clockwise; dotted: the uniform weight."
    )
    notes = ("Mean weight ± one standard error over the kind's samples; a sample may be of several kinds.",)
    heads = (*(Head("", name) for name in samples.names), Head("", "n"))
    table = Table("figure4", "Mean weights of each kind", heads, tuple(rows), notes, stub="Kind")
    shown = {group.rule.name: [captions[key] for key in group.keys[:SHOWN]] for group in chosen}
    return Section(caption, tuple(plots), (table,), wide=True, urls=urls, content=shown)


def _group_cells(group: SampleGroup, urls: dict[str, str]) -> tuple[Cell, ...]:
    cells = [
        mean_cell(Interval(group.mean[name], group.error[name], len(group.keys)), f"{group.rule.name}/{name}", urls, 3)
        for name in group.mean
    ]
    return (*cells, Cell(str(len(group.keys))))


def _mean_cell(number: str, values: np.ndarray, urls: dict[str, str]) -> Cell:
    """Mean and one standard error of values [n]."""
    error = float(values.std(ddof=1) / len(values) ** 0.5)
    return mean_cell(Interval(float(values.mean()), error, len(values)), number, urls, 3)


def policy_section(inputs: RunInputs) -> Section:
    """Mean weights and entropies, in joint training and, of a policy that learns, in the ALSN stage."""
    if reason := no_levels(inputs):
        return Section(missing=(reason,))
    trace = logged_points(inputs, "alsn", "joint")
    logged = set(logged_names(trace, "stats"))
    plots = []
    for title, names in MODALITIES.items():
        read = {name: training_curve(trace, reader("stats", f"weight/{name}")) for name in names}
        lines = {name: curve for name, curve in read.items() if curve}
        if lines:
            plots.append(draw_curves(f"{title}: mean weight", "mean weight", lines))
    entropies = {name: f"entropy/{name}" for name in ("vision", "text") if f"entropy/{name}" in logged}
    if not plots or not entropies:
        raise Missing("Missing: the stages alsn and joint logged no weights of levels.")
    lines = {name: training_curve(trace, reader("stats", key)) for name, key in entropies.items()}
    plots.append(draw_curves("Entropy of the weights", "mean entropy, nats", lines, zero=False))
    when = "while ALSN learns" if SELECTORS[inputs.recipe.selector.kind].learns else "in joint training"
    caption = (
        f"Level weights {when}, means over the batch. Uniform weights over four levels have an entropy of "
        f"{math.log(len(VISION_LEVELS)):.2f} nats."
    )
    return Section(caption, tuple(plots), urls=origins(inputs, "alsn", "joint"))
