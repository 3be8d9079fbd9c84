"""The part of the Kubernetes API that a TrainJob's launcher uses, for test_trainjob.py and test_jobs.py."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

STAMP = "2026-01-01T00:00:00Z"
HERE = re.compile(r"/(?:api/v1|apis/trainer.kubeflow.org/v1alpha1)/namespaces/team/(?P<kind>[a-z]+)(?:/(?P<name>.+))?")
JOB_OF_POD = "jobset.sigs.k8s.io/jobset-name"
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


class Kubernetes(ThreadingHTTPServer):
    """Namespace `team`. A job runs for `lasts` looks at it, then ends.

    One that is deleted in the foreground stays for a look, and its pods for one more.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.launchers: dict[str, dict[str, Any]] = {}
        self.looks, self.lasts, self.ends_as, self.refuse = 0, 2, "Complete", 0
        self.deleted: list[str] = []
        self.orphans: set[str] = set()  # jobs deleted in the background: their JobSets go a little later
        self.saving: dict[str, int] = {}  # jobs whose pods still save: looks left
        self.asked: set[tuple[str, str]] = set()  # (verb, resource)
        self._uid = 0

    def kubeconfig(self) -> dict[str, Any]:
        host = f"http://127.0.0.1:{self.server_address[1]}"
        return {
            "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": host}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "team"}}],
        }

    def launcher(self, name: str, env: pytest.MonkeyPatch) -> None:
        """A pod of a task, and this process is in it."""
        self.launchers[name] = {
            "metadata": {"name": name, "uid": f"uid-{name}"},
            "spec": {"containers": [{"name": "main", "image": "i"}]},
            "status": {"phase": "Running"},
        }
        env.setenv("KFP_POD_NAME", name)
        env.setenv("KFP_POD_UID", f"uid-{name}")

    def ends(self, name: str, phase: str = "Failed") -> None:
        """A launcher's pod is over and still listed."""
        self.launchers[name]["status"]["phase"] = phase

    def made(self, kind: str) -> list[dict[str, Any]]:
        return [body for (one, _), body in self.objects.items() if one == kind]

    def jobs(self) -> list[dict[str, Any]]:
        """As they were made, with their owners of now."""
        return self.made("trainjobs")

    def collect(self, name: str) -> None:
        """What the garbage collector does after a launcher's pod was deleted."""
        del self.launchers[name]
        for job in self.jobs():
            if [one["name"] for one in job["metadata"].get("ownerReferences", [])] == [name]:
                self.vanish(job["metadata"]["name"])

    def vanish(self, name: str) -> None:
        del self.objects["trainjobs", name]
        self.saving[name] = 1

    def create(self, kind: str, body: dict[str, Any]) -> int:
        name = body["metadata"]["name"]
        if self.refuse or (kind, name) in self.objects:
            return self.refuse or 409
        assert name not in (*self.saving, *self.orphans), "the JobSet of the one before may still be there"
        self.looks, self._uid = 0, self._uid + 1
        self.objects[kind, name] = body
        return 201

    def seen(self, kind: str, name: str) -> dict[str, Any] | None:
        found = self.objects.get((kind, name))
        if found is None or kind != "trainjobs":
            return found
        self.looks += 1
        state = {"type": self.ends_as, "status": "True", "reason": "r", "message": "m", "lastTransitionTime": STAMP}
        meta = {**found["metadata"], "namespace": "team", "creationTimestamp": STAMP, "uid": f"{name}-{self._uid}"}
        if "deletionTimestamp" in meta:
            self.vanish(name)
        return {**found, "metadata": meta, "status": {"conditions": [state]} if self.looks > self.lasts else {}}

    def pods_of(self, name: str) -> list[dict[str, Any]]:
        """Node 0 of a job that is there or saves."""
        left = self.saving.get(name, 0)
        if not left:
            self.saving.pop(name, None)
        else:
            self.saving[name] = left - 1
        if not left and ("trainjobs", name) not in self.objects:
            return []
        labels = {"jobset.sigs.k8s.io/replicatedjob-name": "node", "batch.kubernetes.io/job-completion-index": "0"}
        meta = {"name": "node-0", "labels": labels, "creationTimestamp": STAMP}
        spec = {"containers": [{"name": "node", "image": "i"}]}
        return [{"metadata": meta, "spec": spec, "status": {"phase": "Running"}}]


class _Handler(BaseHTTPRequestHandler):
    server: Kubernetes

    def log_message(self, *args: Any) -> None:
        """Nothing: the tests look at the state."""

    def parsed(self) -> tuple[str, str, dict[str, str]]:
        """Kind, name and query; what is asked for is remembered."""
        url = urlparse(self.path)
        found = HERE.fullmatch(url.path)
        if found is None:
            return "", "", {}
        kind, name = found["kind"], found["name"] or ""
        resource = "pods/log" if name.endswith("/log") else kind
        self.server.asked.add((VERBS.get(self.command, "get" if name else "list"), resource))
        return kind, name, {key: value[0] for key, value in parse_qs(url.query).items()}

    def body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "{}")

    def do_GET(self) -> None:
        kind, name, query = self.parsed()
        selector = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if "=" in part)
        if kind == "pods" and name.endswith("/log"):
            self.answer("joint: step 1\njoint: step 2\n")
        elif kind == "pods" and not name:
            self.answer({"kind": "PodList", "items": self.server.pods_of(selector[JOB_OF_POD])})
        elif not name:
            items = [
                self.server.seen(kind, job["metadata"]["name"])
                for job in self.server.made(kind)
                if selector.items() <= job["metadata"]["labels"].items()
            ]
            self.answer({"items": items})
        else:
            found = self.server.launchers.get(name) if kind == "pods" else self.server.seen(kind, name)
            self.answer(found or {"kind": "Status", "code": 404}, 200 if found else 404)

    def do_POST(self) -> None:
        kind, _, _ = self.parsed()
        body = self.body()
        self.answer(body, self.server.create(kind, body))

    def do_PATCH(self) -> None:
        kind, name, _ = self.parsed()
        change, found = self.body()["metadata"], self.server.seen(kind, name)
        assert self.headers["content-type"] == "application/merge-patch+json"
        if found is None or found["metadata"]["uid"] != change.pop("uid"):
            self.answer({"kind": "Status"}, 409 if found else 404)
            return
        self.server.objects[kind, name]["metadata"].update(change)
        self.answer(found)

    def do_DELETE(self) -> None:
        kind, name, query = self.parsed()
        self.body()
        found = self.server.objects.get((kind, name))
        self.server.deleted.append(name)
        if found and query.get("propagationPolicy") == "Foreground":
            found["metadata"]["deletionTimestamp"] = STAMP
        elif found:
            self.server.objects.pop((kind, name))
            self.server.orphans.add(name)
        self.answer({"kind": "Status"}, 200 if found else 404)

    def answer(self, body: Any, status: int = 200) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
