"""A small server that speaks the part of the Kubeflow Pipelines v2beta1 API that a submission uses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
import yaml
from kubernetes_stub import Kubernetes

from cmapkd.pipelines import client, jobs, trainjob
from cmapkd_core import storage


class ApiServer(ThreadingHTTPServer):
    """State of the server: what was uploaded and started, and how it shall answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = ""  # wanted in the Authorization header, when set
        self.fail_with = 0  # status of the answers, when set
        self.fail_path = ""  # the part of a path, such as "runs", that fails; "": every path
        self.fail_page = False  # with HTML, as a proxy fails
        self.fail_times = -1  # how often; -1: always
        self.login_page = False  # for those without the token, in place of a 401
        self.ends_as = "SUCCEEDED"
        self.experiments: list[dict[str, Any]] = []
        self.pipelines: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.recurring: list[dict[str, Any]] = []
        self.retried: list[str] = []
        self.terminated: list[str] = []
        self.no_retry = ""  # what it says, with a 500, in place of a retry
        self.multi_user = False
        self.version = "2.17.0"
        self.on_run: Callable[[dict[str, Any]], None] = lambda run: None  # plays the cluster
        self.polls = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def run_as_seen_now(self, run_id: str) -> dict[str, Any] | None:
        """The first poll finds a running task, the second the end; a run whose state was set has it at once."""
        run = next((run for run in self.runs if run["run_id"] == run_id), None)
        if run is None or "state" in run:
            return run
        self.polls += 1
        state, task = ("RUNNING", "RUNNING") if self.polls == 1 else (self.ends_as, self.ends_as)
        details = [{"display_name": "prepare", "state": task}, {"display_name": "prepare-driver", "state": "SUCCEEDED"}]
        return {**run, "state": state, "run_details": {"task_details": details}}

    def act(self, run_id: str, verb: str) -> int:
        """Status of `POST runs/ID:VERB`; a retried run goes on from the start of its states."""
        run = next((run for run in self.runs if run["run_id"] == run_id), None)
        if run is None:
            return 404
        run.pop("state", None)
        self.polls = 0
        (self.retried if verb == "retry" else self.terminated).append(run_id)
        return 200


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, *args: Any) -> None:
        """Nothing: the tests look at the state."""

    def do_GET(self) -> None:
        """Healthz, lists with a filter on the display name, one run."""
        url, api = urlparse(self.path), self.server
        if self.refused():
            return
        wanted = json.loads(parse_qs(url.query).get("filter", ["{}"])[0]).get("predicates", [{}])[0].get("stringValue")
        part = url.path.removeprefix("/apis/v2beta1/").split("/")
        if part == ["healthz"]:
            self.answer({"tag_name": api.version, "multi_user": api.multi_user})
        elif part == ["experiments"]:
            self.answer({"experiments": [e for e in api.experiments if wanted in (None, e["display_name"])]})
        elif part == ["pipelines"]:
            self.answer({"pipelines": [p for p in api.pipelines if p["display_name"] == wanted]})
        elif part[-1] == "versions":
            self.answer({"pipeline_versions": [v for v in api.versions if v["display_name"] == wanted]})
        elif part[-2:-1] == ["versions"]:
            self.answer(next(v for v in api.versions if v["pipeline_version_id"] == part[-1]))
        elif part == ["runs"]:
            of = parse_qs(url.query).get("experiment_id", [None])[0]
            found = [api.run_as_seen_now(run["run_id"]) if of else run for run in api.runs]
            found = [
                run for run in found if wanted in (None, run["display_name"]) and of in (None, run.get("experiment_id"))
            ]
            self.answer({"runs": found if "asc" in url.query else found[::-1]})
        elif part[0] == "runs":
            run = api.run_as_seen_now(part[1])
            self.answer(run or {"error": f"run {part[1]} is not there"}, 200 if run else 404)
        else:
            self.answer({"error": f"unknown path {url.path}"}, 404)

    def do_POST(self) -> None:
        """Uploads, a new experiment, a new run."""
        url, api = urlparse(self.path), self.server
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.refused():
            return
        name = parse_qs(url.query).get("name", [""])[0]
        if url.path.endswith("/upload"):
            self.add(api.pipelines, {"pipeline_id": "p1", "display_name": name, "package": body.decode()})
        elif url.path.endswith("/upload_version"):
            version = {"pipeline_id": "p1", "pipeline_version_id": f"v{len(api.versions)}", "display_name": name}
            package = body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
            self.add(api.versions, version | {"pipeline_spec": next(yaml.safe_load_all(package))})
        elif url.path.endswith("/experiments"):
            self.add(api.experiments, {**json.loads(body), "experiment_id": f"e{len(api.experiments)}"})
        elif url.path.endswith("/runs"):
            run = {**json.loads(body), "run_id": f"run-{len(api.runs)}"}
            api.on_run(run)
            self.add(api.runs, run)
        elif url.path.endswith("/recurringruns"):
            self.add(api.recurring, {**json.loads(body), "recurring_run_id": f"every-{len(api.recurring)}"})
        elif ":" in url.path:
            run_id, verb = url.path.rpartition("/")[2].split(":")
            if verb == "retry" and api.no_retry:
                self.answer({"error": api.no_retry, "code": 13, "message": api.no_retry}, 500)
            else:
                self.answer({}, api.act(run_id, verb))
        else:
            self.answer({"error": f"unknown path {url.path}"}, 404)

    def add(self, table: list[dict[str, Any]], row: dict[str, Any]) -> None:
        table.append(row)
        self.answer(row)

    def refused(self) -> bool:
        api, parts = self.server, urlparse(self.path).path.split("/")
        stranger = api.token and self.headers.get("authorization") != f"Bearer {api.token}"
        if stranger and api.login_page:
            self.answer("<html>log in</html>", kind="text/html")
        elif stranger:
            self.answer({"error": "no or wrong token"}, 401)
        elif api.fail_with and api.fail_times and api.fail_path in (*parts, ""):
            api.fail_times -= 1
            if api.fail_page:
                self.answer("<html>bad gateway</html>", api.fail_with, kind="text/html")
            else:
                self.answer({"error": "the database is away", "code": 13}, api.fail_with)
        else:
            return False
        return True

    def answer(self, body: Any, status: int = 200, kind: str = "application/json") -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="session", autouse=True)
def _quick(quick_compile: None) -> None:
    """Nearly all of these tests compile."""


@pytest.fixture
def kfp_server() -> Iterator[ApiServer]:
    """The server, answering on a free port of this machine."""
    with ApiServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no endpoint or token from outside, quick polls."""
    monkeypatch.chdir(tmp_path)
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_TOKEN", "KF_PIPELINES_UI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    follow = client.follow
    monkeypatch.setattr(client, "follow", lambda *given, **more: follow(*given, **more, interval=0.05))


@pytest.fixture
def api(elsewhere: None, kfp_server: ApiServer, monkeypatch: pytest.MonkeyPatch, s3_endpoint: str) -> ApiServer:
    """A KFP endpoint, and an S3 with the bucket `box` for the run's record."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="box")
    storage.delete_tree("s3://box/root")  # of the tests before: their runs have records there
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp_server.url)
    Path("site.toml").write_text('image = "registry.test/cmapkd@sha256:1"\nroot = "s3://box/root"\nrecipe = "tiny"\n')
    return kfp_server


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    with Kubernetes() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(server.kubeconfig()))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
        monkeypatch.setattr(trainjob, "POLL_SECONDS", 1)
        monkeypatch.setattr(jobs, "LOOK_SECONDS", 0.01)
        server.launcher("first", monkeypatch)
        yield server
        server.shutdown()
    role = yaml.safe_load_all(
        (Path(__file__).parents[2] / "k8s" / "components" / "multi-node" / "trainjobs.yaml").read_text()
    )
    rules = next(document["rules"] for document in role if document["kind"] == "Role")
    allowed = {(verb, kind) for rule in rules for verb in rule["verbs"] for kind in rule["resources"]}
    assert server.asked <= allowed, "the launcher's role does not have these rights"
