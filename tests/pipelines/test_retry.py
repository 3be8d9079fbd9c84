"""submit.py --retry and --schedule against the v2beta1 API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cmapkd.pipelines.submit import main

SPEC = {"root": {"dag": {"tasks": {"prepare": {"taskInfo": {"name": "prepare"}}}}}}


def ran(api: Any, name: str, state: str, version: str = "") -> str:
    """A run that is there already, with its package or as a version of the pipeline; its id."""
    run = {"run_id": f"run-{len(api.runs)}", "display_name": name, "state": state}
    if version:
        api.versions.append({"pipeline_id": "p1", "pipeline_version_id": version, "pipeline_spec": SPEC})
        run |= {"pipeline_version_reference": {"pipeline_id": "p1", "pipeline_version_id": version}}
    else:
        run |= {"pipeline_spec": {"pipeline_spec": SPEC, "platform_spec": {}}}
    api.runs.append(run)
    return str(run["run_id"])


def test_a_failed_run_is_retried_by_its_name_or_its_id(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = ran(api, "first", "FAILED", version="v7"), ran(api, "second", "CANCELED")
    assert main(["--retry", "first", "--wait"]) == 0
    printed = capsys.readouterr().out
    assert f"run first: {api.url}/#/runs/details/run-0" in printed
    assert "prepare running" in printed
    assert "prepare succeeded" in printed
    assert main(["--retry", second, "--wait"]) == 0
    assert "prepare succeeded" in capsys.readouterr().out
    assert api.retried == [first, second]
    assert len(api.runs) == 2


def test_the_latest_run_of_a_name_is_meant(api: Any) -> None:
    ran(api, "twice", "FAILED")
    latest = ran(api, "twice", "FAILED")
    assert main(["--retry", "twice"]) == 0
    assert api.retried == [latest]


@pytest.mark.parametrize("state", ["SUCCEEDED", "RUNNING"])
def test_what_did_not_fail_is_not_retried(api: Any, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran(api, "fine", state)
    assert main(["--retry", "fine"]) == 2
    assert f"is {state.lower()}: only a failed run can be retried" in capsys.readouterr().err
    assert not api.retried


def test_an_unknown_run_is_named(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--retry", "nothing"]) == 2
    assert f"no run 'nothing' at {api.url}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "KF_PIPELINES_TOKEN"), (403, "namespace"), (404, "no Pipelines API"), (503, "the database is away")],
)
@pytest.mark.parametrize("command", [["--retry", "first"], ["--schedule", "0 2 * * 1"]])
def test_refusals_are_messages(
    api: Any, command: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    api.fail_with = status
    assert main(command) == 3
    assert message in capsys.readouterr().err


FAILED = "Failed to retry run run-0 due to error updating and creating a workflow. Update error: "


@pytest.mark.parametrize(
    "said",
    [
        "etcdserver: request is too large",
        "rpc error: code = ResourceExhausted desc = trying to send message larger than max (3500000 vs. 2097152)",
        "Request entity too large: limit is 3145728",
    ],
)
def test_a_run_that_is_too_large_to_be_retried_is_submitted_again(
    api: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its states stand in one object, of 1.5 MiB at most; another minute changes nothing."""
    ran(api, "first", "FAILED")
    api.no_retry = FAILED + said
    assert main(["--retry", "first"]) == 3
    error = capsys.readouterr().err
    assert "cannot retry this run: it writes the states of all tasks into one object" in error
    assert "try again" not in error
    assert "Submit it again as it was, with the same --run" in error
    assert main(["--run", "first"]) == 0
    assert [run["display_name"] for run in api.runs] == ["first", "first"]


def test_another_failure_of_a_retry_is_said_as_it_is(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ran(api, "first", "FAILED")
    api.no_retry = FAILED + "connection refused"
    assert main(["--retry", "first"]) == 3
    assert f"it is up but failing: try again in a minute, and look at the ml-pipeline pod's log (it says: {FAILED}" in (
        capsys.readouterr().err
    )


def test_a_schedule_reads_the_source_anew_and_nothing_else(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schedule", "0 2 * * 1", "--run", "weekly", "--seed", "3"]) == 0
    assert f"recurring run weekly: {api.url}/#/recurringrun/details/every-0" in capsys.readouterr().out
    (made,) = api.recurring
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * 1"
    assert (made["display_name"], made["max_concurrency"], made["no_catchup"]) == ("weekly", 1, True)
    assert made["runtime_config"]["parameters"]["seed"] == "3"
    version = next(
        v for v in api.versions if v["pipeline_version_id"] == made["pipeline_version_reference"]["pipeline_version_id"]
    )
    tasks = version["pipeline_spec"]["root"]["dag"]["tasks"]
    redo = {key: task["inputs"]["parameters"]["redo"]["runtimeValue"]["constant"] for key, task in tasks.items()}
    assert {key for key, value in redo.items() if value == "yes"} == {"prepare"}
    # KFP has "" for the job's name of a scheduled run.
    names = {task["inputs"]["parameters"]["run"]["runtimeValue"]["constant"] for task in tasks.values()}
    assert names == {"{{$.pipeline_job_resource_name}}"}
    assert not api.runs


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--schedule", "daily"], "five fields"),
        (["--schedule", "0 2 * * *", "--suite", "smoke"], "leave out --suite"),
        (["--schedule", "0 2 * * *", "--local"], "leave out --local"),
        (["--retry", "x", "--local"], "leave out --local"),
        (["--check", "--local"], "leave out --local"),
    ],
)
def test_mistakes_end_with_2(
    elsewhere: None, command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_a_token_reaches_every_call_and_no_output(
    api: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api.token = "secret-word"
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "secret-word")
    ran(api, "first", "FAILED")
    assert main(["--retry", "first", "--wait"]) == 0
    assert main(["--schedule", "0 2 * * 1"]) == 0
    printed = capsys.readouterr()
    assert "secret-word" not in printed.out + printed.err + json.dumps([api.runs, api.recurring, api.versions])
