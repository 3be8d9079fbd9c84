"""The paper's Table 2, image-text retrieval."""

from __future__ import annotations

from dataclasses import replace

from cmapkd_core.report.read.results import GEOMETRIC_RANK, MEAN_RECALL, SIDES, Results
from cmapkd_core.report.significance import LEVEL, over_seeds, wilson
from cmapkd_core.report.tables.table import Table
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
        ends = [
            f"{low:.1f} to {high:.1f} ({group.lower()})"
            for (side, group), n in zip(SIDES.items(), (images, captions), strict=True)
            if (recall := over_seeds(student, f"{name}/{side}/R@1"))
            for low, high in [wilson(recall.mean, n)]
        ]
        notes.append(
            f"One seed. {100 * LEVEL:.0f} % intervals of R@1 of “{student.label}”, by Wilson's formula, the queries "
            f"taken as independent: {' and '.join(ends)}."
        )
    return notes
