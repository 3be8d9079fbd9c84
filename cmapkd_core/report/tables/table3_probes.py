"""The paper's Table 3, VQA and zero-shot classification, and captioning beside it."""

from __future__ import annotations

from cmapkd_core.report.read.results import Results
from cmapkd_core.report.tables.table import Table
from cmapkd_core.report.tables.table_builder import Field, absent, build_table, columns_of

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


def vqa_zeroshot_tables(results: Results, key: str, title: str) -> list[Table]:
    """Table 3: visual question answering with its kinds of answer, and zero-shot classification."""
    parts = {"vqa": VQA, "zeroshot": ZEROSHOT}
    notes = [_vqa_note(results, name) for name in results.names("vqa")]
    notes += [_zeroshot_note(results, name) for name in results.names("zeroshot")]
    return [build_table(results, key, title, columns_of(results, parts), notes=notes, missing=absent(results, parts))]


# Fact of a set of questions -> what it says; those that an evaluation does not have are left out.
_OF_QUESTIONS = {
    "questions": "{:.0f} questions",
    "majority": "the most frequent answer alone gives {:.1f} %",
    "prior": "the most frequent answer to each kind of question, without a look at the picture, {:.1f} %",
    "sayable": "{:.1f} % have an answer that can be said",
}


def _vqa_note(results: Results, name: str) -> str:
    known = {fact: results.facts.get(f"{name}/{fact}") for fact in _OF_QUESTIONS}
    facts = [_OF_QUESTIONS[fact].format(value) for fact, value in known.items() if value is not None]
    none = [one.label for one in VQA if not any(f"{name}/{one.metric}" in row.values for row in results.rows)]
    facts += [f"none of the kind {' or '.join(none)}"] if none else []
    counts = f" ({', '.join(facts)})" if facts else ""
    return (
        f"VQA on {results.where(name)}{counts}. The same fusion head was trained on every model's frozen towers: a "
        "probe, not to be set beside models that were trained for VQA as a whole."
    )


def _zeroshot_note(results: Results, name: str) -> str:
    images, classes, majority = (results.facts.get(f"{name}/{fact}") for fact in ("images", "classes", "majority"))
    counts = f": {images:.0f} images, {classes:.0f} classes" if images and classes else ""
    always = f"; the most frequent class alone gives {majority:.1f} %" if majority is not None else ""
    return f"Zero-shot on {results.where(name)}{counts}{always}."


def captioning_tables(results: Results, key: str, title: str) -> list[Table]:
    """Captions by the same small decoder on every model's frozen image tower; optional in the paper."""
    parts = {"captioning": (*CAPTIONING, DEALT)}
    notes = [
        f"On {results.where(name)}. All values times 100. The same decoder was trained on every model's frozen image "
        f"tower: a probe.{_baseline(results, name)}"
        for name in results.names("captioning")
    ]
    return [build_table(results, key, title, columns_of(results, parts), notes=notes, missing=absent(results, parts))]


def _baseline(results: Results, name: str) -> str:
    least = results.facts.get(f"{name}/baseline/CIDEr")
    return "" if least is None else f" The most frequent caption alone has CIDEr {least:.1f}."
