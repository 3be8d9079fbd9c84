"""How a stage ends is how its run in MLflow ends, and its own error is what is told."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmapkd_core import storage
from cmapkd_core.commands import submit
from cmapkd_core.errors import InputError, Interrupted
from cmapkd_core.request import Request
from cmapkd_core.stages.cli import main
from cmapkd_core.stages.execute import Context, execute

AWAY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def own_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def deed(context: Context) -> dict[str, float]:
    """A stage's body, replaced by the tests."""
    return {"done": 1.0}


def thing(request: Request, *, given: str = "") -> str:
    """A stage."""
    url = storage.join(request.root, "thing", "0")
    inputs = {"given": given} if given else {}
    return execute(request, "thing", url=url, fields={}, inputs=inputs, body=lambda context: deed(context))


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., int]:
    """`start(uri, ..)`: the stage's exit code, in a run that bears the test's name."""

    def begin(uri: str, *more: str) -> int:
        told = ["--recipe", "tiny", "--root", str(tmp_path / "root"), "--run", request.node.name]
        return main(thing, [*told, "--tracking-uri", uri, *more])

    return begin


@pytest.fixture
def ended(request: pytest.FixtureRequest, mlflow_database: str) -> Callable[[], Any]:
    """`ended()`: the stage's run in MLflow; its parent has the same status."""
    from mlflow import MlflowClient

    def look() -> Any:
        client = MlflowClient(tracking_uri=mlflow_database)
        everywhere = [one.experiment_id for one in client.search_experiments()]
        found = client.search_runs(everywhere, f"tags.`cmapkd.run` = '{request.node.name}'")
        stage, parent = sorted(found, key=lambda run: "mlflow.parentRunId" not in run.data.tags)
        assert parent.info.status == stage.info.status
        return stage

    return look


def unusable(context: Context) -> dict[str, float]:
    context.tracker.log({"loss": 2.0}, 0)
    raise InputError("the real error: mend it")


def broken(context: Context) -> dict[str, float]:
    raise RuntimeError("the real error")


def stopped(context: Context) -> dict[str, float]:
    signal.raise_signal(signal.SIGTERM)
    raise AssertionError("it goes on")


def stopped_by_hand(context: Context) -> dict[str, float]:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("it goes on")


def stopped_in_training(context: Context) -> dict[str, float]:
    raise Interrupted("thing was asked to stop; saved at step 3")


@pytest.mark.parametrize(
    ("body", "code", "status", "why"),
    [
        (unusable, 2, "FAILED", "the real error: mend it"),
        (broken, RuntimeError, "FAILED", "RuntimeError: the real error"),
        (stopped, 143, "KILLED", "test_tracked was asked to stop; the same command goes on from what is saved"),
        (stopped_by_hand, 130, "KILLED", "stopped by Ctrl-C"),
        (stopped_in_training, 143, "KILLED", "thing was asked to stop; saved at step 3"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_stage_that_does_not_finish_ends_in_mlflow_too_with_the_reason(
    start: Callable[..., int],
    ended: Callable[[], Any],
    mlflow_database: str,
    body: Any,
    code: Any,
    status: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(globals(), "deed", body)
    if isinstance(code, int):
        assert start(mlflow_database) == code
    else:
        with pytest.raises(code):
            start(mlflow_database)
    assert (ended().info.status, ended().data.tags["cmapkd.end"]) == (status, why)
    assert signal.getsignal(signal.SIGTERM) is handler
    monkeypatch.undo()
    assert start(mlflow_database) == 0
    assert ended().info.status == "FINISHED"
    assert ended().data.tags["cmapkd.earlier_end"] == why


def test_an_input_that_is_missing_is_a_failure_in_mlflow(
    start: Callable[..., int], ended: Callable[[], Any], mlflow_database: str, tmp_path: Path
) -> None:
    assert start(mlflow_database, "--given", str(tmp_path / "nothing")) == 2
    assert ended().info.status == "FAILED"
    assert "no manifest.json" in ended().data.tags["cmapkd.end"]


@pytest.mark.parametrize("body", [unusable, stopped_by_hand])
def test_a_failure_without_mlflow_tells_its_own_error_first(
    start: Callable[..., int],
    ended: Callable[[], Any],
    mlflow_database: str,
    body: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(globals(), "deed", body)
    start(AWAY)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the real error: mend it (MLflow at" if body is unusable else "stopped by Ctrl-C:")
    assert "lacks " in line
    assert "(does not answer: [Errno 111] Connection refused; check tracking_uri" in line
    assert f"; the next attempt or {submit()} --deliver 'test_a_failure" in line
    assert line.endswith(" delivers it)")
    assert not caplog.records
    assert start(mlflow_database) == 2 or body is stopped_by_hand
    assert ended().data.metrics == ({"loss": 2.0} if body is unusable else {})


def test_what_breaks_while_a_failure_is_told_does_not_replace_it(
    start: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def unwritable(context: Context) -> dict[str, float]:
        (tmp_path / "root/thing/0/work").write_text("in the way")
        return unusable(context)

    monkeypatch.setitem(globals(), "deed", unwritable)
    assert start("") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the real error: mend it (its journal could not be kept for the next attempt: ")


def test_a_finished_stage_owes_mlflow_what_it_could_not_deliver(
    start: Callable[..., int],
    ended: Callable[[], Any],
    mlflow_database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def with_file(context: Context) -> dict[str, float]:
        (context.out / "page").write_text("<p>")
        context.tracker.artifact(context.out / "page")
        return {"done": 1.0}

    monkeypatch.setitem(globals(), "deed", with_file)
    assert start(AWAY) == 0
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "lacks 1 points, parameters, artifact page, status FINISHED (does not answer" in warning
    assert "the same command again delivers what its journal has, the run's report tries it too; with --redo" in warning
    owed = tmp_path / "root/thing/0/owed.json"
    assert json.loads(owed.read_text())["stage"] == "thing"
    assert start("") == start(AWAY) == 0  # nowhere to deliver, and not yet
    assert owed.exists()
    assert start(mlflow_database) == 0
    assert not owed.exists()
    assert (ended().info.status, ended().data.metrics) == ("FINISHED", {"done": 1.0})
    assert ended().data.params["name"] == "tiny"
    assert start(mlflow_database, "--redo", "yes") == 0
    found = list((Path(mlflow_database.removeprefix("sqlite:///")).parent / "artifacts").glob("*/artifacts/page"))
    assert len(found) == 1
