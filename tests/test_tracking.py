"""The journal, MLflow on a local SQLite file (no server), and MLflow away, hanging or refusing."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmapkd_core.errors import InputError
from cmapkd_core.tracking import Tracker, check_reachable, delivery, mark_killed, patience, reach, read_journal
from cmapkd_core.tracking.journal import Journal
from cmapkd_core.tracking.patience import SILENCE, Patience

REPOSITORY = Path(__file__).parents[1]
logging.getLogger("mlflow").setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def quick_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MLflow settings from outside, and none left behind; quick batches, and troubles told at once."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(delivery, "BATCH_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "QUIET_SECONDS", 0.0)


@pytest.fixture
def client(mlflow_database: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=mlflow_database)


@pytest.fixture
def open_tracker(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Tracker]:
    """Trackers of one pipeline run that bears the test's name."""

    def opened(uri: str, stage: str = "joint", journal: str = "journal.jsonl", **params: Any) -> Tracker:
        return Tracker.open(uri, run=request.node.name, stage=stage, journal=tmp_path / journal, params=params)

    return opened


def runs_of(client: Any, run: str) -> dict[str, Any]:
    """MLflow's runs by their stage tag; the latest where a stage has several."""
    found = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], f"tags.`cmapkd.run` = '{run}'", order_by=["start_time"]
    )
    return {r.data.tags["cmapkd.stage"]: r for r in found}


def history(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, name))


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what another thread or process does."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def run_offered(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command that a message offers in backticks: VARIABLE=VALUE mlflow GROUP COMMAND .. ."""
    from click.testing import CliRunner
    from mlflow import experiments, runs

    (command,) = set(re.findall(r"`(\S+=\S+) mlflow (.*?)`", text))
    variable, value = command[0].split("=", 1)
    group, *words = shlex.split(command[1])
    with monkeypatch.context() as patch:
        patch.setenv(variable, value)
        done = CliRunner().invoke({"experiments": experiments, "runs": runs}[group].commands, words)
    assert done.exit_code == 0, done.output


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        kept: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    kept.append(server.accept()[0])
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


# ---- the journal ----------------------------------------------------------------------------------


def waiting(tracker: Tracker) -> int:
    """Points in its journal that MLflow does not have."""
    return len(tracker._journal.waiting())


def test_journal_alone(open_tracker: Callable[..., Tracker], tmp_path: Path) -> None:
    tracker = open_tracker("")
    tracker.log({"loss": 2.5, "R@1": float("nan"), "x": float("inf")}, 0)
    tracker.log({"loss": 2.0}, 1)
    tracker.tag("a", "b")
    tracker.close()
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["step"] for line in lines] == [0, 1]
    first, second = read_journal(tmp_path / "journal.jsonl")
    assert first.metrics["loss"] == 2.5
    assert first.metrics["x"] == float("inf")
    assert first.metrics["R@1"] != first.metrics["R@1"]
    assert (second.step, second.metrics) == (1, {"loss": 2.0})
    assert second.time >= first.time
    assert tracker.run_id == ""


def test_the_journal_is_the_queue_of_what_is_to_be_delivered(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for step in range(4):
        journal.append({"loss": float(step)}, step)
    first, second, *_ = batch = journal.waiting()
    assert [one.point.step for one in batch] == [0, 1, 2, 3]
    journal.delivered(second)
    assert [one.point.step for one in journal.waiting()] == [2, 3]
    journal.rewind(2)  # a batch is under way meanwhile: its offset is of the file before
    journal.delivered(batch[-1])
    assert [one.point.step for one in journal.waiting()] == [0, 1]
    journal.append({"loss": 9.0}, 2)
    assert [one.point.metrics["loss"] for one in journal.waiting()] == [0.0, 1.0, 9.0]
    journal.close()
    assert [one.point.step for one in Journal(journal.path).waiting()] == [0, 1, 2]
    assert first.end == len(first.point.line())


def test_rewind_and_reopen(open_tracker: Callable[..., Tracker], tmp_path: Path) -> None:
    tracker = open_tracker("")
    for step in range(8):
        tracker.log({"loss": float(step)}, step)
    tracker.rewind(6)
    tracker.log({"loss": 60.0}, 6)
    tracker.close()
    again = open_tracker("")
    again.rewind(3)
    again.log({"loss": 30.0}, 3)
    again.close()
    points = read_journal(tmp_path / "journal.jsonl")
    assert [(p.step, p.metrics["loss"]) for p in points] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_torn_last_line_is_reported_and_mended(
    open_tracker: Callable[..., Tracker], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker("")
    tracker.log({"loss": 1.0}, 0)
    tracker.close()
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"step": 1, "time": 17, "metr')
    again = open_tracker("")
    again.log({"loss": 2.0}, 1)
    again.close()
    assert "1 of 2 lines are broken" in caplog.text
    assert [p.step for p in read_journal(tmp_path / "journal.jsonl")] == [0, 1]


KILLED = """
import sys
from pathlib import Path
from cmapkd_core.tracking import Tracker
tracker = Tracker.open(sys.argv[1], run="killed", stage="s", journal=Path(sys.argv[2]), params={})
for step in range(10):
    tracker.log({"loss": 1.0}, step)
print("logged", flush=True)
sys.stdin.read()
"""


def test_points_outlive_a_killed_process_and_mlflow_learns_of_its_end(
    tmp_path: Path, client: Any, mlflow_database: str
) -> None:
    journal = tmp_path / "journal.jsonl"
    command = [sys.executable, "-c", KILLED, mlflow_database, str(journal)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        process.stdout.readline()
        eventually(lambda: "s" in runs_of(client, "killed"))
        assert mark_killed(mlflow_database, "killed") == []  # it works
        process.send_signal(signal.SIGKILL)
    assert [p.step for p in read_journal(journal)] == list(range(10))
    assert {run.info.status for run in runs_of(client, "killed").values()} == {"RUNNING"}
    assert mark_killed(mlflow_database, "killed") == ["s"]
    ended = runs_of(client, "killed")
    assert {run.info.status for run in ended.values()} == {"FAILED"}
    assert ended["s"].data.tags["cmapkd.end"].startswith("without a word")
    Tracker.open(mlflow_database, run="killed", stage="s", journal=journal, params={}).close()
    ended = runs_of(client, "killed")
    assert {run.info.status for run in ended.values()} == {"FINISHED"}
    assert history(client, ended["s"].info.run_id, "loss") == [(step, 1.0) for step in range(10)]
    assert "cmapkd.end" not in ended["s"].data.tags
    assert ended["s"].data.tags["cmapkd.earlier_end"].startswith("without a word")


@pytest.mark.parametrize(
    ("uri", "run", "message"),
    [
        ("mlruns", "r", "sqlite:///FOLDER/mlflow.db"),
        ("file:///tmp/mlruns", "r", "is of no known kind"),
        ("http://127.0.0.1:1", "it's", "has a quote"),
        ("http://127.0.0.1:1", "", "is empty"),
    ],
)
def test_bad_input(uri: str, run: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        Tracker.open(uri, run=run, stage="s", journal=tmp_path / "j", params={})


def test_journal_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot write the journal"):
        Tracker.open("", run="r", stage="s", journal=tmp_path / "file" / "j", params={})


# ---- MLflow on SQLite -----------------------------------------------------------------------------


def test_parent_and_nested_runs(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>")
    for stage in ("warmup", "joint"):
        tracker = open_tracker(mlflow_database, stage, f"{stage}.jsonl", **{"optim.batch": 64, "name": "", "x@y": 1})
        for step in range(3):
            tracker.log({"loss/task": 1.0 / (step + 1), "i2t_R@1": 0.5}, step)
        tracker.tag("cmapkd.fingerprint", "abc")
        tracker.artifact(report, "report")
        tracker.close()
    parent, warmup, joint = (runs_of(client, "test_parent_and_nested_runs")[s] for s in ("pipeline", "warmup", "joint"))
    assert {r.data.tags["mlflow.parentRunId"] for r in (warmup, joint)} == {parent.info.run_id}
    assert {r.info.status for r in (parent, warmup, joint)} == {"FINISHED"}
    assert joint.info.run_id == tracker.run_id
    assert waiting(tracker) == 0
    assert joint.data.params == {"optim.batch": "64", "name": "", "x_y": "1"}
    assert joint.data.tags["cmapkd.fingerprint"] == "abc"
    assert history(client, tracker.run_id, "loss/task") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert history(client, tracker.run_id, "i2t_R_1") == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert [a.path for a in client.list_artifacts(tracker.run_id, "report")] == ["report/report.html"]
    artifacts = Path(mlflow_database.removeprefix("sqlite:///")).parent / "artifacts"
    assert joint.info.artifact_uri.startswith(artifacts.as_uri())


def test_the_outcome_is_on_the_parent_which_people_open_first(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>")
    lines = [f"| line {i} | of a table |" for i in range(1000)]
    tracker = open_tracker(mlflow_database, "report")
    tracker.conclude("\n".join(lines), {"student/i2t/R@1": 12.5}, page)
    tracker.close()
    found = runs_of(client, "test_the_outcome_is_on_the_parent_which_people_open_first")["pipeline"]
    assert found.data.metrics == {"student/i2t/R_1": 12.5}
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["report.html"]
    *shown, empty, rest = found.data.tags["mlflow.note.content"].splitlines()
    assert shown == lines[: len(shown)]
    assert (len(shown) > 200, empty) == (True, "")
    assert "nested run `report`" in rest
    experiment = client.get_experiment(found.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_retry_goes_on_in_the_same_run(open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str) -> None:
    first = open_tracker(mlflow_database, rate=1)
    for step in range(10):
        first.log({"loss": float(step)}, step)
    first.close("FAILED")
    assert runs_of(client, "test_retry_goes_on_in_the_same_run")["pipeline"].info.status == "FAILED"
    second = open_tracker(mlflow_database, rate=2)
    second.rewind(5)
    for step in range(5, 12):
        second.log({"loss": float(step)}, step)
    second.close()
    run = runs_of(client, "test_retry_goes_on_in_the_same_run")
    assert first.run_id == second.run_id == run["joint"].info.run_id
    assert history(client, second.run_id, "loss") == [(step, float(step)) for step in range(12)]
    assert run["joint"].info.status == run["pipeline"].info.status == "FINISHED"
    assert run["joint"].data.params["rate"] == "1"
    assert run["joint"].data.tags["cmapkd.changed_params"] == "rate: 1 -> 2"


def test_a_finished_stage_done_again_is_a_new_run(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str
) -> None:
    done = open_tracker(mlflow_database, journal="first.jsonl")
    done.log({"loss": 1.0}, 0)
    done.close()
    redone = open_tracker(mlflow_database, journal="second.jsonl")
    redone.log({"loss": 2.0}, 0)
    redone.close()
    assert done.run_id != redone.run_id
    assert history(client, done.run_id, "loss") == [(0, 1.0)]
    assert history(client, redone.run_id, "loss") == [(0, 2.0)]


def test_stages_at_the_same_time_share_the_parent(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str
) -> None:
    trackers = [open_tracker(mlflow_database, stage, f"{stage}.jsonl") for stage in ("teacher", "evaluate", "warmup")]
    for tracker in trackers:
        tracker.close()
    runs = runs_of(client, "test_stages_at_the_same_time_share_the_parent")
    parents = {runs[stage].data.tags["mlflow.parentRunId"] for stage in ("teacher", "evaluate", "warmup")}
    assert parents == {runs["pipeline"].info.run_id}


def test_more_points_than_one_call_takes(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str
) -> None:
    tracker = open_tracker(mlflow_database, **{f"field{n}": n for n in range(250)})
    for step in range(60):
        tracker.log({f"term{n}": float(n) for n in range(30)}, step)
    tracker.close()
    assert len(history(client, tracker.run_id, "term29")) == 60
    assert len(client.get_run(tracker.run_id).data.params) == 250


def test_what_mlflow_refuses_does_not_block_the_rest(
    open_tracker: Callable[..., Tracker],
    client: Any,
    mlflow_database: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

    stored = MlflowClient.log_batch

    def refusing(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        if any(metric.key == "refused" for metric in kwargs.get("metrics", ())):
            raise MlflowException("no such metric", INVALID_PARAMETER_VALUE)
        return stored(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", refusing)
    passing = tmp_path / "passing.txt"
    passing.write_text("x")
    tracker = open_tracker(mlflow_database)
    tracker.log({"loss": 1.0}, 0)
    tracker.log({"refused": 1.0}, 1)
    tracker.log({"loss": 3.0}, 2)
    tracker.artifact(passing)
    passing.unlink()
    left = tracker.close()
    assert history(client, tracker.run_id, "loss") == [(0, 1.0), (2, 3.0)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert "1 points that it refuses, which are in the journal alone" in left.text
    assert not left.journal
    assert "MLflow does not take artifact passing.txt" in caplog.text
    with pytest.raises(FileNotFoundError):
        tracker.artifact(tmp_path / "absent")


# ---- MLflow's limits ------------------------------------------------------------------------------


def test_long_parameters_are_equal_over_attempts_and_whole_in_a_file(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")  # what is too long would be refused
    long, other = "x" * 9000, "x" * 8999 + "y"
    for _ in range(2):
        tracker = open_tracker(mlflow_database, classes=long, short="s")
        tracker.close("FAILED")
    run = client.get_run(tracker.run_id)
    assert "cmapkd.changed_params" not in run.data.tags
    assert len(run.data.params["classes"]) == 6000
    assert "(9000 characters, sha256 " in run.data.params["classes"]
    assert "all of it in parameters.json)" in run.data.params["classes"]
    assert artifact(client, run, "parameters.json") == {"classes": long}
    open_tracker(mlflow_database, classes=other, short="s").close()
    told = client.get_run(tracker.run_id).data.tags["cmapkd.changed_params"]
    assert told.startswith("classes: xxx")
    assert "; all of it in changed_parameters.json)" in told
    assert artifact(client, run, "changed_parameters.json")["classes"][0] == run.data.params["classes"]


def artifact(client: Any, run: Any, name: str) -> Any:
    """A JSON file of a run on this machine."""
    return json.loads(Path(run.info.artifact_uri.removeprefix("file://"), name).read_text())


def test_every_name_and_number_arrives(open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str) -> None:
    names = ["R@1", "R_1", "a//b", "/a", "..", "x(y)", "n" * 300, "n" * 299 + "m", "per class/größe"]
    tracker = open_tracker(mlflow_database)
    tracker.log({name: float(i) for i, name in enumerate(names)} | {"no": math.nan, "end": -math.inf}, 0)
    assert tracker.close().text == ""
    found = client.get_run(tracker.run_id).data.metrics
    assert {*range(len(names))} <= set(found.values())
    assert len(found) == len(names) + 2
    assert (found["R_1"], found["a/_/b"], found["_/a"], found["__"], found["x_y_"]) == (0.0, 2.0, 3.0, 4.0, 5.0)
    assert math.isnan(found["no"])
    assert found["end"] < -1e308  # MLflow's infinity


def test_long_names_of_runs_and_tags(client: Any, mlflow_database: str, tmp_path: Path) -> None:
    run, stage = "r" * 400, "s" * 400
    for _ in range(2):
        tracker = Tracker.open(mlflow_database, run=run, stage=stage, journal=tmp_path / "j", params={})
        tracker.tag("note", "t" * 9000)
        assert tracker.close("FAILED", "boom " * 3000).text == ""
    found = runs_of(client, run)
    assert set(found) == {"pipeline", stage}
    assert {len(one.info.run_name) for one in found.values()} == {250}
    tags = found[stage].data.tags
    assert tags["cmapkd.end"].endswith("; all of it in the stage's log)")
    assert tags["note"].endswith("; all of it in tags/note.txt)")
    assert Path(found[stage].info.artifact_uri.removeprefix("file://"), "tags/note.txt").read_text() == "t" * 9000


# ---- what was deleted -----------------------------------------------------------------------------


@pytest.fixture
def own_experiment(request: pytest.FixtureRequest, client: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """`own_experiment()`: the experiment of this test alone, which a stage of it has made."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    return lambda: client.get_experiment_by_name(request.node.name)


def test_a_deleted_experiment_is_named_and_gets_all_once_it_is_back(
    open_tracker: Callable[..., Tracker],
    own_experiment: Callable[[], Any],
    client: Any,
    mlflow_database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    open_tracker(mlflow_database, "warmup", "warmup.jsonl").close()
    client.delete_experiment(own_experiment().experiment_id)
    with pytest.raises(InputError) as refused:
        check_reachable(mlflow_database)
    says = f"its experiment '{own_experiment().name}' was deleted: bring it back with `MLFLOW_TRACKING_URI="
    assert f"MLflow at {mlflow_database} cannot be used: {says}" in str(refused.value)
    tracker = open_tracker(mlflow_database)
    tracker.log({"loss": 1.0}, 0)
    eventually(lambda: says in caplog.text)
    assert "does not answer" not in caplog.text
    run_offered(str(refused.value), monkeypatch)
    assert check_reachable(mlflow_database) == mlflow_database
    tracker.log({"loss": 2.0}, 1)
    assert tracker.close().text == ""
    assert history(client, tracker.run_id, "loss") == [(0, 1.0), (1, 2.0)]


def test_a_deleted_experiment_can_be_left_for_another(
    open_tracker: Callable[..., Tracker],
    own_experiment: Callable[[], Any],
    client: Any,
    mlflow_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_tracker(mlflow_database, "warmup", "warmup.jsonl").close()
    client.delete_experiment(own_experiment().experiment_id)
    tracker = open_tracker(mlflow_database)
    tracker.log({"loss": 1.0}, 0)
    left = tracker.close()
    assert "lacks 1 points, parameters, status FINISHED (cannot be used: its experiment" in left.text
    assert "or give another one's name as MLFLOW_EXPERIMENT_NAME" in left.text
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{own_experiment().name} again")
    again = open_tracker(mlflow_database)
    assert again.close().text == ""
    assert history(client, again.run_id, "loss") == [(0, 1.0)]


@pytest.mark.parametrize("restored", [True, False], ids=["restored", "made anew"])
def test_a_run_deleted_while_its_stage_works(
    open_tracker: Callable[..., Tracker],
    restored: bool,
    client: Any,
    mlflow_database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = open_tracker(mlflow_database)
    tracker.log({"loss": 1.0}, 0)
    eventually(lambda: tracker.run_id != "" and not waiting(tracker))
    deleted = tracker.run_id
    client.delete_run(deleted)
    tracker.log({"loss": 2.0}, 1)
    eventually(lambda: f"mlflow runs restore --run-id {deleted}`" in caplog.text)
    if restored:
        run_offered(caplog.text, monkeypatch)
        assert tracker.close().text == ""
    else:
        assert "1 points, status FINISHED (cannot be used: this stage's run was deleted" in tracker.close().text
        tracker = open_tracker(mlflow_database)
        assert tracker.close().text == ""
    assert (tracker.run_id == deleted) == restored
    assert history(client, tracker.run_id, "loss") == [(0, 1.0), (1, 2.0)]


def test_a_parent_deleted_while_its_stage_works_is_made_anew(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str
) -> None:
    tracker = open_tracker(mlflow_database)
    eventually(lambda: tracker.run_id != "")
    client.delete_run(
        runs_of(client, "test_a_parent_deleted_while_its_stage_works_is_made_anew")["pipeline"].info.run_id
    )
    assert tracker.close().text == ""
    found = runs_of(client, "test_a_parent_deleted_while_its_stage_works_is_made_anew")
    assert found["joint"].data.tags["mlflow.parentRunId"] == found["pipeline"].info.run_id
    assert found["pipeline"].info.status == "FINISHED"


# ---- stores that take nothing ---------------------------------------------------------------------


def test_a_store_that_cannot_be_written_is_told_by_the_check_and_the_stage(
    open_tracker: Callable[..., Tracker],
    mlflow_database: str,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow makes folders of what it takes for the file's path: `file:` here
    readonly = f"sqlite:///file:{mlflow_database.removeprefix('sqlite:///')}?mode=ro&uri=true"
    with pytest.raises(InputError, match=r"readonly database.*; let this user write its file and its folder"):
        check_reachable(readonly)
    tracker = open_tracker(readonly)
    tracker.log({"loss": 1.0}, 0)
    left = tracker.close()
    assert "lacks 1 points, parameters, status FINISHED (cannot be used: " in left.text
    assert "let this user write its file" in left.text
    assert "Traceback" not in caplog.text


def test_a_full_store_says_what_to_do(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "full.db") as full:
        full.execute("CREATE TABLE t (x)")
        full.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as error:
            full.execute("INSERT INTO t VALUES (?)", ["x" * 100_000])
    assert reach.explained(error.value) == "database or disk is full; free some space there"


def test_files_that_cannot_be_stored_keep_nothing_else(
    open_tracker: Callable[..., Tracker],
    own_experiment: Callable[[], Any],
    client: Any,
    mlflow_database: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    client.create_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"], f"{tmp_path}/file/below")
    tracker = open_tracker(mlflow_database)
    tracker.artifact(tmp_path / "file")
    tracker.log({"loss": 1.0}, 0)
    left = tracker.close()
    assert "lacks artifact file (cannot be used: [Errno 20] Not a directory" in left.text
    assert (left.journal, left.jobs) == (False, ("artifact file",))
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert history(client, tracker.run_id, "loss") == [(0, 1.0)]


# ---- KFP's injected run ---------------------------------------------------------------------------


def test_injected_run_is_the_parent(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment("kfp")
    injected = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    tracker = open_tracker(f"http://127.0.0.1:{free_port()}")
    tracker.log({"loss": 1.0}, 0)
    tracker.close()
    runs = runs_of(client, "test_injected_run_is_the_parent")
    assert set(runs) == {"joint"}
    assert runs["joint"].data.tags["mlflow.parentRunId"] == injected
    assert runs["joint"].info.experiment_id == experiment
    assert client.get_run(injected).info.status == "RUNNING"


def test_injected_run_that_is_gone(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    tracker = open_tracker("")
    tracker.close()
    assert set(runs_of(client, "test_injected_run_that_is_gone")) == {"pipeline", "joint"}


def test_a_given_uri_comes_before_a_plain_environment(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    tracker = open_tracker(mlflow_database)
    tracker.close()
    assert tracker.run_id == runs_of(client, "test_a_given_uri_comes_before_a_plain_environment")["joint"].info.run_id


# ---- MLflow at fault ------------------------------------------------------------------------------

SOON = 5  # seconds: the server of these tests never answers, so what waited for it would not come back at all


def slowest_log(tracker: Tracker, steps: range) -> float:
    """Seconds of the longest call; each step is as long as a fast training step."""
    longest = 0.0
    for step in steps:
        begun = time.perf_counter()
        tracker.log({"loss": float(step), "lr": 0.1}, step)
        longest = max(longest, time.perf_counter() - begun)
        time.sleep(0.002)
    return longest


def test_away_then_delivered_once(
    open_tracker: Callable[..., Tracker],
    client: Any,
    mlflow_database: str,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    away = f"http://user:secret@127.0.0.1:{free_port()}"
    tracker = open_tracker(away)
    assert slowest_log(tracker, range(100)) < SOON
    begun = time.monotonic()
    left = tracker.close()
    assert time.monotonic() - begun < SOON
    assert waiting(tracker) == 100
    assert "does not answer" in caplog.text
    assert "lacks 100 points, parameters, status FINISHED (does not answer: " in left.text
    assert left.journal
    assert "secret" not in caplog.text + left.text
    for _ in range(2):
        late = open_tracker(mlflow_database)
        late.close()
    assert history(client, late.run_id, "loss") == [(step, float(step)) for step in range(100)]
    times = {p.step: p.time for p in read_journal(tmp_path / "journal.jsonl")}
    assert all(m.timestamp == times[m.step] for m in client.get_metric_history(late.run_id, "loss"))


def test_hanging_does_not_delay(open_tracker: Callable[..., Tracker], silent_server: str) -> None:
    begun = time.monotonic()
    tracker = open_tracker(silent_server)
    assert time.monotonic() - begun < SOON
    assert slowest_log(tracker, range(100)) < SOON
    begun = time.monotonic()
    assert "it has not answered in time" in tracker.close(seconds=0.5).text
    assert time.monotonic() - begun < SOON
    assert waiting(tracker) == 100


def test_lost_answer_is_not_delivered_twice(
    open_tracker: Callable[..., Tracker], client: Any, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stores a batch and the connection breaks before it says so."""
    from mlflow import MlflowClient

    stored = MlflowClient.log_batch
    faults = iter([True, False, True, False])

    def breaking(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        answer = stored(self, *args, **kwargs)
        if kwargs.get("metrics") and next(faults, False):
            raise ConnectionError("the connection broke")
        return answer

    monkeypatch.setattr(MlflowClient, "log_batch", breaking)
    tracker = open_tracker(mlflow_database)
    for step in range(5):
        tracker.log({"loss": float(step)}, step)
        time.sleep(0.1)
    tracker.close()
    assert waiting(tracker) == 0
    assert history(client, tracker.run_id, "loss") == [(step, float(step)) for step in range(5)]


def test_a_fresh_database_makes_no_noise(mlflow_made: tuple[Path, str, str]) -> None:
    folder, out, err = mlflow_made
    assert (out, err) == ("32 False \n", "")
    assert {path.name for path in folder.iterdir()} == {"deep", "j"}


def test_how_long_a_stage_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers prolongs the wait within a bound; what fails does not, not even by connecting again."""
    clock = [0.0]
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def ends(uri: str, *moments: tuple[float, str], hurried: bool = True) -> float:
        """When the wait is over, in tenths of seconds, after these things have happened."""
        clock[0], one, left = 0.0, patience.Patience(uri), list(moments)
        one.begin(30.0, hurried)
        for tenth in range(400):
            clock[0] = tenth / 10
            if one.over:
                one.answered()
                assert one.over, "an answer that comes too late changes nothing"
                return clock[0]
            while left and left[0][0] <= clock[0]:
                what = left.pop(0)[1]
                if what == "failed upload":
                    with pytest.raises(OSError), one.unhurried():  # noqa: PT011
                        raise OSError
                else:
                    getattr(one, what)()
        raise AssertionError("it never ends")

    far, answers = "http://far", [(float(n), "answered") for n in range(40)]
    assert ends(far) == patience.SILENCE
    assert ends(far, (2.0, "answered")) == 2 + patience.SILENCE
    assert ends(far, *answers) == patience.QUICK
    assert ends(far, (2.0, "answered"), (3.0, "failed"), *answers[4:]) == 2 + patience.SILENCE
    assert ends(far, (3.0, "failed upload")) == patience.SILENCE
    assert ends("sqlite:///m.db") == ends(far, hurried=False) == 30.0


def test_a_wait_that_has_not_begun_is_never_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage may have nothing to tell for minutes, as while it exports a model."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    patience = Patience("http://mlflow")
    patience.answered()
    now = 1000.0
    assert not patience.over
    patience.begin(30.0, hurried=True)
    now += SILENCE - 0.1
    assert not patience.over
    now += 0.1
    assert patience.over
