"""Stage report of a suite on evaluations of the tiny recipe's untrained student, some of them not finished."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmapkd.pipelines.suite import lay_out
from cmapkd_core.errors import InputError
from cmapkd_core.records import read_record
from cmapkd_core.request import Request
from cmapkd_core.stages import evaluate, report
from cmapkd_core.stages.artifact import Artifact


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_shards: str) -> tuple[Request, dict[str, str]]:
    """URLs of two seeds' evaluations, and a place where a third will be."""
    request = Request("tiny", str(tmp_path_factory.mktemp("root")), run="some-suite")
    one = replace(request, run="")
    urls = {s: evaluate.run(replace(one, seed=s), model="recipe:student", shards=tiny_shards) for s in "01"}
    return request, urls | {"2": f"{request.root}/evaluate/000000000000"}


def arguments(urls: dict[str, str]) -> dict[str, Any]:
    cells = {f"evaluation/{row}/{seed}": url for row in ("finetune", "none") for seed, url in urls.items()}
    return {"suite": "smoke", "artifacts": cells | {f"before/{seed}": url for seed, url in urls.items()}}


def test_files_copies_and_the_printed_table(
    evaluated: tuple[Request, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request, urls = evaluated
    copies = {name: str(tmp_path / name) for name in ("html", "markdown", "metrics")}
    url = report.run(request, **arguments(urls), executions="9", naive="33", **copies)
    artifact = Artifact.open(url)
    assert url == f"{request.root}/runs/some-suite/report"
    assert artifact.fetch(report.SUITE.html).read_bytes() == (tmp_path / "html").read_bytes()
    found = json.loads(artifact.fetch(report.SUITE.table).read_text())
    assert (found["seeds"], found["executions"]) == (["0", "1", "2"], {"shared": 9, "naive": 33})
    assert [row["seeds"] for row in found["rows"]] == [["0", "1"]] * 2
    assert found["rows"][0]["missing"] == {"2": urls["2"]}
    record = read_record(request.root, "some-suite")  # also where the submit command could not write it
    assert (record["suite"], record["seeds"]) == ("smoke", "3")
    assert [cost["row"] for cost in found["costs"]] == list(found["shares"]) == ["finetune", "none"]
    assert f"Missing: Fine-tuned, seed 2, is not measured yet: {urls['2']}" in (tmp_path / "markdown").read_text()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"report: {artifact.file_url(report.SUITE.html)}"
    assert lines[-2] == f"report: {found['outcome']['sentence']}"
    assert lines[-2 - len(found["text"].splitlines()) : -2] == found["text"].splitlines()
    metrics = json.loads((tmp_path / "metrics").read_text())
    assert metrics["none/retrieval/mean_recall"] == metrics["finetune/retrieval/mean_recall"]


def test_the_papers_numbers_have_a_report_of_their_own(evaluated: tuple[Request, dict[str, str]]) -> None:
    request, urls = evaluated
    plain = report.run(request, **arguments(urls))
    asked = report.run(request, **arguments(urls), expectations="yes")
    assert asked == plain + "-with-expectations"
    assert (
        asked
        == lay_out("smoke", {"recipe": "tiny", "overrides": "", "data": ""}, range(3), request.root, request.run, "yes")
        .shared[-1]
        .url
    )
    assert "no table for the suite smoke" in Artifact.open(asked).fetch(report.SUITE.html).read_text()
    assert "expectation" not in Artifact.open(plain).fetch(report.SUITE.html).read_text()


def test_one_more_finished_evaluation_makes_a_new_report(
    evaluated: tuple[Request, dict[str, str]], tiny_shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    request, urls = evaluated
    request = replace(request, run="growing")
    report.run(request, **arguments(urls))
    report.run(request, **arguments(urls))
    assert "already complete" in capsys.readouterr().out
    other = evaluate.run(replace(request, run="", seed="2"), model="recipe:student", shards=tiny_shards)
    url = report.run(request, **arguments(urls | {"2": other}))
    found = json.loads(Artifact.open(url).fetch(report.SUITE.table).read_text())
    assert found["rows"][0]["seeds"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"naive": "many"}, "--naive many: a number"),
        ({}, "--artifacts has no evaluation/ROW/SEED"),
        ({"artifacts": {"evaluation/none": "/nowhere"}}, "evaluation/none is none of evaluation/ROW/SEED"),
        ({"artifacts": {"evaluations/none/0": "/nowhere"}}, "evaluations/none/0 is of no row"),
        ({"artifacts": {"evaluation/none/": "/nowhere"}}, "evaluation/none/ is none of evaluation/ROW/SEED"),
        ({"artifacts": {"evaluation/none/0": "/nowhere", "vqa/nine/0": "x"}}, "vqa/nine/0 .*did you mean"),
        ({"suite": "", "expectations": "yes"}, "--expectations is of a suite's report.* give --suite"),
    ],
)
def test_bad_input_is_named(evaluated: tuple[Request, dict[str, str]], given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        report.run(evaluated[0], **{"suite": "smoke", **given})
