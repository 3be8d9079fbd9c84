"""A small server that speaks the part of the Kubeflow Pipelines v2beta1 API that a submission uses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest


class ApiServer(ThreadingHTTPServer):
    """State of the server: what was uploaded and started, and how it shall answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = ""  # wanted in the Authorization header, when set
        self.fail_with = 0  # status of every answer, when set
        self.fail_times = -1  # how often; -1: always
        self.login_page = False
        self.ends_as = "SUCCEEDED"
        self.experiments: list[dict[str, Any]] = []
        self.pipelines: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.polls = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def run_as_seen_now(self) -> dict[str, Any]:
        """The first poll finds a running task, the second the end."""
        self.polls += 1
        state, task = ("RUNNING", "RUNNING") if self.polls == 1 else (self.ends_as, self.ends_as)
        details = [{"display_name": "prepare", "state": task}, {"display_name": "prepare-driver", "state": task}]
        return {**self.runs[0], "state": state, "run_details": {"task_details": details}}


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
            self.answer({"multi_user": False})
        elif part == ["experiments"]:
            self.answer({"experiments": [e for e in api.experiments if e["display_name"] == wanted]})
        elif part == ["pipelines"]:
            self.answer({"pipelines": [p for p in api.pipelines if p["display_name"] == wanted]})
        elif part[-1] == "versions":
            self.answer({"pipeline_versions": [v for v in api.versions if v["display_name"] == wanted]})
        elif part[0] == "runs":
            self.answer(api.run_as_seen_now())
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
            self.add(api.versions, version)
        elif url.path.endswith("/experiments"):
            self.add(api.experiments, {**json.loads(body), "experiment_id": "e1"})
        elif url.path.endswith("/runs"):
            self.add(api.runs, {**json.loads(body), "run_id": f"run-{len(api.runs)}"})
        else:
            self.answer({"error": f"unknown path {url.path}"}, 404)

    def add(self, table: list[dict[str, Any]], row: dict[str, Any]) -> None:
        table.append(row)
        self.answer(row)

    def refused(self) -> bool:
        api = self.server
        if api.login_page:
            self.answer("<html>log in</html>", kind="text/html")
        elif api.fail_with and api.fail_times:
            api.fail_times -= 1
            self.answer({"error": "the database is away", "code": 13}, api.fail_with)
        elif api.token and self.headers.get("authorization") != f"Bearer {api.token}":
            self.answer({"error": "no or wrong token"}, 401)
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


@pytest.fixture
def kfp_server() -> Iterator[ApiServer]:
    """The server, answering on a free port of this machine."""
    with ApiServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
