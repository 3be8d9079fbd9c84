"""Places below a root, and the record that holds a run to its recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from manifests import TORN

from cmapkd_core import storage
from cmapkd_core.errors import DamagedInput, InputError
from cmapkd_core.executor_output import write_executor_output
from cmapkd_core.exits import ENDS
from cmapkd_core.places import evaluation_url, report_url, run_url, stage_url
from cmapkd_core.recipes import resolve
from cmapkd_core.records import read_record, record_run, record_url
from cmapkd_core.request import Request
from cmapkd_core.stages import prepare
from cmapkd_core.stages.cli import main

REQUEST = {"recipe": "tiny", "ablation": "none", "overrides": "", "seed": "", "data": ""}


def test_recipes_that_agree_share_a_stage() -> None:
    ours, other = resolve("tiny"), resolve("tiny", "no_alsn")
    for stage in ("prepare", "teacher", "warmup"):
        assert stage_url("/r", stage, ours) == stage_url("/r", stage, other)
    assert stage_url("/r", "joint", ours) != stage_url("/r", "joint", other)
    assert stage_url("/r", "prepare", ours).startswith("/r/prepare/")


def test_a_stage_with_nothing_to_do_is_at_its_predecessors_place() -> None:
    for row in ("no_alsn", "random_alsn", "finetune"):
        recipe = resolve("tiny", row)
        assert stage_url("/r", "alsn", recipe) == stage_url("/r", "warmup", recipe)
    for row in ("none", "shuffled_alsn"):
        recipe = resolve("tiny", row)
        assert stage_url("/r", "alsn", recipe).startswith("/r/alsn/")


def test_an_evaluation_depends_on_model_shards_and_measure_and_not_on_where_the_root_is() -> None:
    recipe = resolve("tiny")
    url = evaluation_url("/r", "/r/joint/1", "/r/prepare/1", recipe)
    assert (
        evaluation_url("s3://b/r", "s3://b/r/joint/1", "s3://b/r/prepare/1", recipe).split("/")[-1]
        == url.split("/")[-1]
    )
    others = {
        evaluation_url("/r", "/r/joint/2", "/r/prepare/1", recipe),
        evaluation_url("/r", "/r/joint/1", "/r/prepare/2", recipe),
        evaluation_url("/r", "/r/joint/1", "/r/prepare/1", recipe, task="retrieval"),
        evaluation_url("/r", "/r/joint/1", "/r/prepare/1", resolve("tiny", overrides="evaluate.split=val")),
    }
    assert len(others | {url}) == 5


def test_an_untrained_student_is_known_by_its_weights_and_seed() -> None:
    first = evaluation_url("/r", "recipe:student", "/r/prepare/1", resolve("tiny"))
    assert first != evaluation_url("/r", "recipe:student", "/r/prepare/1", resolve("tiny", seed=1))
    trained = evaluation_url("/r", "/r/joint/1", "/r/prepare/1", resolve("tiny"))
    assert trained == evaluation_url("/r", "/r/joint/1", "/r/prepare/1", resolve("tiny", seed=1))


def test_a_run_named_in_the_ui_stays_below_the_root() -> None:
    assert run_url("/r", "Run of cmapkd (1/2)") == "/r/runs/Run-of-cmapkd-1-2"
    assert run_url("/r", "../..") == "/r/runs/unnamed"
    assert report_url("/r", "a") == "/r/runs/a/report"


def test_names_in_any_script_have_places_of_their_own() -> None:
    """Written out: whoever computes a place, in whatever process, must come to the same."""
    assert run_url("/r", "实验一") == "/r/runs/run-2dac6e5b8c89"
    assert run_url("/r", "Versuch für 一") == "/r/runs/Versuch-f-r-96b8c47be68d"
    names = ["实验一", "实验二", "опыт", "опыт-2", "🙂", "für", "f-r"]
    assert len({run_url("/r", name) for name in names}) == len(names)
    assert all(run_url("/r", name).isascii() for name in names)
    assert run_url("/r", "fu\u0308r") == run_url("/r", "f\u00fcr")


def test_the_record_of_a_name_in_another_script_keeps_it_and_the_nearest_is_told_by_it(tmp_path: Path) -> None:
    for name in ("实验一", "plain-name"):
        record_run(str(tmp_path), name, REQUEST)
    assert read_record(str(tmp_path), "实验一")["run"] == "实验一"
    with pytest.raises(InputError, match="did you mean '实验一'"):
        read_record(str(tmp_path), "实验二")
    with pytest.raises(InputError, match="did you mean 'plain-name'"):
        read_record(str(tmp_path), "plain-nam")


def test_the_same_recipe_goes_on_and_another_is_refused_with_its_fields(tmp_path: Path) -> None:
    root = str(tmp_path)
    record_run(root, "one", REQUEST)
    record_run(root, "one", REQUEST | {"overrides": "runtime.workers=3"})
    with pytest.raises(InputError, match=r"(?s)run 'one'.*optim.batch: 16 -> 8.*another --run"):
        record_run(root, "one", REQUEST | {"overrides": "optim.batch=8"})
    assert read_record(root, "one")["overrides"] == ""


def test_a_suites_record_has_its_rows_and_seeds_and_its_stages_need_not_know_them(tmp_path: Path) -> None:
    root, suite = str(tmp_path), {"suite": "table4", "seeds": "3"}
    record_run(root, "one", REQUEST | suite)
    record_run(root, "one", REQUEST | suite)
    record_run(root, "one", REQUEST, stage="suite_report")
    assert {name: read_record(root, "one")[name] for name in suite} == suite
    with pytest.raises(InputError, match="seeds: 3 -> 5"):
        record_run(root, "one", REQUEST | suite | {"seeds": "5"})
    with pytest.raises(InputError, match="suite: table4 -> None"):
        record_run(root, "one", REQUEST)


def test_what_one_task_is_told_alone_is_not_in_the_record(tmp_path: Path) -> None:
    """The data set of an evaluation, whose stage prepare may be the first of a run to start."""
    root = str(tmp_path)
    prepare.run(Request("tiny", root, run="one", own_overrides="data.splits=test"))
    with pytest.raises(InputError, match="no run 'one'"):
        read_record(root, "one")
    prepare.run(Request("tiny", root, run="one"))
    prepare.run(Request("tiny", root, run="one", own_overrides="data.splits=test"))
    assert read_record(root, "one")["fields"]["data.splits"] == []


def test_a_record_from_before_a_field_existed_still_holds(tmp_path: Path) -> None:
    root = str(tmp_path)
    record_run(root, "one", REQUEST)
    record = read_record(root, "one")
    del record["fields"]["pyramid.inherit"]
    storage.write_json(record_url(root, "one"), record)
    record_run(root, "one", REQUEST)
    with pytest.raises(InputError, match=r"pyramid\.inherit: False -> True"):
        record_run(root, "one", REQUEST | {"overrides": "pyramid.inherit=true"})


def test_a_run_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is none yet"):
        read_record(str(tmp_path), "demo-non-s0")
    record_run(str(tmp_path), "demo-none-s0", REQUEST)
    with pytest.raises(InputError, match="did you mean 'demo-none-s0'"):
        read_record(str(tmp_path), "demo-non-s0")


def test_metrics_reach_kfp_as_metadata(tmp_path: Path) -> None:
    given = {
        "outputs": {
            "outputFile": str(tmp_path / "out" / "executor_output.json"),
            "artifacts": {n: {"artifacts": [{"name": n, "uri": f"s3://b/{n}"}]} for n in ("html", "metrics")},
        }
    }
    write_executor_output(json.dumps(given), {"r1": 0.5, "bad": float("nan")})
    artifacts = json.loads((tmp_path / "out" / "executor_output.json").read_text())["artifacts"]
    assert artifacts["metrics"]["artifacts"] == [{"name": "metrics", "uri": "s3://b/metrics", "metadata": {"r1": 0.5}}]
    assert artifacts["html"]["artifacts"][0]["metadata"] == {}
    write_executor_output("", {"r1": 0.5})


@pytest.mark.parametrize("torn", TORN)
def test_a_damaged_record_is_told_with_a_way_out_that_leads_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], torn: str
) -> None:
    root, name = str(tmp_path), "실험"  # in another script: the list of runs reads the record for its name
    record_run(root, name, REQUEST)
    whole = storage.read_bytes(url := record_url(root, name))
    storage.write_bytes(url, TORN[torn])
    with pytest.raises(DamagedInput, match=r"run\.json is damaged \(it"):
        read_record(root, name)
    with pytest.raises(InputError, match="no run 'other'"):
        read_record(root, "other")
    argv = ["--recipe", "tiny", "--root", root, "--run", name]
    assert main(prepare.run, argv) == ENDS["damaged"].code
    said = capsys.readouterr().err
    assert f"error: {url} is damaged (it" in said
    assert "): delete it and give the run's first command again, with its recipe" in said
    assert "or give another --run name" in said
    record_run(root, "another", REQUEST)
    storage.delete(url)
    record_run(root, name, REQUEST)
    assert storage.read_bytes(url) == whole
