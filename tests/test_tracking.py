"""The journal, MLflow on a local SQLite file (no server), and MLflow away, hanging or refusing."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cmapkd_core.errors import InputError
from cmapkd_core.tracking import Tracker, delivery, read_journal

REPOSITORY = Path(__file__).parents[1]
logging.getLogger("mlflow").setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def quick_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MLflow settings from outside, and none left behind; batches of a twentieth of a second."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(delivery, "BATCH_SECONDS", 0.05)


FRESH = """
import logging, sys
from pathlib import Path
from cmapkd_core.tracking import Tracker
logging.basicConfig(level=logging.INFO)
assert "mlflow" not in sys.modules
tracker = Tracker.open("sqlite:///deep/mlflow.db", run="r", stage="s", journal=Path("j"), params={"a": 1})
tracker.log({"loss": 1.0}, 0)
tracker.close(seconds=120)
print(len(tracker.run_id), tracker.undelivered)
"""


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder where a stage has made MLflow's SQLite file, and what that stage printed on stdout and stderr."""
    folder = tmp_path_factory.mktemp("mlflow")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, "-c", FRESH]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return folder, done.stdout, done.stderr


@pytest.fixture
def database(fresh: tuple[Path, str, str]) -> str:
    """The same SQLite file for all tests; they use different run names."""
    return f"sqlite:///{fresh[0]}/deep/mlflow.db"


@pytest.fixture
def client(database: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=database)


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
tracker = Tracker.open(sys.argv[1], run="r", stage="s", journal=Path(sys.argv[2]), params={})
for step in range(10):
    tracker.log({"loss": 1.0}, step)
print("logged", flush=True)
sys.stdin.read()
"""


def test_points_outlive_a_killed_process(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    command = [sys.executable, "-c", KILLED, f"http://127.0.0.1:{free_port()}", str(journal)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert [p.step for p in read_journal(journal)] == list(range(10))


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
    open_tracker: Callable[..., Tracker], client: Any, database: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>")
    for stage in ("warmup", "joint"):
        tracker = open_tracker(database, stage, f"{stage}.jsonl", **{"optim.batch": 64, "name": "", "x@y": 1})
        for step in range(3):
            tracker.log({"loss/task": 1.0 / (step + 1), "i2t_R@1": 0.5}, step)
        tracker.tag("cmapkd.fingerprint", "abc")
        tracker.artifact(report, "report")
        tracker.close()
    parent, warmup, joint = (runs_of(client, "test_parent_and_nested_runs")[s] for s in ("pipeline", "warmup", "joint"))
    assert {r.data.tags["mlflow.parentRunId"] for r in (warmup, joint)} == {parent.info.run_id}
    assert {r.info.status for r in (parent, warmup, joint)} == {"FINISHED"}
    assert joint.info.run_id == tracker.run_id
    assert tracker.undelivered == 0
    assert joint.data.params == {"optim.batch": "64", "name": "", "x_y": "1"}
    assert joint.data.tags["cmapkd.fingerprint"] == "abc"
    assert history(client, tracker.run_id, "loss/task") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert history(client, tracker.run_id, "i2t_R_1") == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert [a.path for a in client.list_artifacts(tracker.run_id, "report")] == ["report/report.html"]
    artifacts = Path(database.removeprefix("sqlite:///")).parent / "artifacts"
    assert joint.info.artifact_uri.startswith(artifacts.as_uri())


def test_the_outcome_is_on_the_parent_which_people_open_first(
    open_tracker: Callable[..., Tracker], client: Any, database: str, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>")
    lines = [f"| line {i} | of a table |" for i in range(1000)]
    tracker = open_tracker(database, "report")
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


def test_retry_goes_on_in_the_same_run(open_tracker: Callable[..., Tracker], client: Any, database: str) -> None:
    first = open_tracker(database, rate=1)
    for step in range(10):
        first.log({"loss": float(step)}, step)
    first.close("FAILED")
    assert runs_of(client, "test_retry_goes_on_in_the_same_run")["pipeline"].info.status == "FAILED"
    second = open_tracker(database, rate=2)
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
    open_tracker: Callable[..., Tracker], client: Any, database: str
) -> None:
    done = open_tracker(database, journal="first.jsonl")
    done.log({"loss": 1.0}, 0)
    done.close()
    redone = open_tracker(database, journal="second.jsonl")
    redone.log({"loss": 2.0}, 0)
    redone.close()
    assert done.run_id != redone.run_id
    assert history(client, done.run_id, "loss") == [(0, 1.0)]
    assert history(client, redone.run_id, "loss") == [(0, 2.0)]


def test_stages_at_the_same_time_share_the_parent(
    open_tracker: Callable[..., Tracker], client: Any, database: str
) -> None:
    trackers = [open_tracker(database, stage, f"{stage}.jsonl") for stage in ("teacher", "evaluate", "warmup")]
    for tracker in trackers:
        tracker.close()
    runs = runs_of(client, "test_stages_at_the_same_time_share_the_parent")
    parents = {runs[stage].data.tags["mlflow.parentRunId"] for stage in ("teacher", "evaluate", "warmup")}
    assert parents == {runs["pipeline"].info.run_id}


def test_more_points_than_one_call_takes(open_tracker: Callable[..., Tracker], client: Any, database: str) -> None:
    tracker = open_tracker(database, **{f"field{n}": n for n in range(250)})
    for step in range(60):
        tracker.log({f"term{n}": float(n) for n in range(30)}, step)
    tracker.close()
    assert len(history(client, tracker.run_id, "term29")) == 60
    assert len(client.get_run(tracker.run_id).data.params) == 250


def test_what_mlflow_refuses_does_not_block_the_rest(
    open_tracker: Callable[..., Tracker], client: Any, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passing = tmp_path / "passing.txt"
    passing.write_text("x")
    tracker = open_tracker(database)
    tracker.log({"loss": 1.0}, 0)
    tracker.log({"n" * 300: 1.0}, 1)
    tracker.log({"loss": 3.0}, 2)
    tracker.artifact(passing)
    passing.unlink()
    tracker.close()
    assert history(client, tracker.run_id, "loss") == [(0, 1.0), (2, 3.0)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert "MLflow refused 1 points" in caplog.text
    assert "MLflow does not take artifact passing.txt" in caplog.text
    with pytest.raises(FileNotFoundError):
        tracker.artifact(tmp_path / "absent")


# ---- KFP's injected run ---------------------------------------------------------------------------


def test_injected_run_is_the_parent(
    open_tracker: Callable[..., Tracker], client: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment("kfp")
    injected = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
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
    open_tracker: Callable[..., Tracker], client: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    tracker = open_tracker("")
    tracker.close()
    assert set(runs_of(client, "test_injected_run_that_is_gone")) == {"pipeline", "joint"}


def test_a_given_uri_comes_before_a_plain_environment(
    open_tracker: Callable[..., Tracker], client: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    tracker = open_tracker(database)
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
    open_tracker: Callable[..., Tracker], client: Any, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    away = f"http://user:secret@127.0.0.1:{free_port()}"
    tracker = open_tracker(away)
    assert slowest_log(tracker, range(100)) < SOON
    begun = time.monotonic()
    tracker.close()
    assert time.monotonic() - begun < SOON
    assert tracker.undelivered == 100
    assert "does not answer" in caplog.text
    assert "100 points" in caplog.text
    assert "status FINISHED" in caplog.text
    assert "secret" not in caplog.text
    for _ in range(2):
        late = open_tracker(database)
        late.close()
    assert history(client, late.run_id, "loss") == [(step, float(step)) for step in range(100)]
    times = {p.step: p.time for p in late._journal.points_before}
    assert all(m.timestamp == times[m.step] for m in client.get_metric_history(late.run_id, "loss"))


def test_hanging_does_not_delay(open_tracker: Callable[..., Tracker], silent_server: str) -> None:
    begun = time.monotonic()
    tracker = open_tracker(silent_server)
    assert time.monotonic() - begun < SOON
    assert slowest_log(tracker, range(100)) < SOON
    begun = time.monotonic()
    tracker.close(seconds=0.5)
    assert time.monotonic() - begun < SOON
    assert tracker.undelivered == 100


def test_lost_answer_is_not_delivered_twice(
    open_tracker: Callable[..., Tracker], client: Any, database: str, monkeypatch: pytest.MonkeyPatch
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
    tracker = open_tracker(database)
    for step in range(5):
        tracker.log({"loss": float(step)}, step)
        time.sleep(0.1)
    tracker.close()
    assert tracker.undelivered == 0
    assert history(client, tracker.run_id, "loss") == [(step, float(step)) for step in range(5)]


def test_a_fresh_database_makes_no_noise(fresh: tuple[Path, str, str]) -> None:
    folder, out, err = fresh
    assert (out, err) == ("32 0\n", "")
    assert {path.name for path in folder.iterdir()} == {"deep", "j"}
