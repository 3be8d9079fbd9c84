"""Training tasks on several pods: the TrainJob that the launcher makes, and how it waits (its own pod: test_pods)."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from pipelines import trainjob
from pipelines.graph import Plan
from pipelines.ir import command_line, executor_input, load_package, resolve_inputs, steps
from pipelines.package import build, defaults, write_package
from pipelines.site import Pod, Secret, Site, Toleration
from pipelines.tasks import TASKS

POD = Pod(
    gpus=8,
    cpu="64",
    memory="256Gi",
    shm="64Gi",
    scratch="100Gi",
    hours=3.0,
    nodes=2,
    node_selector={"pool": "gpu"},
    tolerations=(Toleration(key="gpu", effect="NoSchedule"),),
)
SITE = Site(
    recipe="tiny",
    root="s3://box/root",
    image="registry.test/cmapkd@sha256:1",
    service_account="cmapkd-runner",
    image_pull_secrets=("pull",),
    env={"AWS_REGION": "here"},
    secrets=(Secret("s3-keys", {"AWS_SECRET_ACCESS_KEY": "secret_key"}),),
    pods=dataclasses.replace(Site().pods, train=POD),
)
JOB = trainjob.in_image(json.loads(trainjob.describe(SITE, POD)), SITE.image)
API = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team"


class Kubernetes(ThreadingHTTPServer):
    """The part of the Kubernetes API that the Trainer's SDK uses; a job runs for two looks, then ends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}
        self.looks = 0
        self.ends_as = "Complete"
        self.refuse = 0
        self.deleted: list[str] = []

    def seen(self, path: str) -> dict[str, Any] | None:
        found = self.objects.get(path)
        if found and found["kind"] == "TrainJob":
            self.looks += 1
            state = {"conditions": [{"type": self.ends_as, "status": "True"}]} if self.looks > 2 else {}
            stamp = "2026-01-01T00:00:00Z"
            condition = {"reason": "r", "message": "m", "lastTransitionTime": stamp}
            state = {"conditions": [{**c, **condition} for c in state.get("conditions", [])]} if state else {}
            meta = {**found["metadata"], "namespace": "team", "creationTimestamp": stamp}
            return {**found, "metadata": meta, "status": state}
        return found

    def pod(self) -> dict[str, Any]:
        """Node 0 of a running job, as it is listed."""
        labels = {"jobset.sigs.k8s.io/replicatedjob-name": "node", "batch.kubernetes.io/job-completion-index": "0"}
        return {
            "metadata": {"name": "node-0", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "node", "image": "i"}]},
            "status": {"phase": "Running"},
        }


class _Handler(BaseHTTPRequestHandler):
    server: Kubernetes

    def log_message(self, *args: Any) -> None:
        """Nothing: the tests look at the state."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/v1/namespaces/team/pods":
            self.answer({"kind": "PodList", "items": [self.server.pod()]})
        elif path.endswith("/log"):
            self.answer("joint: step 1\njoint: step 2\n")
        else:
            found = self.server.seen(path)
            self.answer(found or {"kind": "Status", "code": 404}, 200 if found else 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = f"{self.path}/{body['metadata']['name']}"
        if self.server.refuse or path in self.server.objects:
            self.answer({"kind": "Status"}, self.server.refuse or 409)
            return
        self.server.looks = 0
        self.server.objects[path] = body
        self.answer(body, 201)

    def do_DELETE(self) -> None:
        self.server.deleted.append(self.path.rpartition("/")[2])
        self.server.objects.pop(self.path, None)
        self.answer({"kind": "Status"})

    def answer(self, body: Any, status: int = 200) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    with Kubernetes() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_address[1]}"
        config = {
            "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": host}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "team"}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
        monkeypatch.setattr(trainjob, "POLL_SECONDS", 1)
        yield server
        server.shutdown()


def launch(*stage: str, job: dict[str, Any] = JOB) -> int:
    ours = ["--job", json.dumps(job), "--image", SITE.image, "--processes", "8", "--shutdown-timeout", "25"]
    return trainjob.main([*ours, "--", *stage])


def a_stage(folder: Path, exits: int = 0) -> str:
    """A module that writes its --artifact, as a complete stage does."""
    code = (
        f"import sys\nopen(sys.argv[sys.argv.index('--artifact') + 1], 'w').write('s3://box/done')\nsys.exit({exits})\n"
    )
    (folder / "some_stage.py").write_text(code)
    return "some_stage"


def test_the_launcher_gets_the_stage_s_argv(tmp_path: Path) -> None:
    package = write_package(build(SITE, Plan(TASKS), defaults(SITE)), tmp_path / "pipeline.yaml")
    joint = next(step for step in steps(load_package(package)[0]) if step.name == "joint")
    outputs = {key: {"artifact": f"s3://box/{key}"} for key in joint.needs}
    inputs = resolve_inputs(joint, defaults(SITE), outputs, "a-run")
    argv = command_line(joint, executor_input(joint, inputs, tmp_path))
    stage = argv[argv.index("--") + 1 :]
    assert stage[0] == "cmapkd_core.stages.train"
    assert stage[stage.index("--stage") + 1] == "joint"
    assert "--artifact" in stage
    launcher = argv[: argv.index("--")]
    assert launcher[launcher.index("--image") + 1] == SITE.image


def test_the_pods_hold_to_pod_security_and_name_secrets_only() -> None:
    pod = trainjob.training_runtime(JOB)["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
        "template"
    ]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **pod["metadata"]}, "spec": pod["spec"]}
    kubernetes_validate.validate(body, kubernetes_validate.latest_version(), strict=True)
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {v["name"]: v["emptyDir"] for v in spec["volumes"]}
    assert volumes == {"tmp": {"sizeLimit": "100Gi"}, "shm": {"medium": "Memory", "sizeLimit": "64Gi"}}
    unbounded = json.loads(trainjob.describe(SITE, dataclasses.replace(POD, scratch="", shm="")))["pod"]
    assert unbounded["volumes"] == [{"name": "tmp", "emptyDir": {}}]  # the root is read-only
    assert {
        "name": "AWS_SECRET_ACCESS_KEY",
        "valueFrom": {"secretKeyRef": {"name": "s3-keys", "key": "secret_key"}},
    } in (container["env"])
    assert (spec["serviceAccountName"], spec["nodeSelector"]) == ("cmapkd-runner", {"pool": "gpu"})
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_the_job_and_its_runtime_are_what_the_trainer_knows(
    cluster: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    artifact = tmp_path / "artifact"
    stage = (a_stage(tmp_path), "--recipe", "tiny", "--run", "r", "--redo", "yes", "--artifact", str(artifact))
    assert launch(*stage) == 0
    kinds = {"trainjobs": models.TrainerV1alpha1TrainJob, "trainingruntimes": models.TrainerV1alpha1TrainingRuntime}
    runtime = next(body for path, body in cluster.objects.items() if "/trainingruntimes/" in path)
    assert kinds["trainingruntimes"].from_dict(runtime).to_dict() == runtime  # a field that it does not know vanishes
    assert cluster.deleted  # the job, once it was complete
    assert artifact.read_text() == "s3://box/done"
    printed = capfd.readouterr().out
    assert "Complete" in printed
    assert "joint: step 2" in printed

    cluster.ends_as = "Failed"
    assert launch(*stage) == 1
    job = next(body for path, body in cluster.objects.items() if "/trainjobs/" in path)
    assert kinds["trainjobs"].from_dict(job).to_dict() == job
    assert job["spec"]["runtimeRef"] == {"kind": "TrainingRuntime", "name": runtime["metadata"]["name"]}
    assert job["spec"]["activeDeadlineSeconds"] == 3 * 3600
    trainer = job["spec"]["trainer"]
    assert (trainer["image"], trainer["numNodes"]) == (SITE.image, 2)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    ranks = ["torchrun", "--nproc-per-node", "8", "--shutdown-timeout", "25", "-m", "--", "some_stage"]
    assert trainer["command"] == ranks
    assert trainer["args"] == ["--recipe", "tiny", "--run", "r", "--redo", "yes"]  # the output file is this pod's


def test_a_job_that_still_runs_is_waited_for_and_an_ended_one_made_anew(
    cluster: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    client = trainjob._client()
    name = trainjob.start(client, JOB, ["torchrun"], ["--run", "r"])
    assert trainjob.start(client, JOB, ["torchrun"], ["--run", "r"]) == name
    assert "still runs since an earlier attempt" in capfd.readouterr().out
    cluster.looks = 9  # it has ended meanwhile
    assert trainjob.start(client, JOB, ["torchrun"], ["--run", "r"]) == name
    assert cluster.deleted == [name]


@pytest.mark.parametrize(("status", "message"), [(403, "multi-node"), (404, "no Kubeflow Trainer"), (500, "500")])
def test_refusals_are_messages(
    cluster: Kubernetes, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.refuse = status
    assert launch("some_stage", "--artifact", "x") == 1
    assert message in capsys.readouterr().err


def test_a_job_that_takes_too_long_is_named(cluster: Kubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.ends_as = "Suspended"
    assert launch("some_stage", "--artifact", "x", job=JOB | {"seconds": 3}) == 1
    assert "pods.train.hours" in capsys.readouterr().err


def test_sigterm_deletes_the_job(cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch, own_signals: None) -> None:
    def stopped(*given: Any) -> bool:
        signal.raise_signal(signal.SIGTERM)
        return True

    monkeypatch.setattr(trainjob, "follow", stopped)
    assert launch("some_stage", "--artifact", "x") == 143
    assert len(cluster.deleted) == 1


def test_two_pods_become_one_world(tmp_path: Path) -> None:
    """The very command of the job in two processes, each told what the Trainer's torch plugin tells a pod."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--shutdown-timeout", "25"]
    stage = ["--recipe", "tiny", "--root", str(tmp_path), "--run", "r", "--check", "check-prepare:0"]
    told = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "auto",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    pods = [
        subprocess.Popen(
            [*command, "-m", "--", "cmapkd_core.stages.prepare", *stage],
            env={**os.environ, **told, "PET_NODE_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = [pod.communicate(timeout=120)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0]
    assert "ranks      2 on 1 machine hear each other" in printed[0]
    assert not printed[1]
