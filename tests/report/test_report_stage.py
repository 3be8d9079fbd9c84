"""The report stage on a run of the tiny recipe that was only prepared and evaluated."""

import dataclasses
import json
import re

import pytest
from manifests import manifest

from cmapkd_core import storage
from cmapkd_core.errors import InputError
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate, export, prepare, report
from cmapkd_core.stages.artifact import Artifact


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    request = Request("tiny", str(tmp_path_factory.mktemp("root")), run="try", overrides="data.test_share=0.3")
    shards = prepare.run(request)
    return request, shards, evaluate.run(request, model="recipe:student", shards=shards)


def test_files_copies_and_the_printed_table(run, tmp_path, capsys):
    request, shards, before = run
    places = {name: str(tmp_path / "kfp" / name) for name in ("html", "markdown", "metrics")}
    outputs = {
        "outputFile": str(tmp_path / "output.json"),
        "artifacts": {"metrics": {"artifacts": [{"uri": "s3://m"}]}},
    }
    told = json.dumps({"outputs": outputs})
    url = report.run(
        request,
        artifacts={"shards": shards, "before_eval": before, "student_eval": before},
        executor_input=told,
        **places,
    )
    artifact = Artifact.open(url)
    assert url == f"{request.root}/runs/try/report"
    for file, copy in ((report.RUN.html, "html"), (report.RUN.markdown, "markdown")):
        assert artifact.fetch(file).read_bytes() == (tmp_path / "kfp" / copy).read_bytes()
    lines = capsys.readouterr().out.splitlines()
    printed = json.loads(artifact.fetch(report.RUN.table).read_text())["text"].splitlines()
    assert lines[-2 - len(printed) : -2] == printed
    outcome = json.loads(artifact.fetch(report.RUN.table).read_text())["outcome"]
    assert lines[-2] == f"report: {outcome['sentence']}"
    assert lines[-1] == f"report: {artifact.file_url(report.RUN.html)}"
    metrics = json.loads((tmp_path / "kfp" / "metrics").read_text())
    assert metrics["before/retrieval/i2t/R@1"] == metrics["student/retrieval/i2t/R@1"]
    written = json.loads((tmp_path / "output.json").read_text())
    assert written["artifacts"]["metrics"]["artifacts"][0]["metadata"] == metrics
    assert "data:image/jpeg;base64," in artifact.fetch(report.RUN.html).read_text()


def test_an_evaluation_of_another_model_is_refused_and_mlflow_is_told(
    run, tiny_warmup, tiny_teacher, mlflow_database, monkeypatch
):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    request, shards, before = run
    request = dataclasses.replace(request, run="refused", tracking_uri=mlflow_database)
    for evaluation, model, url in (("student_eval", "joint", tiny_warmup), ("teacher_eval", "teacher", tiny_teacher)):
        said = (
            f"{evaluation} {before} is an evaluation of .*, a model that no stage has trained, and not of {url}: give"
        )
        with pytest.raises(InputError, match=said):
            report.run(request, artifacts={"shards": shards, evaluation: before, model: url})
        client = MlflowClient(tracking_uri=mlflow_database)
        where = [one.experiment_id for one in client.search_experiments()]
        told = client.search_runs(where, "tags.`cmapkd.run` = 'refused' and tags.`cmapkd.stage` = 'report'")
        assert [one.info.status for one in told] == ["FAILED"]
        assert re.search(said, told[0].data.tags["cmapkd.end"])


def test_an_export_has_its_own_models_results(run, tiny_warmup):
    request, shards, before = run
    with pytest.raises(InputError, match=f"--evaluation {before} is an evaluation of .*, and not of {tiny_warmup}"):
        export.run(request, model=tiny_warmup, shards=shards, evaluation=before)
    with pytest.raises(InputError, match=f"--evaluation {before} is an evaluation of .*, and not of ViT-B-32:none"):
        export.run(request, model="ViT-B-32:none", shards=shards, evaluation=before)


def test_again_prints_the_same_from_the_finished_report(run, tmp_path, capsys):
    request, shards, before = run
    given = {"artifacts": {"shards": shards, "before_eval": before, "student_eval": before}}
    report.run(request, **given)
    capsys.readouterr()
    report.run(request, html=str(tmp_path / "again.html"), **given)
    out = capsys.readouterr().out
    assert "already complete" in out
    assert "Student before training" in out
    assert (tmp_path / "again.html").exists()


def test_an_unfinished_artifact_is_an_error(run):
    request, shards, _ = run
    with pytest.raises(InputError, match="has no manifest"):
        report.run(request, artifacts={"shards": shards, "joint": f"{request.root}/joint/000000000000"})


def test_mlflow_gets_what_the_inputs_owe_it(run, mlflow_database, monkeypatch):
    from mlflow import MlflowClient

    request, shards, before = run
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    storage.write_json(f"{before}/owed.json", {"run": "told", "stage": "evaluate (owed)", "params": {}})
    asked = dataclasses.replace(request, run="told", tracking_uri=mlflow_database)
    report.run(asked, artifacts={"shards": shards, "before_eval": before})
    assert not storage.exists(f"{before}/owed.json")
    client = MlflowClient(tracking_uri=mlflow_database)
    where = [one.experiment_id for one in client.search_experiments()]
    (told,) = client.search_runs(where, "tags.`cmapkd.stage` = 'evaluate (owed)'")
    assert len(told.data.metrics) == len(Artifact.open(before).manifest["metrics"])
    assert told.info.status == "FINISHED"


def test_a_suites_report_stands_without_a_warm_up_that_was_deleted(run, tmp_path, capsys):
    """As to make room: its seconds are not known then, which is said."""
    request, _, before = run
    made_from = {"init": {"url": str(tmp_path / "warmup" / "b"), "digest": "1"}}
    told = manifest(stage="joint", inputs=made_from, metrics={"parameters/trained": 5.0}, seconds=9.0)
    storage.write_bytes(str(tmp_path / "joint" / "a" / "manifest.json"), told)
    given = {"evaluation/none/0": before, "training/none/0": str(tmp_path / "joint" / "a")}
    url = report.run(dataclasses.replace(request, run="gone"), artifacts=given, suite="smoke")
    assert "costs: without the seconds and the updates of none/0, of which" in capsys.readouterr().out
    costs = json.loads(Artifact.open(url).fetch("suite.json").read_bytes())["costs"]
    (cost,) = (one for one in costs if one["row"] == "none")
    assert (cost["trained"], cost["seconds"], cost["updates"]) == (5.0, None, [])


def test_a_store_that_fails_is_no_deleted_warm_up(run, tmp_path, monkeypatch):
    """It would cost the report its seconds for good."""
    request, _, before = run
    made_from = {"init": {"url": str(tmp_path / "warmup" / "b"), "digest": "1"}}
    storage.write_bytes(str(tmp_path / "joint" / "a" / "manifest.json"), manifest(stage="joint", inputs=made_from))

    def busy(self, name):
        raise storage.StorageError(f"503 Slow Down: {name}")

    monkeypatch.setattr(Artifact, "earlier", busy)
    given = {"evaluation/none/0": before, "training/none/0": str(tmp_path / "joint" / "a")}
    with pytest.raises(storage.StorageError, match="503"):
        report.run(dataclasses.replace(request, run="busy"), artifacts=given, suite="smoke")
