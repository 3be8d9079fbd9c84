"""Sections on the levels themselves: their map, image levels against text levels, and how the teacher's were fitted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cmapkd_core.config import ALL_LEVELS, TEXT_LEVELS, VISION_LEVELS
from cmapkd_core.report.figures.figure5_map import SEED, draw_map, embed_levels
from cmapkd_core.report.figures.figure6_matrix import draw_matrix
from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.run_inputs import RunInputs, origins
from cmapkd_core.report.read.samples import MODELS, levels_in, read_levels, square_picture
from cmapkd_core.report.sections.section import Section
from cmapkd_core.report.significance import Interval, wilson
from cmapkd_core.report.tables.table import Cell, Head, Table, TableRow, mean_cell, number_cell

WHEN = {"before": "before training", "after": "after training"}


def map_section(inputs: RunInputs) -> Section:
    """Figure 5: one t-SNE map of the image levels, before and after; their distance in numbers."""
    table = read_levels(inputs)
    level_map, names, urls = embed_levels(table), levels_in(table), origins(inputs, "levels")
    plots = [
        draw_map(
            words.capitalize(),
            {name: (level_map.places["teacher"][name], level_map.places[when][name]) for name in names},
            level_map.limits,
        )
        for when, words in WHEN.items()
    ]
    numbers = inputs.source("levels").json("metrics.json")
    rows = [TableRow(name, _distance_cells(name, numbers, urls)) for name in (*names, "image")]
    rows[-1] = TableRow("mean", rows[-1].cells, "chance")
    heads = tuple(
        Head(title, words) for title in ("1 - cosine, mean", "1 - linear CKA") for words in ("before", "after")
    )
    caption = (
        f"t-SNE of the pooled image levels of teacher and student, {level_map.samples} held-out pictures, one map for "
        f"both panels (perplexity {level_map.perplexity:.0f}, started from the principal components, seed {SEED}): the "
        "teacher's points are the same in both. Before: the untrained student with its levels as they start. Distances "
        "in a t-SNE map have no unit; the table has those between the levels themselves."
    )
    note = (
        f"Over {numbers['pairs']:.0f} pairs. 1 - cosine of the same picture's vectors is what training lowers, and "
        "depends on the basis; 1 - linear CKA sees only which pictures are alike."
    )
    made = Table(
        "figure5", "Distance of the student's levels to the teacher's", heads, tuple(rows), (note,), stub="Level"
    )
    return Section(caption, tuple(plots), (made,), wide=True, urls=urls)


def _distance_cells(name: str, numbers: dict[str, float], urls: dict[str, str]) -> tuple[Cell, ...]:
    keys = [f"{kind}/{name}/{when}" for kind in ("cosine", "cka") for when in WHEN]
    return tuple(number_cell(numbers.get(key), key, urls, 3) for key in keys)


def crossmodal_section(inputs: RunInputs) -> Section:
    """Figure 6: image levels against text levels, for one pair and on average, teacher and student."""
    table = read_levels(inputs)
    rows = levels_in(table)
    shape = (table.num_rows, len(rows), -1)
    excess = {m: _matrix(table, f"{m}_own", shape) - _matrix(table, f"{m}_others", shape) for m in MODELS}
    columns = inputs.recipe.pyramid.text_levels
    means = {model: values.mean(0) for model, values in excess.items()}
    one = min(range(table.num_rows), key=lambda i: hashlib.sha256(table["key"][i].as_py().encode()).digest())
    key, text = table["key"][one].as_py(), table["caption"][one].as_py()
    titles = {"teacher": "Teacher", "before": "Student before training", "after": "Student after training"}
    picture = _picture(inputs, key)
    plots = []
    for models in (("teacher",), WHEN):
        around = _limits([means[model] for model in models])
        plots += [draw_matrix(f"{titles[m]}, mean", means[m], rows, columns, around) for m in models]
    for model in ("teacher", "after"):
        title, values = f"{titles[model].split()[0]}, one pair", excess[model][one]
        plots.append(draw_matrix(title, values, rows, columns, _limits([values]), picture=picture))
    caption = (
        "Similarity of image levels P with text levels L: of a picture with its own caption, minus its mean with the "
        f"captions of the other {table.num_rows - 1} held-out pictures (the second part alone says nothing of the "
        f"pair). Mean over {table.num_rows} pairs, and one pair, the first in the order of its key's SHA-256: "
        f"“{text}”. The deeper the colour the greater the value; the student's two means share one scale, every other "
        "panel has its own, from 0 or the least value to the greatest."
    )
    return Section(caption, tuple(plots), _lead(inputs), urls=origins(inputs, "levels", "shards"))


def _matrix(table: pa.Table, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """A column of n flat lists as [n, K, J]."""
    return np.stack(table[name].to_numpy()).reshape(shape)


def _limits(values: Iterable[np.ndarray]) -> tuple[float, float]:
    """The least, at most 0, and the largest value of arrays of one shape [..]."""
    every = np.stack(list(values))
    return min(0.0, float(every.min())), float(every.max())


def _picture(inputs: RunInputs, key: str) -> Image.Image | None:
    try:
        return square_picture(inputs, key)
    except Missing:
        return None


def _lead(inputs: RunInputs) -> tuple[Table, ...]:
    """How much the diagonal leads, with its standard error; nothing where the levels do not pair up."""
    numbers, urls = inputs.source("levels").json("metrics.json"), origins(inputs, "levels")
    if "diagonal/teacher" not in numbers:
        return ()
    n = int(numbers["pairs"])
    cells = tuple(
        mean_cell(Interval(numbers[f"diagonal/{m}"], numbers[f"diagonal_error/{m}"], n), f"diagonal/{m}", urls, 4)
        for m in MODELS
    )
    note = (
        "How much P2 agrees more with L1, P3 with L2, P4 with L3 and P5 with L4 than with the other levels of the same "
        f"caption: mean of the diagonal minus mean of the rest, ± one standard error over {n} pairs."
    )
    heads = _heads(("teacher", "student before", "student after"))
    return (Table("figure6", "Lead of the diagonal", heads, (TableRow("diagonal minus rest", cells),), (note,)),)


def _heads(labels: tuple[str, ...]) -> tuple[Head, ...]:
    return tuple(Head("", label) for label in labels)


def teacher_section(inputs: RunInputs) -> Section:
    """How good the fitted teacher levels are, and which pairs of levels it holds compatible."""
    fit, urls = inputs.source("teacher").json("fit.json"), origins(inputs, "teacher")
    alpha = np.array(fit["alpha"])
    plots = (draw_matrix("Compatibility", alpha, VISION_LEVELS, TEXT_LEVELS, (0.0, float(alpha.max())), 3),)
    caption = (
        "The teacher's levels are fitted on the frozen teacher before any student is trained, then frozen. Figure: "
        "compatibility of image levels with text levels; the sixteen values sum to 1."
    )
    levels = fit.get("levels", {})
    if not levels:
        return Section(f"{caption} No level was measured: the data have no validation split.", plots, urls=urls)
    lines = tuple(
        TableRow(
            name,
            (
                number_cell(100 * levels[name]["r1"], f"{name}/R@1", urls, 1),
                number_cell(levels[name]["explained_variance"], f"{name}/explained variance", urls, 3),
            ),
        )
        for name in ALL_LEVELS
        if name in levels
    )
    heads = (Head("", "retrieval R@1", "%"), Head("", "explained variance"))
    table = Table("teacher_levels", "The teacher's fitted levels", heads, lines, _fit_notes(fit), stub="Level")
    return Section(caption, plots, (table,), urls=urls)


def _fit_notes(fit: Mapping[str, Any]) -> tuple[str, ...]:
    """What the two numbers are, and what those below zero mean for a reader."""
    levels, chance = fit["levels"], 100 * fit["chance_r1"]
    what = (
        f"R@1 among {fit['pairs']} validation pairs (chance {chance:.1f} %), an image level finding its text level and "
        "the other way round. Explained variance: how much of the teacher's own features a decoder tells from the "
        "level, fitted on the training pairs. 1: all of it. 0: no more than their mean tells. Below 0: less than that."
    )

    def listed(names: list[str]) -> str:
        return ", ".join(names) if len(names) < len(levels) else "all levels"

    below = [name for name in ALL_LEVELS if name in levels and levels[name]["explained_variance"] < 0]
    if not below:
        return (what,)
    meant = (
        f"Below 0 here: {listed(below)}. What the decoder has learned does not hold for new pairs, which is usual "
        "after few pairs or few updates. The level itself may be of use all the same, for students are compared with "
        "it and not with the decoder; that it tells pairs apart shows in R@1."
    )
    lost = [name for name in below if wilson(100 * levels[name]["r1"], fit["pairs"])[0] <= chance]
    if lost:
        meant += (
            f" R@1 of {listed(lost)} is not clearly above chance either: nothing here shows that students can learn "
            "from there. More pairs help, or a teacher with pretrained weights."
        )
    return what, meant
