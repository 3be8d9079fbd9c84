"""MLflow away, hanging, failing, refusing or dying while a stage works: it ends soon, and every point is there once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from manifests import TORN
from mlflow_at_fault import Faulty, faulty_server

from cmapkd.pipelines.submission import decide
from cmapkd.pipelines.submit import main, parser
from cmapkd_core import storage
from cmapkd_core.commands import submit
from cmapkd_core.errors import InputError
from cmapkd_core.records import record_run
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.stages.execute import Context, execute
from cmapkd_core.stages.owed import deliver_owed, find_owed
from cmapkd_core.tracking import delivery, patience

STEPS = 40
SILENCE = 1.0  # in place of patience.SILENCE, where nothing is to be delivered
WORKED: list[float] = []  # when a stage's body was done
SOON = SILENCE + 2  # seconds: of a machine that does other things too


@pytest.fixture(scope="module")
def server(mlflow_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with faulty_server(mlflow_database, tmp_path_factory.mktemp("artifacts")) as faulty:
        yield faulty


@pytest.fixture(autouse=True)
def own_mlflow(monkeypatch: pytest.MonkeyPatch, server: Faulty) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(delivery, "BATCH_SECONDS", 0.05)
    yield
    server.well()


@pytest.fixture
def laid(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    """The name of a run below tmp_path that is recorded, and where its stages' artifacts belong."""
    run = f"run-{abs(hash(request.node.name))}"
    job = decide(parser().parse_args(["--recipe", "tiny", "--root", str(tmp_path), "--run", run, "--local"]))
    record_run(str(tmp_path), run, job.request)
    return run, job.urls


def stage(name: str, url: str, uri: str, run: str, end: Exception | None = None, server: Faulty | None = None) -> str:
    """A stage that logs STEPS points, half of them after `server` has died; returns its URL."""

    def body(context: Context) -> dict[str, float]:
        for step in range(STEPS):
            context.tracker.log({"loss": float(step), "rate": 0.5}, step)
            while server and step == STEPS // 2 and server.mode != server.then:
                time.sleep(0.01)
        WORKED.append(time.monotonic())
        if end:
            raise end
        return {"done": 1.0}

    request = Request("tiny", url.rsplit("/", 2)[0], run=run, tracking_uri=uri)
    return execute(request, name, url=url, fields={}, inputs={}, body=body)


def points(database: str, run: str, name: str) -> list[tuple[str, int, int, float]]:
    """(metric, step, timestamp, value) of a stage, from all of its runs in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=database)
    where = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(where, f"tags.`cmapkd.run` = '{run}' and tags.`cmapkd.stage` = '{name}'")
    held = [(one.info.run_id, metric) for one in found for metric in one.data.metrics]
    return sorted(
        (metric, point.step, point.timestamp, point.value)
        for run_id, metric in held
        for point in client.get_metric_history(run_id, metric)
    )


def journal(raw: bytes) -> list[tuple[str, int, int, float]]:
    lines = [json.loads(line) for line in raw.splitlines()]
    return sorted((name, one["step"], one["time"], value) for one in lines for name, value in one["metrics"].items())


def hangs(server: Faulty) -> None:
    server.mode = "hang"


def fails(server: Faulty) -> None:
    server.mode = "500"


def refuses(server: Faulty) -> None:
    server.mode = "401"


def dies_in_mid_run(server: Faulty) -> None:
    server.batches, server.then = 1, "hang"


def test_the_wait_is_of_a_few_seconds() -> None:
    assert patience.SILENCE <= 5
    assert patience.QUICK <= 10


@pytest.mark.parametrize("fault", [hangs, fails, refuses, dies_in_mid_run])
def test_a_stage_ends_soon_and_is_delivered_once(
    fault: Callable[[Faulty], None],
    server: Faulty,
    laid: tuple[str, dict[str, str]],
    tmp_path: Path,
    mlflow_database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, urls = laid
    fault(server)
    with monkeypatch.context() as patch:
        patch.setattr(patience, "SILENCE", SILENCE)
        url = stage("warmup", urls["warmup"], server.uri, run, server=server if fault is dies_in_mid_run else None)
    assert time.monotonic() - WORKED[-1] < (2.0 if fault is refuses else SOON)
    assert f"{submit()} --deliver {run} (with the run's --root, and --local) or the same command again" in caplog.text
    assert ("the login is missing or wrong: give MLFLOW_TRACKING_USERNAME" in caplog.text) == (fault is refuses)
    digest = Artifact.open(url).digest
    told = points(mlflow_database, run, "warmup")
    assert (0 < len(told) < 2 * STEPS) if fault is dies_in_mid_run else not told
    server.well()
    deliver = ["--deliver", run, "--root", str(tmp_path), "--tracking-uri", server.uri]
    assert main(deliver) == main(deliver) == 0
    said = capsys.readouterr().out.splitlines()
    name = url.removeprefix(f"{tmp_path}/")
    assert said[-3:] == [
        f"told  {name}",
        "MLflow lacked something of 1 stages, 1 of 1 told to it now",
        f"MLflow has all of run {run}",
    ]
    kept = journal(Artifact.open(url).fetch("journal.jsonl").read_bytes())
    assert len(kept) == 2 * STEPS + 1
    assert points(mlflow_database, run, "warmup") == kept
    assert Artifact.open(url).digest == digest


def test_failed_stages_are_delivered_too_and_the_next_attempt_tells_for_itself(
    server: Faulty, laid: tuple[str, dict[str, str]], tmp_path: Path, mlflow_database: str
) -> None:
    run, urls = laid
    server.mode = "401"
    with pytest.raises(InputError) as failed:
        stage("joint", urls["joint"], server.uri, run, InputError("no"))
    assert f"the next attempt or {submit()} --deliver {run}" in " ".join(failed.value.__notes__)
    assert find_owed(urls["joint"]) is not None
    server.well()
    assert main(["--deliver", run, "--root", str(tmp_path), "--tracking-uri", server.uri]) == 0
    assert find_owed(urls["joint"]) is None
    kept = journal(storage.read_bytes(f"{urls['joint']}/work/journal.jsonl"))
    assert points(mlflow_database, run, "joint") == kept
    assert len(kept) == 2 * STEPS
    stage("joint", urls["joint"], server.uri, run)  # which logs its steps again
    assert [(name, step) for name, step, _, _ in points(mlflow_database, run, "joint")] == [
        (name, step) for name, step, _, _ in sorted([*kept, ("done", 0, 0, 1.0)])
    ]


def test_a_result_made_anew_has_a_run_of_its_own_though_mlflow_was_away(
    server: Faulty, laid: tuple[str, dict[str, str]], tmp_path: Path, mlflow_database: str
) -> None:
    """The first result's run has these names and steps already: they are of another execution."""
    run, urls = laid
    stage("alsn", urls["alsn"], server.uri, run)
    storage.delete(f"{urls['alsn']}/manifest.json")
    server.mode = "401"
    stage("alsn", urls["alsn"], server.uri, run)
    server.well()
    assert main(["--deliver", run, "--root", str(tmp_path), "--tracking-uri", server.uri]) == 0
    assert len(points(mlflow_database, run, "alsn")) == 2 * (2 * STEPS + 1)


def test_the_report_delivers_what_its_inputs_are_owed_and_waits_once_for_all(
    server: Faulty,
    laid: tuple[str, dict[str, str]],
    tmp_path: Path,
    mlflow_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, urls = laid
    server.mode = "401"
    made = [Artifact.open(stage(name, urls[name], server.uri, run)) for name in ("warmup", "alsn", "joint")]
    asked = Request("tiny", str(tmp_path), run=run, tracking_uri=server.uri)
    server.mode = "hang"
    begun = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(patience, "SILENCE", SILENCE)
        deliver_owed(asked, made)
    assert time.monotonic() - begun < SOON
    server.well()
    deliver_owed(asked, made)
    for name in ("warmup", "alsn", "joint"):
        assert len(points(mlflow_database, run, name)) == 2 * STEPS + 1
    assert [find_owed(one.url) for one in made] == [None] * 3


def test_a_journal_that_is_damaged_is_told_and_keeps_no_other_back(
    server: Faulty,
    laid: tuple[str, dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, urls = laid
    server.mode = "401"
    for name in ("warmup", "joint"):
        stage(name, urls[name], server.uri, run)
    (path,) = Path(urls["warmup"]).glob("out-*/journal.jsonl")
    path.write_bytes(path.read_bytes()[:-9])
    server.well()
    assert main(["--deliver", run, "--root", str(tmp_path), "--tracking-uri", server.uri]) == 1
    *_, warmup, joint, total = capsys.readouterr().out.splitlines()
    assert warmup.startswith("left  warmup/")
    assert "was changed after it was written" in warmup
    assert joint.startswith("told  joint/")
    assert total == "MLflow lacked something of 2 stages, 1 of 2 told to it now"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "no MLflow to deliver to: give --tracking-uri"),
        (["--tracking-uri", "http://me:canary@there"], "--tracking-uri has a user and password"),
        (["--recipe", "tiny"], "leave out --recipe"),
    ],
)
def test_what_cannot_be_delivered_says_why(
    more: list[str], says: str, laid: tuple[str, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--deliver", laid[0], "--root", str(tmp_path), *more]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "canary" not in said


STRANGE = {
    "another key": b'{"run": "a", "stage": "b", "params": {}, "experimenu": "1"}',
    "status": b'{"run": "a", "stage": "b", "params": {}, "status": "DONE"}',
}


def test_a_note_that_is_damaged_ends_no_stage_and_is_kept_and_named(
    server: Faulty,
    laid: tuple[str, dict[str, str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, urls = laid
    url = stage("warmup", urls["warmup"], "", run)
    for raw in (TORN | STRANGE).values():
        storage.write_bytes(f"{url}/owed.json", raw)
        caplog.clear()
        assert stage("warmup", url, "", run) == url
        assert f"MLflow cannot be told of {url}: {url}/owed.json is damaged (it" in caplog.text
        assert main(["--deliver", run, "--root", str(tmp_path), "--tracking-uri", server.uri]) == 1
        assert ": " + f"{url}/owed.json is damaged (it" in capsys.readouterr().out
        assert storage.read_bytes(f"{url}/owed.json") == raw
    storage.delete(f"{url}/owed.json")  # the one way out; the other is that the stage runs again
    assert main(["--deliver", run, "--root", str(tmp_path), "--tracking-uri", server.uri]) == 0


def test_a_journal_of_an_earlier_attempt_that_is_no_journal_is_left_out(
    laid: tuple[str, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    run, urls = laid
    lines = [*TORN.values(), b'{"step": 1, "time": 1, "metrics": {"a": 1' + b"0" * 400 + b"}}"]
    storage.write_bytes(f"{urls['warmup']}/work/journal.jsonl", b"\n".join(lines) + b"\n")
    url = stage("warmup", urls["warmup"], "", run)
    assert f"{len(lines)} of {len(lines)} lines are broken and left out" in caplog.text
    assert len(journal(Artifact.open(url).fetch("journal.jsonl").read_bytes())) == 2 * STEPS + 1
