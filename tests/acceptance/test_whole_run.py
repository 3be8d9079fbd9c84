"""A whole run with its artifacts on S3 and its metrics in MLflow's server, from prepare to the report.

processes: the tiny recipe through the local runner, on moto's server and SQLite: `make test-heavy`.
containers: the demo through kfp.local's DockerRunner with the built image, on Ceph and PostgreSQL: `make acceptance`;
after it what a cluster does to single stages: two ranks, two starts at once, a container that is killed.
Where AWS_ENDPOINT_URL, the AWS keys and MLFLOW_TRACKING_URI are set, that S3 and MLflow are taken for the containers.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import containers
import pytest
import services
from forked import Forked
from mlflow import MlflowClient

from cmapkd.pipelines import start, submit
from cmapkd.pipelines.local import StageError
from cmapkd.pipelines.submission import Submission, decide
from cmapkd_core import storage
from cmapkd_core.stages.artifact import Artifact
from cmapkd_core.tracking.limits import mlflow_name
from cmapkd_core.tracking.stage_run import PARENT_ID_TAG, PROCESS_TAG, RUN_TAG, STAGE_TAG

RECIPE = os.environ.get("CMAPKD_RECIPE", "demo")  # of the containers
REPOSITORY = Path(__file__).parents[2]
CANARY = "canary-of-the-secret-key-5d1e"  # S3's secret key in the processes
THERE = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI")
SITE = """
tracking_uri = "{uri}"
[local]
tracking_uri = "{uri}"
[pods.train]
gpus = 0
[pods.evaluate]
gpus = 0
"""


WEIGHTS = ("model/model.safetensors", "method.safetensors")

HERE = pytest.param("processes", marks=pytest.mark.heavy)
IN_CONTAINERS = pytest.param("containers", marks=pytest.mark.acceptance)

# Tests that need the image, on the services of the containers.
in_the_image = pytest.mark.parametrize("done", [IN_CONTAINERS], indirect=True)


@dataclass(frozen=True)
class Done:
    """A run as it was asked for, the environment of its stages, and where files that are not on S3 lie."""

    job: Submission
    env: Mapping[str, str]
    folder: Path

    def artifact(self, task: str) -> Artifact:
        return Artifact.open(self.job.urls[task])

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(self.env["MLFLOW_TRACKING_URI"])


@pytest.fixture(scope="module", params=[HERE, IN_CONTAINERS])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """The run, once it is over."""
    folder = tmp_path_factory.mktemp(request.param)
    kind: Callable[..., AbstractContextManager[Done]] = {"processes": by_processes, "containers": in_containers}[
        request.param
    ]
    with kind(request, folder) as found:
        yield found


@contextmanager
def by_processes(request: pytest.FixtureRequest, folder: Path) -> Iterator[Done]:
    """Two tasks at a time, on moto's server; all that is printed goes into a file."""
    endpoint, client = request.getfixturevalue("s3_endpoint"), request.getfixturevalue("s3_client")
    client.create_bucket(Bucket=services.BUCKET)
    env = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", **services.KEYS}
    env["AWS_SECRET_ACCESS_KEY"] = CANARY
    with environment(env), services.mlflow_process(folder, f"s3://{services.BUCKET}/mlflow") as uri:
        args = arguments(folder, uri, f"s3://{services.BUCKET}/processes", "tiny", "--local", "--parallel", "2")
        with closing(Forked(str(Path(__file__).with_name("forked_submit.py")), args, {})) as run:
            printed, _ = run.communicate(timeout=600)
        (folder / "printed").write_text(printed)
        assert run.returncode == 0, printed[-4000:]
        yield Done(decide(submit.parser().parse_args(args)), env | {"MLFLOW_TRACKING_URI": uri}, folder)


@contextmanager
def in_containers(request: pytest.FixtureRequest, folder: Path) -> Iterator[Done]:
    """One container after the other, closed as restricted pods are."""
    given = {name: os.environ[name] for name in (*THERE, "AWS_DEFAULT_REGION", "AWS_REGION") if name in os.environ}
    with nullcontext(given) if set(THERE) <= set(given) else services.everything(containers.IMAGE) as env:
        root = f"s3://{services.BUCKET}/containers-{time.strftime('%Y%m%d-%H%M%S')}"
        args = arguments(folder, env["MLFLOW_TRACKING_URI"], root, RECIPE, "--compile-only", "-")
        with environment(env):
            done = Done(decide(submit.parser().parse_args(args)), env, folder)
            begun = time.monotonic()
            containers.run_pipeline(done.job, env, folder)
            print(
                f"\n{len(done.job.tasks)} tasks of recipe {RECIPE} in containers of {containers.IMAGE} "
                f"(commit {containers.commit()}): {time.monotonic() - begun:.0f} s"
            )
            yield done


@contextmanager
def environment(env: Mapping[str, str]) -> Iterator[None]:
    """The environment with these variables, for this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "MLFLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        for name, value in env.items():
            patch.setenv(name, value)
        yield


def arguments(folder: Path, uri: str, root: str, recipe: str, *more: str) -> list[str]:
    """The command line of the run, on a site without GPUs."""
    site = folder / "site.toml"
    site.write_text(SITE.format(uri=uri))
    run = f"acceptance-{time.strftime('%Y%m%d-%H%M%S')}"
    return ["--recipe", recipe, "--run", run, "--site", str(site), "--root", root, *more]


def test_every_stage_left_its_artifact_on_s3(done: Done) -> None:
    found = {task.name: done.artifact(task.name) for task in done.job.tasks if task.name != "report"}
    assert len(found) == 13
    assert all(one.url.startswith("s3://") for one in found.values())
    shards = [file for file in storage.list_files(found["prepare"].url) if file.endswith(".tar")]
    assert shards
    weights = "model/model.safetensors"
    assert storage.sha256_file(found["joint"].fetch(weights)) == found["joint"].manifest["outputs"][weights]["sha256"]


def test_the_report_is_whole(done: Done) -> None:
    page = Path(done.artifact("report").fetch("report.html")).read_text()
    assert re.findall(r"Missing: [^<]*", page) == []
    assert json.loads(done.artifact("report").fetch("table.json").read_text())["outcome"]["sentence"] in page
    assert "Use the student" in page
    assert "Not in this report" in page
    for task in ("evaluate-student", "evaluate-reference"):
        recall = done.artifact(task).manifest["metrics"]["retrieval/i2t/R@10"]
        assert f"{recall:.1f}" in page


@pytest.mark.parametrize("done", [HERE], indirect=True)
def test_its_last_words_are_what_came_out_and_how_the_student_is_used(done: Done) -> None:
    before, _, printed = (done.folder / "printed").read_text().rpartition("report done in")
    report = done.artifact("report")
    assert (before + printed).count(json.loads(report.fetch("table.json").read_text())["outcome"]["sentence"]) == 1
    assert f"The student: {done.artifact('export').file_url('README.md').rpartition('/')[0]} (" in printed
    assert 'create_model_and_transforms("local-dir:student/open_clip")' in printed  # once it is copied from S3
    assert f"search {done.job.urls['export']} {done.job.urls['prepare']} " in printed
    assert printed.rstrip().endswith(f"The report: {report.file_url('report.html')}")


def test_mlflow_has_the_stages_with_their_metrics_and_the_report(done: Done) -> None:
    runs = done.mlflow.search_runs([one.experiment_id for one in done.mlflow.search_experiments()], max_results=1000)
    (parent,) = (run for run in runs if run.info.run_name == done.job.run)
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(nested) >= 13
    assert {run.info.status for run in nested} == {"FINISHED"}
    metrics = done.artifact("evaluate-student").manifest["metrics"]
    evaluated = {mlflow_name(name): value for name, value in metrics.items()}
    assert any(evaluated.items() <= run.data.metrics.items() for run in nested)
    (trained,) = (run for run in nested if run.info.run_name == "joint")
    evaluations = {run.info.run_name: run.data.tags for run in nested if run.info.run_name.startswith("evaluate ")}
    digits = done.job.urls["joint"].rpartition("/")[2][:8]
    (ours,) = (tags for name, tags in evaluations.items() if name.endswith(f" of joint by cmapkd {digits}"))
    assert (ours["cmapkd.model"], ours["cmapkd.task"]) == (f"joint by cmapkd {digits}", "retrieval+zeroshot")
    history = json.loads(done.artifact("joint").fetch("history.json").read_text())["points"]
    logged = done.mlflow.get_metric_history(trained.info.run_id, "terms/task")
    assert {point.step: pytest.approx(point.value) for point in logged} == {
        p["step"]: p["terms"]["task"] for p in history
    }
    # The outcome is on the run itself.
    assert "report.html" in [file.path for file in done.mlflow.list_artifacts(parent.info.run_id)]
    assert parent.data.metrics["student/retrieval/i2t/R_1"] == metrics["retrieval/i2t/R@1"]
    assert "Student distilled" in parent.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("done", [HERE], indirect=True)
def test_the_secret_key_is_in_nothing_that_the_run_leaves(quick_compile: None, done: Done, tmp_path: Path) -> None:
    done.job.package(tmp_path / "form.yaml")
    done.job.package(tmp_path / "filled.yaml", filled=True)
    bucket = f"s3://{services.BUCKET}"  # the root, and beside it MLflow's files
    found = {name: storage.read_bytes(f"{bucket}/{name}") for name in storage.list_files(bucket)}
    local = [path for folder in (tmp_path, done.folder) for path in folder.rglob("*") if path.is_file()]
    found |= {str(path): path.read_bytes() for path in local}
    searched = {name.rpartition("/")[2] for name in found}
    # All of it is there to be searched, and the stages had the key that is searched for.
    assert {"printed", "mlflow.db", "mlflow.log", "form.yaml", "filled.yaml", "run.json", "report.html"} <= searched
    assert {name.split("/")[0] for name in storage.list_files(bucket)} == {"processes", "mlflow"}
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == CANARY
    assert [name for name, content in found.items() if CANARY.encode() in content] == []


@pytest.mark.parametrize("done", [HERE], indirect=True)
def test_a_killed_stage_is_ended_in_mlflow_by_who_ran_it(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    tags = {RUN_TAG: "killed", STAGE_TAG: "joint", PROCESS_TAG: f"{platform.node()}:{process.pid}"}
    client = done.mlflow
    (where,) = (one.experiment_id for one in client.search_experiments() if one.name == "cmapkd")
    left = client.create_run(where, tags=tags | {PARENT_ID_TAG: "0"}).info.run_id
    start.mark_killed(replace(done.job, run="killed"), StageError({"joint": 128 + signal.SIGTERM}))
    assert client.get_run(left).info.status == "RUNNING"  # such a stage has told MLflow itself
    start.mark_killed(replace(done.job, run="killed"), StageError({"joint": 128 + signal.SIGKILL}))
    assert client.get_run(left).info.status == "FAILED"
    assert "MLflow now has joint as failed" in capsys.readouterr().err


@in_the_image
def test_two_processes_in_a_container_have_the_losses_of_one(done: Done) -> None:
    inputs = warmup_inputs(done)
    one, two = (losses(tiny_stage(done, "train", f"by-{n}", *inputs, processes=n)) for n in (1, 2))
    assert len(one) == len(two) > 5
    for alone, both in zip(one, two, strict=True):
        assert both == pytest.approx(alone, rel=1e-5, abs=1e-5)


@in_the_image
def test_of_many_writers_one_commits(done: Done) -> None:
    for number in range(10):
        url = f"{done.job.arguments['root']}/race/{number}"
        with ThreadPoolExecutor(20) as pool:
            won = list(pool.map(lambda writer, url=url: storage.create(url, b"%d" % writer), range(20)))  # type: ignore[misc]
        assert won.count(True) == 1
        assert storage.read_bytes(url) == b"%d" % won.index(True)


@in_the_image
def test_a_stage_started_twice_at_once_commits_once(done: Done) -> None:
    with ThreadPoolExecutor(2) as pool:
        urls = set(pool.map(lambda _: tiny_stage(done, "prepare", "twice"), range(2)))
    (artifact,) = map(Artifact.open, urls)
    for name in artifact.files():  # each is what the one manifest says of it
        artifact.fetch(name)


@in_the_image
def test_a_killed_container_goes_on_from_s3_in_another(done: Done) -> None:
    longer = ("--overrides", "schedule.coarse.epochs=12 runtime.checkpoint_every=1")
    inputs = (*warmup_inputs(done), *longer)
    straight = tiny_stage(done, "train", "straight", *inputs)
    below = f"{done.job.arguments['root']}/ranks/killed"

    def saved() -> bool:
        return any("/checkpoints/" in name and name.endswith("manifest.json") for name in storage.list_files(below))

    assert containers.killed(done.env, *tiny_command(done, "train", "killed", *inputs), when=saved) == 128 + 9
    assert not any(name.count("/") == 2 and name.endswith("manifest.json") for name in storage.list_files(below))
    again = containers.output(done.env, *tiny_command(done, "train", "killed", *inputs))
    assert "going on from the checkpoint at phase coarse" in again
    ours, theirs = (
        Artifact.open(url).manifest["outputs"] for url in (tiny_stage(done, "train", "killed", *inputs), straight)
    )
    assert {n: ours[n]["sha256"] for n in WEIGHTS} == {n: theirs[n]["sha256"] for n in WEIGHTS}


def tiny_command(done: Done, name: str, where: str, *inputs: str, processes: int = 1) -> list[str]:
    """What a pod is told to run: a stage of recipe tiny, its artifacts below the folder `where`."""
    launch = ["torchrun", "--standalone", "--nproc-per-node", str(processes), "-m", "--"]
    root = f"{done.job.arguments['root']}/ranks/{where}"
    request = ["--recipe", "tiny", "--ablation", "no_alsn", "--root", root, "--artifact", "/tmp/url"]
    return [*launch, f"cmapkd_core.stages.{name}", *request, *inputs]


def tiny_stage(done: Done, name: str, where: str, *inputs: str, processes: int = 1) -> str:
    """The URL of the artifact of such a stage, run in a container to its end."""
    command = tiny_command(done, name, where, *inputs, processes=processes)
    return containers.output(done.env, "sh", "-c", '"$@" >&2 && cat /tmp/url', "sh", *command).strip()


def warmup_inputs(done: Done) -> tuple[str, ...]:
    """What a warm-up reads; made once, since the artifacts stand."""
    shards = tiny_stage(done, "prepare", "shared")
    return (
        "--stage",
        "warmup",
        "--shards",
        shards,
        "--teacher",
        tiny_stage(done, "teacher", "shared", "--shards", shards),
    )


def losses(url: str) -> list[dict[str, float]]:
    """The terms at every logged step."""
    return [point["terms"] for point in json.loads(Artifact.open(url).fetch("history.json").read_text())["points"]]


@in_the_image
@pytest.mark.parametrize(
    ("more", "read"),
    [
        (
            ("--set", "evaluate.sets=retrieval=scenes_vqa,efficiency"),
            {"retrieval-scenes_vqa/student", "efficiency/teacher"},
        ),
        (("--suite", "smoke", "--seeds", "1"), {"evaluation finetune/0", "evaluation none/0", "training none/0"}),
    ],
    ids=["sets", "suite"],
)
def test_a_report_gets_every_artifact_that_it_collects(
    done: Done, more: tuple[str, ...], read: set[str], tmp_path: Path
) -> None:
    """KFP itself fills in the URLs, and a suite's rows; a report names as missing what it did not get."""
    root = f"{done.job.arguments['root']}/collected"
    given = arguments(tmp_path, done.env["MLFLOW_TRACKING_URI"], root, "tiny", "--compile-only", "-", *more)
    with environment(done.env):
        job = decide(submit.parser().parse_args(given))
        containers.run_pipeline(job, done.env, tmp_path)
        report = Artifact.open(job.urls[job.tasks[-1].name])
    got = {name.replace(" ", "/", 1) for name in report.manifest["inputs"]}  # evaluation none/0
    assert read <= set(report.manifest["inputs"])
    wanted = {name for task in job.tasks for name in task.collects}
    assert {name for name in wanted if not any(name in one for one in got)} == set()
