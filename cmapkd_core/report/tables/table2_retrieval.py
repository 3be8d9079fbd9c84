"""The paper's Table 2, image-text retrieval, and what distillation gained on the same queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cmapkd_core.errors import InputError
from cmapkd_core.report.read.artifacts import Missing
from cmapkd_core.report.read.results import GEOMETRIC_RANK, KS, MEAN_RECALL, SIDES, Results
from cmapkd_core.report.read.run_inputs import ROLES, RunInputs, origins
from cmapkd_core.report.significance import LEVEL, Interval, over_seeds, paired, standard_error
from cmapkd_core.report.tables.table import Head, Table, TableRow, difference_cell
from cmapkd_core.report.tables.table_builder import SIZE, Field, absent, build_table, column

RECALL_FIELDS = {
    side: tuple(Field(f"{side}/R@{k}", group, f"R@{k}") for k in (1, 5, 10)) for side, group in SIDES.items()
}
MEDIANS = {side: (Field(f"{side}/median_rank", group, "median rank", ""),) for side, group in SIDES.items()}
MEAN_FIELD = Field(MEAN_RECALL, "Both ways", "mean recall")
RANK_FIELD = Field(GEOMETRIC_RANK, "Both ways", "geometric mean rank", "")
LOWER = "Of ranks lower is better; their geometric mean takes in every query, and varies less between seeds than R@k."
# Other countings of the same rankings, for the folder alone: below TASK[-DATASET], and what they are.
COUNTINGS = {
    "per_caption": "every caption a candidate of its own, as published figures are counted",
    "1k": "mean over five folds of 1000 images",
    "1k/per_caption": "mean over five folds of 1000 images, every caption a candidate of its own",
}


def retrieval_tables(results: Results, key: str, title: str) -> list[Table]:
    """Table 2, one a data set; with median ranks where no interval takes their room. Other countings are asides."""
    fields = [one for side in SIDES for one in (*RECALL_FIELDS[side], *(() if results.several else MEDIANS[side]))]
    made = []
    for name in results.names("retrieval"):
        columns = [column(name, one) for one in (*fields, MEAN_FIELD, RANK_FIELD)]
        own, where = _file(key, name.partition("-")[2]), f"{title} on {results.where(name)}"
        notes = _retrieval_notes(results, name)
        made.append(build_table(results, own, where, columns, notes=notes, lead=[SIZE]))
        for counting, meant in COUNTINGS.items():
            columns = [
                column(name, replace(one, metric=f"{counting}/{one.metric}"))
                for one in (*fields, MEAN_FIELD, RANK_FIELD)
            ]
            if any(c.key in row.values for c in columns for row in results.rows):
                other = build_table(
                    results, _file(own, counting.replace("/", "_")), f"{where}: {meant}", columns, lead=[SIZE]
                )
                made.append(replace(other, aside=True))
    return made or [Table(key, title, missing=tuple(absent(results, {"retrieval": fields})))]


def _file(key: str, part: str) -> str:
    return f"{key}_{part}" if part else key


def _retrieval_notes(results: Results, name: str) -> list[str]:
    images, captions = (results.facts[f"{name}/{fact}"] for fact in ("images", "captions"))
    notes = [
        f"{images:.0f} images, {captions:.0f} distinct captions. R@k: share of the queries with a right answer among "
        "the first k; captions that several images share are right for all of them, ties count against the model. "
        + LOWER
    ]
    student = next((row for row in results.rows if row.kind == "ours" and f"{name}/i2t/R@1" in row.values), None)
    if student and not results.several:
        errors = [
            f"{standard_error(recall.mean, n):.1f} ({group.lower()})"
            for (side, group), n in zip(SIDES.items(), (images, captions), strict=True)
            if (recall := over_seeds(student, f"{name}/{side}/R@1"))
        ]
        notes.append(
            f"One seed. One binomial standard error of R@1 of “{student.label}”, in points: {' and '.join(errors)}, "
            "the queries taken as independent."
        )
    return notes


def gain_tables(inputs: RunInputs, results: Results) -> list[Table]:
    """Distilled minus fine-tuned R@k with its paired intervals over queries, both ways; [] where one is missing."""
    models = {name: ROLES[name] for name in ("student", "reference")}
    try:
        student, reference = (inputs.source(one.evaluation).json("retrieval.json") for one in models.values())
    except Missing:
        return []
    urls = origins(inputs, *(one.evaluation for one in models.values()))
    rows = []
    for side, title in SIDES.items():
        gains = {k: recall_difference(student[side], reference[side], k) for k in KS}
        rows.append(
            TableRow(title, tuple(difference_cell(gain, f"{side}/R@{k}", urls, 1) for k, gain in gains.items()))
        )
    labels = [results.row(name).label for name in models]
    note = (
        f"Paired t-intervals over the test queries at {100 * LEVEL:.0f} %; bold where the interval excludes zero. They "
        "hold the sampling of the test queries only; this is one seed, and another seed moves the numbers too."
    )
    title = f"“{labels[0]}” minus “{labels[1]}” on the same queries"
    heads = tuple(Head("", f"R@{k}", "points") for k in KS)
    return [Table("retrieval_gain", title, heads, tuple(rows), (note,))]


def recall_difference(
    minuend: Mapping[str, dict[str, Any]], subtrahend: Mapping[str, dict[str, Any]], k: int
) -> Interval | None:
    """Difference of R@k over the same queries in points, paired query by query; None of no query.

    Args:
        minuend, subtrahend: `i2t` or `t2i` of retrieval.json, query -> {"rank": ..}.

    Raises:
        InputError: the two hold different queries.
    """
    if minuend.keys() != subtrahend.keys():
        raise InputError("two evaluations have different queries: evaluate both on the same shards and split")
    one, other = ({q: 100.0 * (row["rank"] <= k) for q, row in side.items()} for side in (minuend, subtrahend))
    return paired(one, other)
