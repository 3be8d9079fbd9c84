"""Training tasks on several pods: the TrainJob that the launcher makes, and how it waits (its own pod: test_pods)."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from kubeflow_trainer_api import models
from kubernetes_stub import Kubernetes

from cmapkd.pipelines import trainjob
from cmapkd.pipelines.ir import command_line, executor_input, load_package, resolve_inputs, steps
from cmapkd.pipelines.jobs import Jobs
from cmapkd.pipelines.package import Plan, build, defaults, write_package
from cmapkd.pipelines.site import PART_OF, Pod, Secret, Site, Toleration
from cmapkd.pipelines.tasks import TASKS

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


def test_a_task_on_one_node_is_a_trainjob_too_where_the_site_says_so(tmp_path: Path) -> None:
    """Its pod has torchrun as PID 1, and so the grace period that a pod of Kubeflow Pipelines has not."""
    pod = dataclasses.replace(POD, nodes=1, trainjob=True)
    site = dataclasses.replace(SITE, pods=dataclasses.replace(SITE.pods, train=pod))
    package = write_package(build(site, Plan(TASKS), defaults(site)), tmp_path / "pipeline.yaml")
    launched = {}
    for step in steps(load_package(package)[0]):
        outputs = {key: {"artifact": f"s3://box/{key}"} for key in step.needs}
        argv = command_line(
            step, executor_input(step, resolve_inputs(step, defaults(site), outputs, "a-run"), tmp_path)
        )
        if "cmapkd.pipelines.trainjob" in argv:
            launched[step.name] = json.loads(argv[argv.index("--job") + 1])
    assert launched.keys() >= {"teacher", "warmup", "alsn", "joint"}
    assert "prepare" not in launched
    job = trainjob.in_image(launched["joint"], SITE.image)
    assert trainjob.training_runtime(job)["spec"]["mlPolicy"] == {"numNodes": 1, "torch": {}}


@pytest.mark.parametrize(
    ("gang", "scheduler", "expected"),
    [
        ("", "", (None, None)),
        ("volcano", "", ({"volcano": {}}, "volcano")),
        ("coscheduling", "", ({"coscheduling": {}}, "scheduler-plugins-scheduler")),
        ("coscheduling", "default-scheduler", ({"coscheduling": {}}, "default-scheduler")),
        ("", "kai-scheduler", (None, "kai-scheduler")),
    ],
)
def test_the_pods_of_a_job_are_placed_at_once_where_the_site_names_a_gang_scheduler(
    gang: str, scheduler: str, expected: tuple[Any, Any]
) -> None:
    pod = dataclasses.replace(POD, gang=gang, scheduler=scheduler)
    runtime = trainjob.training_runtime(trainjob.in_image(json.loads(trainjob.describe(SITE, pod)), SITE.image))
    assert models.TrainerV1alpha1TrainingRuntime.from_dict(runtime).to_dict() == runtime
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    spec = node["template"]["spec"]["template"]["spec"]
    assert (runtime["spec"].get("podGroupPolicy"), spec.get("schedulerName")) == expected


def test_the_pods_hold_to_pod_security_and_name_secrets_only() -> None:
    pod = trainjob.training_runtime(JOB)["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
        "template"
    ]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **pod["metadata"]}, "spec": pod["spec"]}
    kubernetes_validate.validate(body, kubernetes_validate.latest_version(), strict=True)
    assert pod["metadata"]["labels"] == {**PART_OF, "sidecar.istio.io/inject": "false"}
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
    runtime = cluster.made("trainingruntimes")[0]
    assert kinds["trainingruntimes"].from_dict(runtime).to_dict() == runtime  # a field that it does not know vanishes
    assert cluster.deleted  # the job, once it was complete
    assert artifact.read_text() == "s3://box/done"
    printed = capfd.readouterr().out
    assert "Complete" in printed
    assert "joint: step 2" in printed

    cluster.orphans.clear()  # time passes
    cluster.ends_as = "Failed"
    assert launch(*stage) == 1
    job = cluster.jobs()[0]
    assert kinds["trainjobs"].from_dict(job).to_dict() == job
    assert job["spec"]["runtimeRef"] == {"kind": "TrainingRuntime", "name": runtime["metadata"]["name"]}
    assert job["spec"]["activeDeadlineSeconds"] == 3 * 3600
    trainer = job["spec"]["trainer"]
    assert (trainer["image"], trainer["numNodes"]) == (SITE.image, 2)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    ranks = ["torchrun", "--nproc-per-node", "8", "--shutdown-timeout", "25", "-m", "--", "some_stage"]
    assert trainer["command"] == ranks
    assert trainer["args"] == ["--recipe", "tiny", "--run", "r", "--redo", "yes"]  # the output file is this pod's


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


@pytest.mark.parametrize("ends", [True, False])
def test_a_job_of_another_pod_is_not_deleted(
    cluster: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None, ends: bool
) -> None:
    monkeypatch.setattr(trainjob, "follow", lambda *given: ends or signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(subprocess, "run", lambda *given, **more: subprocess.CompletedProcess(given, 0))
    cluster.lasts = 99
    stage = ("some_stage", "--run", "r", "--artifact", "x")
    command = ["torchrun", "--nproc-per-node", "8", "--shutdown-timeout", "25", "-m", "--", "some_stage"]
    trainjob.start(Jobs(trainjob._client()), JOB, command, ["--run", "r"])
    cluster.launcher("other", monkeypatch)
    assert launch(*stage) == (0 if ends else 143)
    assert cluster.deleted == []
    cluster.ends("first")  # the job still runs
    assert launch(*stage) == (0 if ends else 143)  # its own by now
    assert len(cluster.deleted) == 1


@pytest.mark.heavy
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
    assert "ranks      2 on 1 machine reach each other" in printed[0]
    assert not printed[1]
