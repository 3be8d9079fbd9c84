"""Tables 2, 3 and 5 of a run: numbers from their artifacts, sentences for those that are missing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cmapkd_core.errors import InputError
from cmapkd_core.report.read.results import Results
from cmapkd_core.report.read.run_inputs import MAIN_EVALUATIONS, check_run_names, run_results
from cmapkd_core.report.tables.table import Table
from cmapkd_core.report.tables.table2_retrieval import retrieval_tables
from cmapkd_core.report.tables.table3_probes import vqa_zeroshot_tables
from cmapkd_core.report.tables.table5_efficiency import efficiency_tables


def report_of(inputs: Any) -> Results:
    return run_results(inputs)


def cells(made: Table, label: str) -> dict[str, str]:
    """Heading -> text of one row; the group stands before the heading."""
    (row,) = [line for line in made.rows if line.label == label]
    return {f"{h.group} {h.label}".strip(): c.text() for h, c in zip(made.heads, row.cells, strict=True)}


def test_table_two(make_inputs):
    (made,) = retrieval_tables(report_of(make_inputs()), "table2_retrieval", "Retrieval")
    assert made.heading() == "Table 2. Retrieval on scenes, split “test”"
    assert [line.kind for line in made.rows] == ["teacher", "", "", "ours", "chance"]
    row = cells(made, "Student distilled")
    # 30, 61.3, 71.3, 30, 62.3, 72.3: a mean of 54.5333
    assert row["Both ways mean recall"] == "54.5"
    assert row["Image to text R@1"] == "30.0"
    assert cells(made, "Chance")["Image to text R@5"] == "25.0"
    assert made.origins()["student_eval"] == "s3://bucket/student_eval/0123"


def test_published_counting_is_a_table_for_the_folder(make_inputs, further):
    source = further["vqa-easy_vqa/student"]
    keys = ["i2t/R@1", "i2t/R@5", "i2t/R@10", "t2i/R@1", "t2i/R@5", "t2i/R@10", "mean_recall"]
    metrics = {f"retrieval/{key}": 40.0 for key in keys} | {f"retrieval/per_caption/{key}": 39.0 for key in keys}
    metrics |= {"retrieval/images": 5.0, "retrieval/captions": 25.0}
    source.path("metrics.json").write_text(json.dumps(metrics))
    more = {"retrieval-flickr/student": type(source)("retrieval-flickr/student", "s3://f", source.files, source.fetch)}
    made = retrieval_tables(report_of(make_inputs(more=more)), "table2_retrieval", "Retrieval")
    assert [(one.key, one.aside) for one in made] == [
        ("table2_retrieval", False),
        ("table2_retrieval_flickr", False),
        ("table2_retrieval_flickr_per_caption", True),
    ]
    assert cells(made[2], "Student distilled")["Image to text, flickr R@1"] == "39.0"
    assert [line.label for line in made[1].rows] == ["Student distilled"]
    assert "Not measured for this table: Teacher, Student before training" in made[1].notes[-1]


def test_table_three_has_a_group_for_each_data_set(make_inputs, further):
    (made,) = vqa_zeroshot_tables(report_of(make_inputs(more=further)), "table3_x", "Both")
    assert [group for group, _ in made.groups()] == ["VQA, easy_vqa", "Zero-shot"]
    assert cells(made, "Teacher")["VQA, easy_vqa overall"] == "61.0"
    assert cells(made, "Student fine-tuned, no teacher")["VQA, easy_vqa overall"] == "-"
    assert not made.missing
    assert (
        "VQA on easy_vqa (100 questions, the most frequent answer alone gives 20.0 %, 99.0 % have an" in made.notes[0]
    )


def test_what_is_missing_is_a_sentence_and_not_a_column(make_inputs):
    report = report_of(make_inputs())
    (made,) = vqa_zeroshot_tables(report, "table3_x", "Both")
    assert [head.group for head in made.heads] == ["Zero-shot"] * 2
    (sentence,) = made.missing
    assert sentence == "Not measured: vqa, which would give overall, yes/no, number, other."
    (costs,) = efficiency_tables(report, "table5_x", "Costs")
    assert costs.rows == ()
    assert costs.missing == ("Not measured: efficiency, which would give GFLOPs, latency, throughput.",)


def test_a_task_that_does_not_fit_the_data_says_why(make_inputs):
    inputs = make_inputs()
    for name in MAIN_EVALUATIONS:
        source = inputs.source(name)
        metrics = {k: v for k, v in source.json("metrics.json").items() if not k.startswith("zeroshot/")}
        source.path("metrics.json").write_text(json.dumps(metrics))
        source.path("zeroshot.json").write_text('{"missing": "pictures without a class"}')
    (made,) = vqa_zeroshot_tables(report_of(inputs), "table3_x", "Both")
    assert "Not measured: zeroshot. pictures without a class" in made.missing


def test_table_five_by_hand(make_inputs, further):
    (made,) = efficiency_tables(report_of(make_inputs(more=further)), "table5_efficiency", "Costs")
    assert [line.label for line in made.rows] == ["Teacher", "Student distilled"]
    row = cells(made, "Student distilled")
    # The student has 4.23 + 14.45 M parameters, the teacher 1.23 + 11.45 M (see conftest): it saves -47.3 %.
    assert row["Parameters both"] == "18.7"
    assert row["Against the teacher parameters saved"] == f"{100 * (1 - 18.68 / 12.68):.1f}"
    assert (row["GFLOPs image"], row["Image tower batch 1"], row["Image tower batch 32"]) == ("2.00", "10.0", "400.0")
    assert row["Against the teacher GFLOPs, image"] == row["Against the teacher latency, image"] == "2.00"
    assert row["image to text R@1"] == "30.0"
    assert cells(made, "Teacher")["Against the teacher latency, image"] == "-"
    assert "FLOPs: 2 FLOPs a multiply-add (a counter)." in made.notes
    assert "Times: medians on a machine, 1 thread, float32, torch 2." in made.notes
    (latency,) = [
        c
        for line in made.rows
        for h, c in zip(made.heads, line.cells, strict=True)
        if c.interval and h.label == "latency, image"
    ]
    assert latency.origins == {name: f"s3://bucket/{name}" for name in ("efficiency/teacher", "efficiency/student")}


def test_costs_of_two_machines_are_not_compared_in_silence(make_inputs, further):
    source = further["efficiency/teacher"]
    detail = source.json("efficiency.json")
    detail["environment"]["device"] = "another machine"
    source.path("efficiency.json").write_text(json.dumps(detail))
    assert "or, so that models are not to be compared, " in report_of(make_inputs(more=further)).tools["Times"]


def test_times_taken_beside_other_work_say_so(make_inputs, further):
    assert "Beware" not in report_of(make_inputs(more=further)).tools
    source = further["efficiency/teacher"]
    detail = source.json("efficiency.json")
    detail["environment"]["load_average"] = 3.0
    source.path("efficiency.json").write_text(json.dumps(detail))
    assert "other work had the processor" in report_of(make_inputs(more=further)).tools["Beware"]


def test_models_that_were_asked_different_questions_are_refused(make_inputs, further):
    source = further["vqa-easy_vqa/teacher"]
    source.path("metrics.json").write_text(json.dumps(source.json("metrics.json") | {"vqa/questions": 99.0}))
    with pytest.raises(InputError, match="vqa-easy_vqa/teacher and vqa-easy_vqa/student were measured on different"):
        report_of(make_inputs(more=further))


@pytest.mark.parametrize("name", ["vqa", "vqa/pupil", "vqa/student/0"])
def test_an_evaluation_of_no_model_is_refused(name):
    with pytest.raises(InputError, match="TASK/ROLE with ROLE one of teacher, before, reference, student"):
        check_run_names([name])
