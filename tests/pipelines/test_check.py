"""submit.py --check: a good site and broken ones, with servers for KFP, S3 and Kubernetes; the stage plays its pods."""

from __future__ import annotations

import base64
import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cmapkd.pipelines import check_run, client, components, site_check
from cmapkd.pipelines.check_run import pipeline, tasks
from cmapkd.pipelines.cluster import Cluster
from cmapkd.pipelines.components import Component
from cmapkd.pipelines.ir import Step, command_line, executor_input, load_package, resolve_inputs, steps
from cmapkd.pipelines.package import write_package
from cmapkd.pipelines.site import Site, load_site
from cmapkd.pipelines.submit import main
from cmapkd_core.stages import cli

SITE = """
image = "registry.test/cmapkd@sha256:1"
root = "s3://box/root"
recipe = "tiny"
service_account = "cmapkd-runner"
secrets = [{ name = "cmapkd-s3", env = { AWS_SECRET_ACCESS_KEY = "secret_key" } }]
[retry]
count = 0 # test_check_retries.py has the run that tries them
[pods.train]
gpus = 0
[pods.evaluate]
gpus = 0
"""
NAMESPACE = "/api/v1/namespaces/kubeflow"
VALUE = "the-value-of-the-secret"


class Kubernetes(ThreadingHTTPServer):
    """Answers by path; a path that it does not have is a 404."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        secret = {"data": {"secret_key": base64.b64encode(VALUE.encode()).decode()}}
        self.answers: dict[str, Any] = {
            f"{NAMESPACE}/serviceaccounts/cmapkd-runner": {"metadata": {"name": "cmapkd-runner"}},
            f"{NAMESPACE}/secrets/cmapkd-s3": secret,
            f"{NAMESPACE}/pods": {"items": []},
        }
        self.refuse = 0


class _Handler(BaseHTTPRequestHandler):
    server: Kubernetes

    def log_message(self, *args: Any) -> None:
        """Nothing: the tests look at what is printed."""

    def do_GET(self) -> None:
        body = self.server.answers.get(self.path.partition("?")[0])
        status = self.server.refuse or (200 if body else 404)
        data = (body if isinstance(body, str) else json.dumps(body or {})).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    with Kubernetes() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        config = {
            "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def no_cluster_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))


def command(step: Step, folder: Path, form: dict[str, str], outputs: dict[str, dict[str, str]], run: str) -> list[str]:
    """The argv that KFP gives a task's container."""
    given = executor_input(step, resolve_inputs(step, form, outputs, run), folder)
    return command_line(step, given)


def form_of(package: Path) -> dict[str, str]:
    parameters = load_package(package)[0].root.input_definitions.parameters
    return {name: parameter.default_value.string_value for name, parameter in parameters.items()}


def played(folder: Path, refused: str = "", retries: bool = True) -> Callable[[dict[str, Any]], None]:
    """A cluster that runs every task of a check with the argv that its pod would get, here.

    As KFP does, it tells states by the package's keys, with none for what waited for a failed task. Of the task
    `refused` no container starts, and its driver fails. With `retries` a failed one starts again as its task says.
    """

    def play(run: dict[str, Any]) -> None:
        package = folder / "played.yaml"
        package.write_text(json.dumps(run["pipeline_spec"]["pipeline_spec"]))
        states: dict[str, str | None] = {"root-driver": "SUCCEEDED"}
        outputs: dict[str, dict[str, str]] = {}
        for step in steps(load_package(package)[0]):
            states |= {f"{step.key}-driver": None, step.key: None}
            if step.name == refused:
                states[f"{step.key}-driver"] = "FAILED"
            elif step.needs <= set(outputs):
                states[f"{step.key}-driver"] = "SUCCEEDED"
                place = folder / step.key
                argv = command(step, place, form_of(package), outputs, run["display_name"])
                at = next(at for at, part in enumerate(argv) if part.startswith("cmapkd_core.stages."))
                stage, more = importlib.import_module(argv[at]).run, step.task.retry_policy.max_retry_count
                attempts = (cli.main(stage, argv[at + 1 :]) for _ in range(1 + retries * more))
                code = next((0 for code in attempts if not code), 1)
                states[step.key] = "FAILED" if code else "SUCCEEDED"
                if not code:
                    outputs[step.key] = {"artifact": (place / "artifact").read_text()}
                    for shown in step.component.output_definitions.artifacts:
                        assert (place / shown).stat().st_size > 10, (step.name, shown)
        run["state"] = "FAILED" if "FAILED" in states.values() else "SUCCEEDED"
        run["run_details"] = {"task_details": [{"display_name": key, "state": s} for key, s in states.items()]}

    return play


def report_seems(state: str, run: dict[str, Any]) -> dict[str, Any]:
    """Change what a played run tells of its report, if it has one; returns that entry."""
    (report,) = (one for one in run["run_details"]["task_details"] if one["display_name"] == "check-report")
    report["state"] = state
    return report


def lines_of(printed: str) -> dict[str, list[str]]:
    """State -> names of the lines that have it."""
    found: dict[str, list[str]] = {"ok": [], "failed": [], "unknown": []}
    for line in printed.splitlines():
        state, name = line[:9].strip(), line[9:29].strip()
        if state in found and name:
            found[state].append(name)
    return found


@pytest.fixture
def site(api: Any, tmp_path: Path) -> Any:
    """The KFP server, with a site file that is right and a cluster that plays along."""
    Path("site.toml").write_text(SITE)
    api.on_run = played(tmp_path)
    return api


def test_a_good_site_is_ok_in_every_line(site: Any, kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.toml").write_text(SITE.replace("count = 0", "count = 1"))
    assert main(["--check"]) == 0
    printed = capsys.readouterr().out
    told = lines_of(printed)
    assert not told["failed"] + told["unknown"]
    asked = ["site file", "endpoint", "version", "namespace", "service account", "secret", "root, from here"]
    assert told["ok"][:7] == asked
    assert told["ok"][-2:] == ["retries", "run"]
    assert "ok       retries             failed containers are retried: yes\n" in printed
    for kind in ("prepare", "train", "evaluate", "report", "gate"):
        more = kind == "gate" or (kind == "train" and "ranks" in printed)
        assert told["ok"].count(f"pod {kind}") == 4 + more
    stages = ("prepare-part", "prepare", "teacher", "train", "evaluate", "levels", "export", "report", "gate")
    assert [told["ok"].count(f"stage {stage}") for stage in stages] == [1] * 9
    assert "stage report        arguments: all 24 inputs arrive, and what 5 other tasks wrote can be read" in printed
    assert "stage train         arguments: all 4 inputs arrive\n" in printed
    assert f"{site.url}/#/runs/details/run-0" in printed
    assert VALUE not in printed + json.dumps(site.runs)
    assert site.versions == []  # nobody wants to see it in the list of pipelines
    assert [run["service_account"] for run in site.runs] == ["cmapkd-runner"] * 2


def test_every_component_is_tried_as_a_run_has_it(site: Any) -> None:
    """The same components: an input or an output that one of them has cannot be left out of the check."""
    every = {one for one in vars(components).values() if isinstance(one, Component)}
    tried = tasks(load_site("site.toml"))
    for kind in (
        "prepare",
        "train",
        "evaluate",
        "report",
        "gate",
    ):  # one at a time: two TrainJobs would share the GPUs badly
        names = [task.name for task in tried if task.pod == kind]
        assert [task.after for task in tried if task.pod == kind] == [(), *((name,) for name in names[:-1])]
    assert {task.component for task in tried} == every
    assert len(tried) == len(every) == 9
    readers = {task.name: task.sources() for task in tried if task.sources()}
    assert readers.pop("check-prepare") == {"check-prepare-part"}
    assert readers == {"check-report": {f"check-{of}" for of in ("prepare", "teacher", "train", "evaluate", "levels")}}
    (report,) = (task for task in tried if task.name == "check-report")  # as runs and as suites have it
    assert {"shards", "efficiency/student", "training/none/0", "efficiency/none"} <= set(report.collects)
    assert {"suite", "expectations", "executions", "naive"} == set(report.values)


def test_an_input_of_a_report_is_the_result_of_the_component_that_writes_it(site: Any, tmp_path: Path) -> None:
    package = write_package(pipeline(load_site("site.toml"), 5), tmp_path / "check.yaml")
    every = steps(load_package(package)[0])
    outputs = {step.key: {"artifact": f"result of {step.name}"} for step in every}
    (report,) = (step for step in every if step.name == "check-report")
    argv = command(report, tmp_path, form_of(package), outputs, "x")
    given = cli.parser(importlib.import_module("cmapkd_core.stages.report").run).parse_args(argv[3:])
    by_stage = {"prepare": ["shards"], "teacher": ["teacher"], "levels": ["levels"]}
    by_stage |= {"train": ["warmup", "alsn", "joint", "reference"]}
    by_stage |= {"evaluate": [f"{role}_eval" for role in ("teacher", "before", "student", "reference")]}
    for stage, names in by_stage.items():
        assert {given.artifacts[name] for name in names} == {f"result of check-{stage}"}
    others = set(given.artifacts) - {name for names in by_stage.values() for name in names}
    assert {given.artifacts[name] for name in others} == {"result of check-evaluate", "result of check-train"}


def test_the_pods_of_the_check_are_those_of_the_site(site: Any, tmp_path: Path) -> None:
    package = write_package(pipeline(load_site("site.toml"), 5), tmp_path / "check.yaml")
    spec, configs = load_package(package)
    for step in steps(spec):
        config = configs[step.component.executor_label]
        assert form_of(package)["image"] == "registry.test/cmapkd@sha256:1"
        assert step.container.image == "{{$.inputs.parameters['pipelinechannel--image']}}"
        assert config.active_deadline_seconds == 300
        assert step.task.retry_policy.max_retry_count == 0
        assert [s.secret_name for s in config.secret_as_env] == ["cmapkd-s3"]


def test_a_site_with_several_nodes_is_checked_on_as_many_pods(site: Any, tmp_path: Path) -> None:
    Path("site.toml").write_text(SITE.replace("[pods.train]", "[pods.train]\nnodes = 2"))
    package = write_package(pipeline(load_site("site.toml"), 5), tmp_path / "check.yaml")
    every = steps(load_package(package)[0])
    outputs = {step.key: {"artifact": "s3://box/x"} for step in every}
    argv = {step.name: command(step, tmp_path, form_of(package), outputs, "x") for step in every}
    for name in ("check-teacher", "check-train"):
        spread = argv.pop(name)
        job = json.loads(spread[spread.index("--job") + 1])
        assert spread[:3] == ["python", "-m", "cmapkd.pipelines.trainjob"]
        assert (job["nodes"], job["seconds"]) == (2, 300)
        assert spread[spread.index("--") + 1] == f"cmapkd_core.stages.{name.removeprefix('check-')}"
        assert spread[spread.index("--check") + 1] == f"{name}:0:{1 if name == 'check-teacher' else 4}"
    assert not any("cmapkd.pipelines.trainjob" in one for one in argv.values())


def test_a_task_that_kfp_refuses_is_told(site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As every task with an input left to its default, on KFP 2.17: its driver fails, and there is no pod."""
    site.on_run = played(tmp_path, refused="check-levels")
    assert main(["--check"]) == 1
    printed = capsys.readouterr().out
    log = "see kubectl logs -l pipeline/runid=run-0 -c main --prefix --tail 3 -n kubeflow"
    assert f"failed   pod evaluate        check-levels refused by its driver; {log}" in printed
    assert "unknown  pod report          check-report not started: it waits for check-levels" in printed
    assert lines_of(printed)["ok"].count("stage evaluate") == 1


def test_a_run_that_kfp_cannot_begin_is_told(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Its root driver fails, for want of a right or of the metadata store."""
    details = [{"display_name": "root-driver", "state": "FAILED"}, {"display_name": "prepare"}]
    site.on_run = lambda run: run.update(state="FAILED", run_details={"task_details": details})
    assert main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert "failed   pod prepare         refused by its driver; see kubectl logs" in printed
    assert "failed   pod evaluate        refused by its driver; see kubectl logs" in printed


def test_states_that_come_after_the_runs_are_waited_for(
    site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """KFP writes the run's state first; a report whose outputs its store refused still seems to go on then."""

    def play(run: dict[str, Any]) -> None:
        played(tmp_path)(run)
        run["state"] = "FAILED"
        report = report_seems("RUNNING", run)
        monkeypatch.setattr(time, "sleep", lambda seconds: report.update(state="FAILED"))

    site.on_run = play
    assert main(["--check"]) == 1
    assert "check-report failed though its stage was well" in capsys.readouterr().out


def test_a_run_of_which_the_api_has_no_tasks_any_more_is_well_all_the_same(
    site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As once Argo compresses their states; nor can their results be read. And it does not fail for want of retries."""

    def play(run: dict[str, Any]) -> None:
        played(tmp_path, retries=False)(run)
        run["run_details"] = {"task_details": None}
        monkeypatch.setattr(check_run.CheckRun, "_lines_of", lambda self, name: [])

    site.on_run = play
    Path("site.toml").write_text(SITE.replace("count = 0", "count = 1"))
    assert main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert lines_of(printed)["failed"] == ["retries"]
    assert "failed   retries             failed containers are retried: no: let an admin of Kubeflow" in printed
    assert "ok       pod train           succeeded; its lines are in its log" in printed
    assert lines_of(printed)["ok"][-1] == "run"


def test_a_task_whose_outputs_kfp_could_not_store_is_told(
    site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def play(run: dict[str, Any]) -> None:
        played(tmp_path)(run)
        run["state"] = "FAILED"
        report_seems("FAILED", run)

    site.on_run = play
    assert main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert (
        "failed   pod report          check-report failed though its stage was well: did KFP's own store take"
        in printed
    )
    assert lines_of(printed)["failed"] == ["pod report", "run"]


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (
            "usage: python -m x [-h]\npython -m x: error: unrecognized arguments: --check a:0",
            "unrecognized arguments: --check a:0; the image is not of this code: make images",
        ),
        ("error: --init holds a placeholder that KFP did not fill in", "--init holds a placeholder that KFP did not"),
    ],
)
def test_an_error_in_the_log_is_told(
    site: Any, kubernetes: Kubernetes, log: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site.on_run = lambda run: run.update(state="FAILED")
    kubernetes.answers[f"{NAMESPACE}/pods"] = {"items": [{"metadata": {"name": "x"}, "status": {}}]}
    kubernetes.answers[f"{NAMESPACE}/pods/x/log"] = log
    assert main(["--check"]) == 1
    assert f"failed   stage prepare       arguments: {says}" in capsys.readouterr().out


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_refused(site: Any, minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([f"--check={minutes}"])
    assert stopped.value.code == 2
    assert f"{minutes}: a number of minutes, such as 30, and less than a day" in capsys.readouterr().err
    assert not site.runs


def test_what_the_check_does_not_go_by_is_refused(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--recipe", "paper", "--seed", "1"]) == 2
    assert "leave out --recipe --seed" in capsys.readouterr().err


def test_a_run_that_has_ended_is_not_ended_again(site: Any, tmp_path: Path) -> None:
    """Its tasks' states are late, and the time is over."""

    def play(run: dict[str, Any]) -> None:
        played(tmp_path)(run)
        report_seems("RUNNING", run)

    site.on_run = play
    assert site_check.check(load_site("site.toml"), minutes=0.0001, interval=0.01) == 1
    assert not site.terminated


def test_a_broken_site_says_what_to_do_in_every_line(
    site: Any, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No bucket, no MLflow, too few GPUs, no service account, a secret without the key."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    text = SITE.replace("box", "nobox").replace("gpus = 0", "gpus = 2", 1)
    Path("site.toml").write_text('tracking_uri = "http://127.0.0.1:9"\n' + text)
    kubernetes.answers[f"{NAMESPACE}/secrets/cmapkd-s3"] = {"data": {"other": ""}}
    kubernetes.answers[f"{NAMESPACE}/pods"] = {"items": [{"metadata": {"name": "x"}, "status": {}}]}
    log = "noise\nok      image   cmapkd\nfailed  root    cannot write s3://nobox: the bucket does not exist\nerror"
    kubernetes.answers[f"{NAMESPACE}/pods/x/log"] = log
    del kubernetes.answers[f"{NAMESPACE}/serviceaccounts/cmapkd-runner"]
    assert main(["--check"]) == 1
    printed = capsys.readouterr().out
    told = lines_of(printed)
    assert told["unknown"] == ["root, from here", "MLflow, from here"]
    assert told["failed"][:2] == ["service account", "secret"]
    assert (
        "no service account 'cmapkd-runner' in kubeflow: correct `service_account` in the site file, or leave it"
        in printed
    )
    assert "secret cmapkd-s3 in kubeflow has no key secret_key, but other: correct `env` of its [[secrets]]" in printed
    assert (
        "delete secret cmapkd-s3, then kubectl -n kubeflow create secret generic cmapkd-s3 --from-literal=" in printed
    )
    assert "failed   pod train           root: cannot write s3://nobox: the bucket does not exist" in printed
    assert "MLflow at http://127.0.0.1:9 cannot be used: [Errno 111] Connection refused" in printed
    assert "run" in told["failed"]


def test_what_the_pods_found_is_told(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.toml").write_text(SITE.replace("gpus = 0", "gpus = 2\nprocesses = 1", 1))
    assert main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert "GPUs: 0 of 2 seen" in printed
    assert lines_of(printed)["failed"] == ["pod train", "run"]
    # no kubeconfig: the line says how to look; and what waits for the pod without GPUs
    assert lines_of(printed)["unknown"] == ["service account", "pod train", "pod report"]
    assert "unknown  pod train           check-train not started: it waits for check-teacher" in printed
    assert "unknown  pod report          check-report not started: it waits for check-teacher, check-train" in printed
    assert "kubectl -n kubeflow get serviceaccount" in printed


@pytest.mark.parametrize(
    ("pod", "message"),
    [
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]},
            "ImagePullBackOff: no such image; check `image`",
        ),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "Insufficient nvidia.com/gpu"}]},
            "cannot be scheduled: Insufficient nvidia.com/gpu",
        ),
    ],
)
def test_a_pod_that_does_not_start_is_told_and_ended(
    site: Any, kubernetes: Kubernetes, pod: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site.on_run = lambda run: run.update(state="RUNNING")
    for status in pod.get("containerStatuses", []):
        status |= {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    meta = {"name": "x-123", "labels": {"app.kubernetes.io/component": "check-train"}}
    kubernetes.answers[f"{NAMESPACE}/pods"] = {"items": [{"metadata": meta, "status": pod}]}
    assert site_check.check(load_site("site.toml"), minutes=0.01, interval=0.1) == 1
    printed = capsys.readouterr().out
    assert f"failed   pod train           check-train not started; {message}" in printed
    assert site.terminated == ["run-0"]


def test_an_endpoint_or_a_site_that_is_not_ready_starts_nothing(
    site: Any, kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    site.token = "wanted"
    assert main(["--check"]) == 1
    assert "KF_PIPELINES_TOKEN" in capsys.readouterr().out
    site.token, site.multi_user = "", True
    assert main(["--check"]) == 1
    assert "fill in `namespace`" in capsys.readouterr().out
    site.multi_user = False
    Path("site.toml").write_text('namespace = "team"\n' + SITE)
    assert main(["--check"]) == 1
    assert "leave `namespace` empty, not 'team'" in capsys.readouterr().out
    Path("site.toml").write_text('root = "runs"\n')
    assert main(["--check"]) == 1
    assert "is no place that pods can reach" in capsys.readouterr().out
    assert not site.runs


def test_kubernetes_that_refuses_leaves_lines_unknown(
    site: Any, kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    kubernetes.refuse = 403
    assert main(["--check"]) == 0
    told = lines_of(capsys.readouterr().out)
    assert told["unknown"] == ["service account", "secret"]


def test_a_site_file_is_needed(elsewhere: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 2
    assert "copy site.example.toml" in capsys.readouterr().err


def test_links_lead_to_the_run() -> None:
    site = site_check.Site(endpoint="kfp.test/pipeline")
    assert client.link(site, "1") == "https://kfp.test/pipeline/#/runs/details/1"


@pytest.mark.parametrize(
    ("namespace", "where", "account"),
    [("", "kubeflow", "pipeline-runner"), ("me", "me", "default-editor")],
)
def test_without_an_account_it_is_kubeflows_own(
    kubernetes: Kubernetes, namespace: str, where: str, account: str
) -> None:
    kubernetes.answers = {f"/api/v1/namespaces/{where}/serviceaccounts/{account}": {"metadata": {"name": account}}}
    cluster = Cluster.find(Site(namespace=namespace))
    assert cluster is not None
    assert cluster.service_account("") == f"{account} in {where}"
