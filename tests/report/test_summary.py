"""The main table: numbers from metrics.json, alignment, sampling error."""

import json

import pytest

from cmapkd_core.errors import InputError
from cmapkd_core.report.read.run_inputs import run_results
from cmapkd_core.report.tables.summary import run_as_json, run_text


def test_rows_in_order_with_their_numbers(make_inputs):
    found = run_results(make_inputs())
    assert [row.label for row in found.rows] == [
        "Teacher",
        "Student before training",
        "Student fine-tuned, no teacher",
        "Student distilled",
    ]
    assert found.row("student").values["retrieval/i2t/R@1"] == {"": 30.0}
    assert found.chance.values["retrieval/t2i/R@5"] == {"": 25.0}
    assert found.facts["zeroshot/majority"] == 35.0


def test_a_method_without_a_teacher_is_not_called_distilled(make_inputs):
    assert run_results(make_inputs(ablation="scratch")).row("student").label == "Student, scratch"


def test_a_missing_evaluation_is_a_row_that_says_so(make_inputs):
    inputs = make_inputs(without=("reference_eval",))
    row = run_as_json(inputs, run_results(inputs))["rows"][2]
    assert row["values"] == {}
    assert row["missing"] == "Missing: the report was given no reference_eval artifact, which would hold metrics.json."


def test_evaluations_of_different_data_are_refused(make_inputs):
    inputs = make_inputs()
    path = inputs.source("before_eval").path("metrics.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"retrieval/images": 21.0}))
    with pytest.raises(InputError, match=r"teacher_eval and before_eval were measured on different data"):
        run_results(inputs)


def test_the_small_table_is_aligned_and_complete(make_inputs):
    lines = run_text(run_results(make_inputs())).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[-2].split() == ["Student", "distilled", "30.0", "61.3", "71.3", "30.0", "62.3", "72.3"]
    assert lines[-1].split() == ["Chance", "5.0", "25.0", "55.0", "5.0", "25.0", "55.0"]


def test_json_holds_the_numbers_and_where_they_are_from(make_inputs):
    inputs = make_inputs()
    found = json.loads(json.dumps(run_as_json(inputs, run_results(inputs))))
    assert (found["run"], found["recipe"], found["seed"]) == ("run <one>", "tiny", 0)
    student = found["rows"][-1]
    assert student["url"] == "s3://bucket/student_eval/0123"
    assert student["values"]["zeroshot/top1"] == pytest.approx(41.6)
