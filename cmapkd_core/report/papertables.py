"""The paper's Tables 2, 3 and 4, and captioning beside them; Table 5 is in efficiency.py."""

from __future__ import annotations

from dataclasses import replace

from cmapkd_core.report.assemble import SIZE, Extra, Field, Report, absent, column, columns_of, table
from cmapkd_core.report.measured import GEOMETRIC_RANK, MEAN_RECALL, Measured
from cmapkd_core.report.names import FULL_METHOD, meaning
from cmapkd_core.report.papertable import Cell, Head, PaperTable, difference
from cmapkd_core.report.statistics import LEVEL
from cmapkd_core.report.table import standard_error

_SIDES = {"i2t": "Image to text", "t2i": "Text to image"}
RECALLS = {side: tuple(Field(f"{side}/R@{k}", group, f"R@{k}") for k in (1, 5, 10)) for side, group in _SIDES.items()}
MEDIANS = {side: (Field(f"{side}/median_rank", group, "median rank", ""),) for side, group in _SIDES.items()}
MEAN = Field(MEAN_RECALL, "Both ways", "mean recall")
RANK = Field(GEOMETRIC_RANK, "Both ways", "geometric mean rank", "")
LOWER = "Of ranks lower is better; their geometric mean hears every query, and varies less between seeds than R@k."
VQA = tuple(
    Field(metric, "VQA", label)
    for metric, label in {"overall": "overall", "yes_no": "yes/no", "number": "number", "other": "other"}.items()
)
ZEROSHOT = tuple(Field(metric, "Zero-shot", label) for metric, label in {"top1": "top-1", "top5": "top-5"}.items())
CAPTIONING = tuple(
    Field(metric, "Captioning", metric, "")
    for metric in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
)
DEALT = Field("shuffled/CIDEr", "Captioning", "CIDEr, dealt to other images", "")
MAIN = (
    *(Field(f"{side}/R@1", "Retrieval", f"{side} R@1") for side in _SIDES),
    *(replace(one, group="Retrieval") for one in (MEAN, RANK)),
)


# Other countings of the same rankings, for the folder alone: below TASK[-DATASET], and what they are.
COUNTINGS = {
    "per_caption": "every caption a candidate of its own, as published figures are counted",
    "1k": "mean over five folds of 1000 images",
    "1k/per_caption": "mean over five folds of 1000 images, every caption a candidate of its own",
}


def retrieval(report: Report, key: str, title: str) -> list[PaperTable]:
    """Table 2, one a data set; with median ranks where no interval takes their room. Other countings are asides."""
    fields = [one for side in _SIDES for one in (*RECALLS[side], *(() if report.several else MEDIANS[side]))]
    made = []
    for name in report.names("retrieval"):
        columns = [column(name, one) for one in (*fields, MEAN, RANK)]
        own, where = _file(key, name.partition("-")[2]), f"{title} on {report.where(name)}"
        notes = _retrieval_notes(report, name)
        made.append(table(report, own, where, columns, notes=notes, lead=[SIZE]))
        for counting, meant in COUNTINGS.items():
            columns = [column(name, replace(one, metric=f"{counting}/{one.metric}")) for one in (*fields, MEAN, RANK)]
            if any(c.key in row.values for c in columns for row in report.rows):
                other = table(report, _file(own, counting.replace("/", "_")), f"{where}: {meant}", columns, lead=[SIZE])
                made.append(replace(other, aside=True))
    return made or [PaperTable(key, title, missing=tuple(absent(report, {"retrieval": fields})))]


def _file(key: str, part: str) -> str:
    return f"{key}_{part}" if part else key


def _retrieval_notes(report: Report, name: str) -> list[str]:
    images, captions = (report.facts[f"{name}/{fact}"] for fact in ("images", "captions"))
    notes = [
        f"{images:.0f} images, {captions:.0f} distinct captions. R@k: share of the queries with a right answer among "
        "the first k; captions that several images share are right for all of them, ties count against the model. "
        + LOWER
    ]
    ours = next((row for row in report.rows if row.kind == "ours" and f"{name}/i2t/R@1" in row.values), None)
    if ours and not report.several:
        errors = [
            f"{standard_error(found.mean, n):.1f} ({group.lower()})"
            for (side, group), n in zip(_SIDES.items(), (images, captions), strict=True)
            if (found := ours.interval(f"{name}/{side}/R@1"))
        ]
        notes.append(
            f"One seed. One binomial standard error of R@1 of “{ours.label}”, in points: {' and '.join(errors)}, the "
            "queries taken as independent."
        )
    return notes


def vqa_zeroshot(report: Report, key: str, title: str) -> list[PaperTable]:
    """Table 3: visual question answering with its kinds of answer, and zero-shot classification."""
    parts = {"vqa": VQA, "zeroshot": ZEROSHOT}
    notes = [_vqa_note(report, name) for name in report.names("vqa")]
    notes += [_zeroshot_note(report, name) for name in report.names("zeroshot")]
    return [table(report, key, title, columns_of(report, parts), notes=notes, missing=absent(report, parts))]


# Fact of a set of questions -> what it says; those that an evaluation does not have are left out.
_OF_QUESTIONS = {
    "questions": "{:.0f} questions",
    "majority": "the most frequent answer alone gives {:.1f} %",
    "prior": "the most frequent answer to each kind of question, without a look at the picture, {:.1f} %",
    "sayable": "{:.1f} % have an answer that can be said",
}


def _vqa_note(report: Report, name: str) -> str:
    known = {fact: report.facts.get(f"{name}/{fact}") for fact in _OF_QUESTIONS}
    said = [_OF_QUESTIONS[fact].format(value) for fact, value in known.items() if value is not None]
    none = [one.label for one in VQA if not any(f"{name}/{one.metric}" in row.values for row in report.rows)]
    said += [f"none of the kind {' or '.join(none)}"] if none else []
    counts = f" ({', '.join(said)})" if said else ""
    return (
        f"VQA on {report.where(name)}{counts}. The same fusion head was trained on every model's frozen towers: a "
        "probe, not to be set beside models that were trained for VQA as a whole."
    )


def _zeroshot_note(report: Report, name: str) -> str:
    images, classes, majority = (report.facts.get(f"{name}/{fact}") for fact in ("images", "classes", "majority"))
    counts = f": {images:.0f} images, {classes:.0f} classes" if images and classes else ""
    always = f"; the most frequent class alone gives {majority:.1f} %" if majority is not None else ""
    return f"Zero-shot on {report.where(name)}{counts}{always}."


def captioning(report: Report, key: str, title: str) -> list[PaperTable]:
    """Captions by the same small decoder on every model's frozen image tower; optional in the paper."""
    parts = {"captioning": (*CAPTIONING, DEALT)}
    notes = [
        f"On {report.where(name)}. All values times 100. The same decoder was trained on every model's frozen image "
        f"tower: a probe.{_baseline(report, name)}"
        for name in report.names("captioning")
    ]
    return [table(report, key, title, columns_of(report, parts), notes=notes, missing=absent(report, parts))]


def _baseline(report: Report, name: str) -> str:
    least = report.facts.get(f"{name}/baseline/CIDEr")
    return "" if least is None else f" The most frequent caption alone has CIDEr {least:.1f}."


def ablations(report: Report, key: str, title: str) -> list[PaperTable]:
    """Table 4: what each row is, its main numbers, and its difference to the full method, seed by seed."""
    parts = {"retrieval": MAIN, "zeroshot": ZEROSHOT[:1], "vqa": VQA[:1]}
    compared_by = {Head("", f"mean recall minus {FULL_METHOD}", "points"): f"retrieval/{MEAN_RECALL}"}
    compared_by |= {Head("", f"geometric mean rank minus {FULL_METHOD}"): f"retrieval/{GEOMETRIC_RANK}"}

    full = next((row.origins for row in report.rows if row.kind == "ours"), {})

    def told(row: Measured) -> tuple[Cell, ...]:
        return (Cell(meaning(row.name) if row.kind in ("", "ours") else ""),)

    def compared(row: Measured) -> tuple[Cell, ...]:
        found = report.differences.get(row.name, {})
        names = {number: f"{row.name}/minus full method/{number}" for number in compared_by.values()}
        return tuple(
            difference(found.get(key), name, row.origins.get(key, {}) | full.get(key, {}))
            for key, name in names.items()
        )

    last = Extra(tuple(compared_by), compared)
    note = f"Bold: the {100 * LEVEL:.0f} % interval of the difference, taken seed by seed, excludes zero. {LOWER}"
    return [
        table(
            report,
            key,
            title,
            columns_of(report, parts),
            notes=[note] if report.differences and report.several else [],
            missing=absent(report, parts),
            before=Extra((Head("", "what it is", words=True),), told),
            after=last if report.differences else Extra(),
        )
    ]
